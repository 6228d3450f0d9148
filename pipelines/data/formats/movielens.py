"""MovieLens in GroupLens's own layouts, plain, unpacked or inside the official zip.

100k ``u.data``: user item rating timestamp, separated by tabs. 1M and 10M ``ratings.dat``: the same with ``::`` (10M
rates in half stars). 20M, 25M, 32M ``ratings.csv``: commas and the header ``userId,movieId,rating,timestamp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipelines.data.formats.delimited import Column, Layout, read_delimited
from pipelines.data.formats.raw import OTHER_LAYOUT, locate
from pipelines.data.formats.shown import shown, shown_names
from pipelines.errors import ConfigError, DataError, nearest

MEMBERS = ("u.data", "ratings.dat", "ratings.csv")
_HEADER = ["userId", "movieId", "rating", "timestamp"]
_COLUMNS = (
    Column("user_id", 0, "int"),
    Column("item_id", 1, "int"),
    Column("rating", 2, "float"),
    Column("timestamp", 3, "time"),
)
_SEPARATORS = {"u.data": "\t", "ratings.dat": "::", "ratings.csv": ","}


def read(path: Path, *, member: str | None = None) -> pl.DataFrame:
    """``user_id`` int64, ``item_id`` int64, ``rating`` float32, ``timestamp`` int64 seconds, in file order.

    Args:
        path: one of the files above, a folder or a zip that holds one of them.
        member: its name inside the zip or folder, where several are there.
    """
    raw = locate(path, MEMBERS, member)
    first = raw.first_line()
    separator = _SEPARATORS.get(raw.name) or ("::" if "::" in first else "\t" if "\t" in first else ",")
    header = separator == ","
    if header and first.split(",") != _HEADER:
        missing = [name for name in _HEADER if name not in first.split(",")]
        raise DataError(
            f"columns missing: {shown_names(missing) or 'none, but their order differs'}; found: {shown(first)}; "
            f"needed: {','.join(_HEADER)}",
            where=f"{raw.label}:1",
            fix=OTHER_LAYOUT,
        )
    return read_delimited(raw, Layout(separator, 4, _COLUMNS, header=header))


USER_COLUMNS = ("sex", "age", "occupation", "zip")


def read_users(path: Path, names: Sequence[str], *, member: str | None = None) -> pl.DataFrame:
    """``user_id`` and the columns ``names`` of the 1M edition's ``users.dat`` (user::sex::age::occupation::zip).

    Args:
        path: the zip or folder that holds it, or a ratings file that it lies beside.
        names: of ``sex``, ``age`` (a class, named by its lowest age), ``occupation`` (a class) and ``zip``.
        member: of the ratings inside; the users lie beside them.

    Raises:
        ConfigError: a name of another column.
        DataError: there is no such file (only the 1M edition has it), or a line is malformed.
    """
    for name in names:
        if name not in USER_COLUMNS:
            raise ConfigError(
                f"MovieLens tells no '{name}' of its users",
                where="prepare.user_features",
                fix=nearest(name, ("user_id", *USER_COLUMNS)),
            )
    plain = path.is_file() and path.suffix != ".zip"
    beside = f"{member.rpartition('/')[0]}/users.dat" if member and "/" in member else None
    raw = locate(path.parent if plain else path, ("users.dat",), None if plain else beside)
    columns = [Column("user_id", 0, "int")]
    columns += [Column(name, USER_COLUMNS.index(name) + 1, "id") for name in names]
    return read_delimited(raw, Layout("::", 1 + len(USER_COLUMNS), columns))
