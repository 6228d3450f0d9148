"""Any delimited file with a header line; the columns are named by options."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipelines.data.formats.columns import ColumnNames
from pipelines.data.formats.delimited import Column, Layout, read_delimited, split_line
from pipelines.data.formats.raw import NOT_TEXT, locate
from pipelines.errors import ConfigError, DataError


def read(
    path: Path,
    *,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str | None = "timestamp",
    rating: str | None = None,
    order: str | None = None,
    separator: str = ",",
    member: str | None = None,
) -> pl.DataFrame:
    """``user_id``, ``item_id`` (int64, or text), ``timestamp`` int64; if asked for ``rating`` float32, ``order`` int64.

    Args:
        path: the file, or a zip or folder that holds it.
        user: the column that names the user.
        item: the column that names the item.
        timestamp: the column that holds the time; None reads none: then ``order``, or the file order, stands for it.
        rating: the column that holds the rating.
        order: the column that orders events of equal time.
        separator: one character between fields.
        member: its name inside the zip or folder.
    """
    if len(separator) != 1:
        raise ConfigError(f"separator '{separator}' is not one character", where="dataset.options.separator")
    raw = locate(path, (f"{path.stem}.csv",), member)
    header = [name.strip() for name in split_line(raw.first_line(), separator) or ()]
    if not header:
        raise DataError("the first line is no header of a CSV file", where=f"{raw.label}:1", fix=NOT_TEXT)
    names = ColumnNames(user, item, timestamp, rating, order)
    names.check(header, f"{raw.label}:1", separator)
    places = {name: place for place, name in enumerate(header)}
    columns = [Column(ours, places[theirs], names.kinds[ours]) for ours, theirs in names.wanted.items()]
    frame = read_delimited(raw, Layout(separator, len(header), columns, header=True, quote='"'))
    return names.with_order(frame)
