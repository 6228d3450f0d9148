"""KuaiRand (Gao et al. 2022, arXiv 2208.08696) in its published CSV layout: editions Pure, 1K and 27K.

A folder (or zip, or the published ``.tar.gz``) holds logs ``log_standard_4_08_to_4_21_1k.csv`` and
``log_standard_4_22_to_5_08_1k.csv`` (of the edition 27K two parts each), ``log_random_4_22_to_5_08_1k.csv`` and
``user_features_1k.csv``. The eight yes-or-no signals of an event become the bits of one number, ``actions``.

The edition 27K has 322 million events: logs are read block by block into the narrowest columns that hold them, 17 bytes
an event. Preparing 24 million generated events peaked at 1.17 GB, 8 million at 0.60 GB: 37 bytes an event more, so
12 GB for all. A ``.tar.gz`` is read through once a log; an unpacked folder is faster.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl

from pipelines.data.formats.delimited import Column, Layout, parse, raise_first_malformed, whole_numbers_if_all
from pipelines.data.formats.raw import RawFile, decoded, is_tar, locate
from pipelines.data.formats.shown import shown, shown_names
from pipelines.errors import ConfigError, DataError, nearest

EDITIONS = ("pure", "1k", "27k")
LOGS = ("standard", "random", "all")
SIGNALS = {
    "click": "is_click",
    "like": "is_like",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "hate": "is_hate",
    "long_view": "long_view",
    "profile_enter": "is_profile_enter",
}
"""Bit of ``actions``, lowest first -> column of a log."""

_BLOCK = 1 << 25  # bytes of a log that are parsed at a time
_LAST = "tab"
_IDS = {"user_id": "user_id", "item_id": "video_id", "timestamp": "time_ms"}


def read(
    path: Path,
    *,
    edition: str | None = None,
    logs: str = "standard",
    features: tuple[str, ...] | list[str] = (),
) -> pl.DataFrame:
    """``user_id``, ``item_id`` (int32 if they fit), ``timestamp`` int64 milliseconds, ``actions`` uint8 and features.

    Rows stand in the order of the logs: older period first, part 1 before part 2, the random log last.

    Args:
        path: the folder or archive.
        edition: ``pure``, ``1k`` or ``27k``; None tells it from the path.
        logs: ``standard``: what the app recommended; ``random``: what it showed at random; ``all``: both.
        features: further columns of whole numbers to read under their own names, such as ``play_time_ms`` or ``tab``.

    Raises:
        ConfigError: unknown edition or logs.
        DataError: a log is missing or malformed: names the file and the line.
    """
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (*_IDS, "actions", *features)}
    for name in log_names(edition_of(path, edition), logs):
        for block in _log_blocks(file_in(path, name), tuple(features)):
            for column, values in block.items():
                columns[column].append(values)
    if not columns["actions"]:
        raise DataError("the logs hold no rows", where=str(path))
    # One at a time, so that at most one column lies there twice.
    return pl.DataFrame([pl.Series(name, np.concatenate(columns.pop(name))) for name in list(columns)])


def read_users(path: Path, names: Sequence[str], *, edition: str | None = None) -> pl.DataFrame:
    """``user_id`` and the columns ``names`` of ``user_features_<edition>.csv``; what is empty there is null.

    Raises:
        DataError: the file, a column or a user's id is missing, or a line is malformed.
    """
    raw = file_in(path, f"user_features_{edition_of(path, edition)}.csv")
    lines = csv.reader(line for _, line in raw.lines())
    header = next(lines, [])
    missing = [name for name in ("user_id", *names) if name not in header]
    if missing:
        raise DataError(
            f"columns missing: {shown_names(missing)}; found: {shown_names(header)}", where=f"{raw.label}:1"
        )
    places = [header.index(name) for name in ("user_id", *names)]
    rows = []
    for row in lines:
        if not row:
            continue
        if len(row) != len(header) or not row[places[0]].strip():
            what = f"the line has {len(row)} fields where {len(header)} belong"
            what = what if len(row) != len(header) else "user_id is empty"
            raise DataError(what, where=f"{raw.label}:{lines.line_num}", fix="Repair or remove such rows")
        rows.append([row[place].strip() or None for place in places])
    table = pl.DataFrame(rows, schema=dict.fromkeys(("user_id", *names), pl.String), orient="row")
    return table.with_columns(whole_numbers_if_all(table["user_id"]))


def edition_of(path: Path, edition: str | None) -> str:
    """The edition as given, or as the path names it."""
    if edition is None:
        named = re.findall(r"kuairand[-_]?(pure|1k|27k)(?![a-z0-9])", str(path).lower())
        if not named:
            fix = "Say it with --set dataset.options.edition=1k (or pure, 27k)"
            raise DataError("which edition of KuaiRand this is does not show", where=str(path), fix=fix)
        return str(named[-1])
    if edition.lower() not in EDITIONS:
        raise ConfigError(
            f"unknown edition '{edition}'", where="dataset.options.edition", fix=nearest(edition, EDITIONS)
        )
    return edition.lower()


def log_names(edition: str, logs: str) -> list[str]:
    """The files of an edition's logs, in the order in which they are read."""
    if logs not in LOGS:
        raise ConfigError(f"unknown logs '{logs}'", where="dataset.options.logs", fix=nearest(logs, LOGS))
    parts = ("_part1", "_part2") if edition == "27k" else ("",)
    standard = [
        f"log_standard_{time}_{edition}{part}.csv" for time in ("4_08_to_4_21", "4_22_to_5_08") for part in parts
    ]
    random = [f"log_random_4_22_to_5_08_{edition}.csv"]
    return {"standard": standard, "random": random, "all": standard + random}[logs]


