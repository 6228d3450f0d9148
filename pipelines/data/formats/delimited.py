"""Delimited text into typed columns: fast when the file is sound, precise about the first bad line when it is not."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import polars as pl
from polars.exceptions import PolarsError

from pipelines.data.formats.raw import RawFile
from pipelines.data.formats.shown import shown
from pipelines.errors import DataError

Kind = Literal["int", "id", "float", "time", "flag"]
_TYPES: dict[Kind, type[pl.DataType]] = {
    "int": pl.Int64,
    "id": pl.String,
    "float": pl.Float32,
    "time": pl.Int64,
    "flag": pl.UInt8,
}
_INT64 = 2**63
_WHOLE = re.compile(r"[+-]?[0-9]+")  # int() and float() of Python take more: underscores, other scripts' digits
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Column:
    """A column to read.

    Attributes:
        name: its name in the table.
        position: its place in the line, from 0.
        kind: ``int`` whole number; ``id`` any non-empty text (whole numbers when all of them are plainly written so);
            ``float`` finite number; ``time`` whole number, also written as ``978300760.0`` or ``9.783e8``;
            ``flag`` 0 or 1.
    """

    name: str
    position: int
    kind: Kind


@dataclass(frozen=True)
class Layout:
    """How the lines of a file are built.

    Attributes:
        separator: between fields; one character, or ``::``.
        width: fields in every line.
        columns: those to read.
        header: whether the first line holds names.
        quote: the quoting character, if fields may be quoted.
    """

    separator: str
    width: int
    columns: Sequence[Column]
    header: bool = False
    quote: str | None = None


def read_delimited(raw: RawFile, layout: Layout) -> pl.DataFrame:
    """The columns of ``layout`` in file order; blank lines are skipped.

    Raises:
        DataError: the file is empty, or has malformed lines: names the first with its line number and counts them all.
    """
    source: bytes | Path = raw.read() if raw.member or len(layout.separator) > 1 else raw.path
    separator = layout.separator
    if len(separator) > 1:  # the parser takes single bytes; a tab in such a file makes a line of wrong width: an error
        assert isinstance(source, bytes)
        source, separator = source.replace(separator.encode(), b"\t"), "\t"
    if isinstance(source, bytes) and not source.strip():
        raise DataError("the file is empty", where=raw.label)
    frame = parse(source, separator, layout)
    if frame is None and any(column.kind == "time" for column in layout.columns):
        frame = parse(source, separator, layout, time=pl.Float64)
    if frame is None:
        raise_first_malformed(raw, layout)
    del source
    if not frame.height:
        raise DataError("the file holds no rows", where=raw.label)
    return frame


def parse(
    source: bytes | Path, separator: str, layout: Layout, time: type[pl.DataType] = pl.Int64
) -> pl.DataFrame | None:
    """The table of a whole file or of a run of whole lines, or None if any line is malformed."""
    schema: dict[str, type[pl.DataType]] = {f"column_{place + 1}": pl.String for place in range(layout.width)}
    for column in layout.columns:
        schema[f"column_{column.position + 1}"] = time if column.kind == "time" else _TYPES[column.kind]
    names = {f"column_{column.position + 1}": column.name for column in layout.columns}
    try:
        frame = pl.read_csv(
            source,
            has_header=False,
            skip_lines=int(layout.header),
            schema=schema,
            columns=sorted(column.position for column in layout.columns),
            separator=separator,
            quote_char=layout.quote,
            glob=False,
        ).rename(names)
    except PolarsError:
        return None
    frame = frame.select(column.name for column in layout.columns)
    if any(frame[name].null_count() for name in frame.columns):
        frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))  # blank lines
        if any(frame[name].null_count() for name in frame.columns):
            return None
    typed = [_typed(frame[column.name], column.kind) for column in layout.columns]
    sound = [values for values in typed if values is not None]
    return pl.DataFrame(sound) if len(sound) == len(typed) else None


def _typed(values: pl.Series, kind: Kind) -> pl.Series | None:
    """A column in the type of its kind, or None if a value is not of it."""
    if kind == "id":
        return whole_numbers_if_all(values)
    if kind == "flag":
        return None if (values > 1).any() else values
    if not values.dtype.is_float():
        return values
    if not values.is_finite().all():
        return None
    if kind == "time":  # beyond, a float64 cannot count seconds
        return values.floor().cast(pl.Int64) if (values.abs() < 2**53).all() else None
    return values


def whole_numbers_if_all(values: pl.Series) -> pl.Series:
    """Text as int64 if every value is a whole number in its plain writing (so `007` stays text)."""
    numbers = values.cast(pl.Int64, strict=False)
    if numbers.null_count() or not (numbers.cast(pl.String) == values).all():
        return values
    return numbers


def raise_first_malformed(raw: RawFile, layout: Layout) -> NoReturn:
    """Name the first malformed line, and how many there are. Walks line by line: the file is refused anyway."""
    first: tuple[int, str] | None = None
    rows = malformed = 0
    for number, line in raw.lines():
        if (layout.header and number == 1) or not line.strip():
            continue
        rows += 1
        problem = _problem(line, layout)
        if problem:
            malformed += 1
            first = first or (number, problem)
    if first is None:
        raise DataError(
            "cannot be parsed, though every line looks sound", where=raw.label, fix="Check quotes and line ends"
        )
    raise DataError(
        f"{first[1]} ({malformed} of {rows} rows malformed)",
        where=f"{raw.label}:{first[0]}",
        fix="Repair or remove such rows",
    )


def _problem(line: str, layout: Layout) -> str | None:
    if "\ufffd" in line:
        return "the line is not UTF-8 text"
    fields = split_line(line, layout.separator, layout.quote) if layout.quote else line.split(layout.separator)
    if fields is None:
        return "the line is no line of a CSV file"
    if len(fields) != layout.width:
        return f"the line has {len(fields)} fields where {layout.width} belong"
    for column in layout.columns:
        if fault := _fault(fields[column.position].strip(" "), column.kind):
            return f"{column.name} {fault}"
    return None


def split_line(line: str, separator: str, quote: str = '"') -> list[str] | None:
    """The fields of a line that may quote them; None where it cannot be split (carriage return, vast field)."""
    try:
        return next(csv.reader([line], delimiter=separator, quotechar=quote))
    except csv.Error:
        return None


def _fault(text: str, kind: Kind) -> str | None:
    if not text:
        return "is empty"
    if kind == "id":
        return None
    if kind == "flag":
        return None if text in ("0", "1") else f"'{shown(text, 40)}' is neither 0 nor 1"
    if not (_WHOLE if kind == "int" else _NUMBER).fullmatch(text):
        return f"'{shown(text, 40)}' is not a {'whole number' if kind in ('int', 'time') else 'finite number'}"
    if kind == "int":
        fits = len(text.lstrip("+-0")) < 20 and -_INT64 <= int(text) < _INT64  # int() refuses thousands of digits
        return None if fits else f"'{shown(text, 40)}' does not fit 64 bits"
    value = float(text)
    if not math.isfinite(value):
        return f"'{shown(text, 40)}' is not a finite number"
    return None if kind == "float" or abs(value) < 2**53 else f"'{shown(text, 40)}' is no time"
