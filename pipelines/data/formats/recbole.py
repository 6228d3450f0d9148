"""RecBole's atomic ``.inter`` files: tab-separated, with a typed header (``user_id:token  item_id:token``)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipelines.data.formats.columns import check_columns
from pipelines.data.formats.delimited import Column, Layout, read_delimited
from pipelines.data.formats.raw import locate
from pipelines.data.formats.shown import shown
from pipelines.errors import DataError

_TYPES = ("token", "token_seq", "float", "float_seq")


def read(
    path: Path,
    *,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str | None = "timestamp",
    rating: str | None = "rating",
    separator: str = "\t",
    member: str | None = None,
) -> pl.DataFrame:
    """``user_id``, ``item_id`` (int64, or text), ``timestamp`` int64 and, where the file has them, ``rating`` float32.

    Args:
        path: the ``.inter`` file, or a zip or folder that holds one.
        user: the field that names the user.
        item: the field that names the item.
        timestamp: the field that holds the time; None reads none, and the file order stands for the time.
        rating: the field that holds the rating, if the file has it.
        separator: between fields.
        member: its name inside the zip or folder.
    """
    if path.is_dir() and member is None:
        inters = sorted(str(p.relative_to(path)) for p in path.rglob("*.inter"))
        member = inters[0] if len(inters) == 1 else None
    raw = locate(path, (f"{path.stem}.inter",), member)
    fields: list[tuple[str, str]] = []
    for field in raw.first_line().split(separator):
        name, colon, kind = field.strip().partition(":")
        if not colon or kind not in _TYPES:
            raise DataError(
                f"header field '{shown(field, 40)}' is not name:type",
                where=f"{raw.label}:1",
                fix=f"Types are {', '.join(_TYPES)}, separated by {separator!r}",
            )
        fields.append((name, kind))
    types = dict(fields)
    named = {"user": user, "item": item, "timestamp": timestamp}
    if rating in types or rating != "rating":  # by its usual name the rating may be missing, by a given one it may not
        named["rating"] = rating
    wanted = {option: name for option, name in named.items() if name is not None}
    check_columns(wanted, [name for name, _ in fields], f"{raw.label}:1")
    places = {name: place for place, (name, _) in enumerate(fields)}
    columns = [Column("user_id", places[user], "id"), Column("item_id", places[item], "id")]
    if rating is not None and types.get(rating) == "float":
        columns.append(Column("rating", places[rating], "float"))
    if timestamp is not None:
        columns.append(Column("timestamp", places[timestamp], "time"))
    frame = read_delimited(raw, Layout(separator, len(fields), columns, header=True))
    return frame if timestamp is not None else frame.with_columns(order=pl.int_range(pl.len(), dtype=pl.Int64))
