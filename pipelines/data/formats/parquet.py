"""Parquet tables; the columns are named by options."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from pipelines.data.formats.columns import ColumnNames
from pipelines.data.formats.shown import shown, shown_names
from pipelines.errors import DataError


def read(
    path: Path,
    *,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str | None = "timestamp",
    rating: str | None = None,
    order: str | None = None,
    features: tuple[str, ...] | list[str] = (),
) -> pl.DataFrame:
    """``user_id``, ``item_id``, ``timestamp`` int64, and ``rating`` float32, ``order`` int64 and features if asked for.

    Args:
        path: the Parquet file.
        user: the column that names the user (integers or text).
        item: the column that names the item.
        timestamp: the column that holds the time (integers, whole floats, or dates, which become seconds); None reads
            none: then ``order``, or the file order, stands for it.
        rating: the column that holds the rating.
        order: the column that orders events of equal time.
        features: further numeric columns to read under their own names.
    """
    names = ColumnNames(user, item, timestamp, rating, order)
    try:
        found = pl.read_parquet_schema(path)
        names.check(list(found), str(path))
        absent = [name for name in features if name not in found]
        if absent:
            raise DataError(f"columns missing: {shown_names(absent)}; found: {shown_names(found)}", where=str(path))
        frame = pl.read_parquet(path, columns=list(dict.fromkeys([*names.wanted.values(), *features])))
    except (PolarsError, OSError) as error:
        raise DataError(f"cannot be read as Parquet ({shown(str(error))})", where=str(path)) from None
    columns = [frame[theirs].alias(ours) for ours, theirs in names.wanted.items()]
    columns += [frame[name] for name in features if name not in names.wanted]
    table = pl.DataFrame([_typed(column, str(path)) for column in columns])
    return names.with_order(table)


def _typed(column: pl.Series, where: str) -> pl.Series:
    if column.name in ("user_id", "item_id"):
        return column.cast(pl.Int64) if column.dtype.is_integer() else column
    if column.name in ("timestamp", "order"):
        if column.dtype.is_temporal():
            return column.cast(pl.Datetime("us")).dt.epoch("s")
        if column.dtype.is_float() and not column.is_null().any():
            if not (column.is_finite() & (column.abs() < 2**53)).all():
                raise DataError(f"{column.name} holds values that are no times", where=where, fix="Repair those rows")
            return column.floor().cast(pl.Int64)
        return column.cast(pl.Int64) if column.dtype.is_integer() else column
    return column.cast(pl.Float32) if column.name == "rating" and column.dtype.is_numeric() else column