def file_in(path: Path, name: str) -> RawFile:
    """The file ``name`` in a folder or archive, at whatever depth."""
    return RawFile(path, name) if path.is_file() and is_tar(path) else locate(path, (name,))


def _log_blocks(raw: RawFile, features: tuple[str, ...]) -> Iterator[dict[str, np.ndarray]]:
    """A log as narrow columns, some hundred thousand rows at a time."""
    with raw.open() as stream:
        header = decoded(stream.readline(1 << 20)).rstrip("\r\n").split(",")
        layout = _layout(raw, header, features)
        for lines in _whole_lines(stream):
            frame = parse(lines, ",", layout)
            if frame is None:
                raise_first_malformed(raw, Layout(",", layout.width, layout.columns, header=True))
            if frame.height:
                yield _narrow(frame, features)


def _layout(raw: RawFile, header: list[str], features: tuple[str, ...]) -> Layout:
    wanted = [*_IDS.values(), *SIGNALS.values(), _LAST, *features]
    missing = [name for name in wanted if name not in header]
    if missing:
        raise DataError(
            f"columns missing: {shown_names(missing)}; found: {shown(','.join(header))}", where=f"{raw.label}:1"
        )
    columns = [Column(ours, header.index(theirs), "int") for ours, theirs in _IDS.items()]
    columns += [Column(theirs, header.index(theirs), "flag") for theirs in SIGNALS.values()]
    more = dict.fromkeys((_LAST, *features))  # a line that is cut off lacks the last
    columns += [Column(name, header.index(name), "int") for name in more if name not in SIGNALS.values()]
    return Layout(",", len(header), columns)


def _whole_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The rest of a stream in runs of whole lines, each with its end."""
    rest = b""
    while block := stream.read(_BLOCK):
        cut = block.rfind(b"\n") + 1
        if cut:
            yield rest + block[:cut]
            rest = block[cut:]
        else:
            rest += block
    if rest.strip():
        yield rest


def _narrow(frame: pl.DataFrame, features: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Ids in 32 bits where they fit, the signals as bits of one byte."""
    actions = np.zeros(frame.height, dtype=np.uint8)
    for bit, column in enumerate(SIGNALS.values()):
        actions |= frame[column].to_numpy() << np.uint8(bit)
    return {
        **{name: _least(frame[name].to_numpy()) for name in ("user_id", "item_id")},
        "timestamp": frame["timestamp"].to_numpy(),
        "actions": actions,
        **{name: _least(frame[name].to_numpy()) for name in features},
    }


def _least(values: np.ndarray) -> np.ndarray:
    bounds = np.iinfo(np.int32)
    fits = values.dtype.itemsize <= 4 or (bounds.min <= values.min() and values.max() <= bounds.max)
    return values.astype(np.int32) if fits else values
