"""One reader a file format, all giving the interactions table.

``user_id`` and ``item_id`` (int64 or text), ``timestamp`` int64, optionally ``rating`` float32, in file order. Files
without times give a column ``order`` instead of ``timestamp``.
"""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import polars as pl

from pipelines.data.formats import csv, kuairand, movielens, parquet, recbole, sasrec, synthetic
from pipelines.data.formats.raw import MEMBER, RawFile, locate
from pipelines.data.formats.shown import shown
from pipelines.errors import ConfigError, DataError, nearest

READER_VERSION = 1
"""Raise it when the same file would give another table, so that stores on disk are rebuilt."""

_OPTION_KIND = "Give text (in quotes where it looks like something else)"

READERS: dict[str, Callable[..., pl.DataFrame]] = {
    "movielens": movielens.read,
    "recbole": recbole.read,
    "sasrec": sasrec.read,
    "csv": csv.read,
    "parquet": parquet.read,
    "kuairand": kuairand.read,
    "synthetic": synthetic.read,
}

USER_READERS: dict[str, Callable[..., pl.DataFrame]] = {
    "movielens": movielens.read_users,
    "kuairand": kuairand.read_users,
    "synthetic": synthetic.read_users,
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
        format = detect_format(path, options.get("member"))
    if format not in READERS:
        raise ConfigError(f"unknown data format '{format}'", fix=nearest(format, [*READERS, "auto"]))
    reader = READERS[format]
    hints = get_type_hints(reader)
    taken = inspect.signature(reader).parameters.keys() - {"path"}
    for name, value in options.items():
        where = f"dataset.options.{name}"
        if name not in taken:
            raise ConfigError(f"format {format} has no option '{name}'", where=where, fix=nearest(name, taken))
        if not _is_one_of(value, hints[name]):
            raise ConfigError(f"option '{name}' cannot be {value!r}", where=where, fix=_OPTION_KIND)
    return reader(path, **options)


def read_users(path: Path, names: Sequence[str], format: str = "auto", **options: Any) -> pl.DataFrame:
    """What a dataset tells of its users: ``user_id`` and the columns ``names``.

    Args:
        path: the file, archive or folder that :func:`read_interactions` reads too.
        names: the columns.
        format: a key of :data:`READERS`, or ``auto``.
        options: the interactions' options; those that say nothing about users are passed over.

    Raises:
        ConfigError: the format tells nothing of its users, or not this.
        DataError: a missing or malformed file.
    """
    path = Path(path)
    if format == "auto":
        format = detect_format(path, options.get("member"))
    if format not in USER_READERS:
        known = ", ".join(sorted(USER_READERS))
        raise ConfigError(
            f"format {format} tells nothing of its users ({', '.join(names)})",
            where="prepare.user_features",
            fix=f"Keep user_id alone; formats that do: {known}",
        )
    reader = USER_READERS[format]
    taken = inspect.signature(reader).parameters.keys() & options.keys()
    return reader(path, names, **{name: options[name] for name in taken})


def _is_one_of(value: Any, hint: Any) -> bool:
    """Whether an option's value is of its type: text, null or a list of texts."""
    if isinstance(value, (list, tuple)):
        return list in [get_origin(kind) for kind in get_args(hint)] and all(isinstance(entry, str) for entry in value)
    return type(value) in (hint, *get_args(hint))


def detect_format(path: Path, member: str | None = None) -> str:
    """The format of a file, from its name and, for text, its first line.

    Args:
        path: the file, or a zip archive or folder that holds it.
        member: its name inside, where that is known.
    """
    if not path.exists():
        raise DataError("no such file", where=str(path), fix="Check the path")
    raw = locate(path, (), member) if member is not None else RawFile(path)
    names = _names(path) if member is None else [raw.name]
    if member is None and path.suffix == ".parquet":
        return "parquet"
    if any(name.endswith(".inter") for name in names):
        return "recbole"
    if any(name in ("u.data", "ratings.dat") for name in names):
        return "movielens"
    if member is None and (path.is_dir() or path.suffix == ".zip"):
        if "ratings.csv" in names:
            return "movielens"
        raise DataError("holds no file of a known name", where=str(path), fix=f"Name the one to read with {MEMBER}")
    first = raw.first_line()
    if first.replace('"', "") == "userId,movieId,rating,timestamp" or "::" in first:
        return "movielens"
    if raw.name.endswith(".csv") or "," in first:
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
            raise DataError(
                f"is not a usable zip archive ({shown(str(error))})", where=str(path), fix="Fetch it again"
            ) from None
    return [path.name]
