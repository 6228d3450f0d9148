"""The text files that SASRec and its descendants read: one event a line, separated by a space or a tab, no header.

Two columns: user item. Three: user item timestamp. Four: user item rating timestamp. With two columns the order of the
lines is the order of the events.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipelines.data.formats.delimited import Column, Layout, read_delimited
from pipelines.data.formats.raw import OTHER_LAYOUT, locate
from pipelines.errors import DataError

_IDS = (Column("user_id", 0, "id"), Column("item_id", 1, "id"))
_COLUMNS = {
    2: _IDS,
    3: (*_IDS, Column("timestamp", 2, "time")),
    4: (*_IDS, Column("rating", 2, "float"), Column("timestamp", 3, "time")),
}


def read(path: Path, *, member: str | None = None) -> pl.DataFrame:
    """``user_id``, ``item_id`` (int64, or text), and ``timestamp`` int64 or, in two-column files, ``order`` int64.

    Args:
        path: the text file, or a zip or folder that holds it.
        member: its name inside the zip or folder.
    """
    raw = locate(path, (f"{path.stem}.txt",), member)
    first = raw.first_line()
    separator = "\t" if "\t" in first else " "
    width = len(first.split(separator))
    if width not in _COLUMNS:
        raise DataError(
            f"the line has {width} fields where 2 (user item), 3 (user item timestamp) or 4 (user item rating "
            "timestamp) belong, separated by one space or tab",
            where=f"{raw.label}:1",
            fix=OTHER_LAYOUT,
        )
    frame = read_delimited(raw, Layout(separator, width, _COLUMNS[width]))
    return frame if width > 2 else frame.with_columns(order=pl.int_range(pl.len(), dtype=pl.Int64))
