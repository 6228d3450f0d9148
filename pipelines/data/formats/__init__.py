"""One reader a file format, all giving the interactions table.

``user_id`` and ``item_id`` (int64 or text), ``timestamp`` int64, optionally ``rating`` float32, in file order. Files
without times give a column ``order`` instead of ``timestamp``.
"""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.data.formats import csv, movielens, parquet, recbole, sasrec
from pipelines.data.formats.raw import RawFile
from pipelines.errors import ConfigError, DataError, nearest

READER_VERSION = 1
"""Raise it when the same file would give another table, so that stores on disk are rebuilt."""

READERS: dict[str, Callable[..., pl.DataFrame]] = {
    "movielens": movielens.read,
    "recbole": recbole.read,
    "sasrec": sasrec.read,
    "csv": csv.read,
    "parquet": parquet.read,
}


def read_interactions(path: Path, format: str = "auto", **options: Any) -> pl.DataFrame:
    """Read a raw file into an interactions table.

    Args:
        path: the file; for text formats also a zip archive or a folder that holds it.
        format: a key of :data:`READERS`, or ``auto`` to tell it from the name and the first line.
        options: the reader's own options, e.g. ``user="uid"`` or ``separator=";"``.

    Raises:
        ConfigError: unknown format or option.
        DataError: missing, empty or malformed file; malformed text names the first bad line and how many there are.
    """
    path = Path(path)
    if format == "auto":
        format = detect_format(path)
    if format not in READERS:
        raise ConfigError(f"unknown data format '{format}'", fix=nearest(format, [*READERS, "auto"]))
    reader = READERS[format]
    taken = set(inspect.signature(reader).parameters) - {"path"}
    for name in options:
        if name not in taken:
            raise ConfigError(f"format {format} has no option '{name}'", fix=nearest(name, taken))
    return reader(path, **options)


def detect_format(path: Path) -> str:
    """The format of a file, from its name and, for text, its first line."""
    if not path.exists():
        raise DataError("no such file", where=str(path), fix="Check the path")
    names = _names(path)
    if path.suffix == ".parquet":
        return "parquet"
    if any(name.endswith(".inter") for name in names):
        return "recbole"
    if any(name in ("u.data", "ratings.dat") for name in names):
        return "movielens"
    if path.is_dir() or path.suffix == ".zip":
        if "ratings.csv" in names:
            return "movielens"
        raise DataError("holds no file of a known name", where=str(path), fix="Set the format and the option `member`")
    first = RawFile(path).first_line()
    if first.replace('"', "") == "userId,movieId,rating,timestamp" or "::" in first:
        return "movielens"
    if path.suffix == ".csv" or "," in first:
        return "csv"
    return "sasrec"


def _names(path: Path) -> list[str]:
    if path.is_dir():
        return [p.name for p in path.rglob("*") if p.is_file()]
    if path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                return [name.rsplit("/", 1)[-1] for name in archive.namelist()]
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"is not a usable zip archive ({error})", where=str(path), fix="Fetch it again") from None
    return [path.name]
