"""What is known of the users, as codes: 1 .. n for the distinct values in their order, 0 for unknown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from pipelines.data.formats.shown import shown_names
from pipelines.errors import DataError

USER_ID = "user_id"
"""A feature that every store can carry: the user's own index + 1. It has no vocabulary but users.parquet."""


def user_codes(
    names: Sequence[str], users: pl.DataFrame | None, user_ids: pl.Series, label: str
) -> tuple[dict[str, np.ndarray], dict[str, pl.Series]]:
    """Codes ``[users]`` int32 and the distinct values of each feature; ``user_id`` has no values of its own.

    Args:
        names: the features.
        users: ``user_id`` and a column a feature, a row a user; what is null there, or who is absent, is unknown.
        user_ids: original ids of the store's users, in the order of their indices.
        label: how messages call the data.

    Raises:
        DataError: a column is missing, a user stands there twice, or no user of the store is known.
    """
    told = [name for name in names if name != USER_ID]
    codes = {name: np.arange(1, len(user_ids) + 1, dtype=np.int32) for name in names if name == USER_ID}
    if not told:
        return codes, {}
    table = _table_of(told, users, user_ids, label)
    values = {name: table[name].drop_nulls().unique().sort() for name in told}
    for name in told:
        numbers = {value: code for code, value in enumerate(values[name].to_list(), start=1)}
        found = [numbers.get(value, 0) for value in table[name].to_list()]
        codes[name] = np.array(found, dtype=np.int32)
    return {name: codes[name] for name in names}, values


def _table_of(told: list[str], users: pl.DataFrame | None, user_ids: pl.Series, label: str) -> pl.DataFrame:
    """The features of the store's users, in the order of their indices."""
    absent = told if users is None else [name for name in (USER_ID, *told) if name not in users.columns]
    if users is None or absent:
        found = "no table of users" if users is None else shown_names(users.columns)
        raise DataError(f"user features missing: {', '.join(absent)}; found: {found}", where=label)
    known = users.select(pl.col(USER_ID).cast(user_ids.dtype, strict=False), *told)
    twice = known.filter(pl.col(USER_ID).is_duplicated() & pl.col(USER_ID).is_not_null())
    if twice.height:
        raise DataError(f"user {twice[USER_ID][0]} stands twice in the table of users", where=label)
    table = user_ids.rename(USER_ID).to_frame().join(known, on=USER_ID, how="left", maintain_order="left")
    if not user_ids.is_in(known[USER_ID].drop_nulls().implode()).any():
        raise DataError("the table of users knows none of the users who have events", where=label)
    return table


def write_vocabularies(folder: Path, values: dict[str, pl.Series]) -> None:
    """``user_<name>.parquet`` a feature: code and original value."""
    for name, distinct in values.items():
        codes = np.arange(1, len(distinct) + 1, dtype=np.int32)
        pl.DataFrame({"code": codes, "value": distinct.rename("value")}).write_parquet(folder / f"user_{name}.parquet")
