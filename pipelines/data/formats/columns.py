"""Which columns of a foreign table are the user, the item, the time, the rating and the order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from pipelines.data.formats.delimited import Kind
from pipelines.data.formats.shown import shown, shown_names
from pipelines.errors import DataError


@dataclass(frozen=True)
class ColumnNames:
    """The names in the file; None for what is not read.

    Attributes:
        user: who.
        item: what.
        timestamp: when.
        rating: how much.
        order: the place of the event among those of equal time.
    """

    user: str
    item: str
    timestamp: str | None
    rating: str | None
    order: str | None

    kinds: ClassVar[dict[str, Kind]] = {
        "user_id": "id",
        "item_id": "id",
        "timestamp": "time",
        "rating": "float",
        "order": "int",
    }

    @property
    def wanted(self) -> dict[str, str]:
        """Our names -> the file's names."""
        pairs = zip(self.kinds, (self.user, self.item, self.timestamp, self.rating, self.order), strict=True)
        return {ours: theirs for ours, theirs in pairs if theirs is not None}

    def check(self, found: Sequence[str], where: str, separator: str | None = None) -> None:
        """DataError naming what is missing and what is there, or what is read and stands there twice."""
        check_columns(self.options, found, where, separator)

    @property
    def options(self) -> dict[str, str]:
        """The readers' option -> the file's name."""
        pairs = zip(
            ("user", "item", "timestamp", "rating", "order"),
            (self.user, self.item, self.timestamp, self.rating, self.order),
            strict=True,
        )
        return {option: theirs for option, theirs in pairs if theirs is not None}

    def with_order(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The file order as ``order``, if the file has neither times nor an order of its own."""
        if self.timestamp is None and self.order is None:
            return frame.with_columns(order=pl.int_range(pl.len(), dtype=pl.Int64))
        return frame


def check_columns(options: Mapping[str, str], found: Sequence[str], where: str, separator: str | None = None) -> None:
    """DataError unless every column that is read stands in the file, and once.

    Args:
        options: reader option -> the column it names.
        found: the file's columns.
        where: file:line of the header.
        separator: what the header was split at, if it was.
    """
    missing = {option: name for option, name in options.items() if name not in found}
    if missing:
        settings = " ".join(f"--set dataset.options.{option}=COLUMN" for option in missing)
        if separator is not None and len(found) == 1:  # nothing was split: the columns may well be there
            settings += " or the character between them with --set dataset.options.separator"
        none = ", timestamp null if the file has no times" if "timestamp" in missing else ""
        raise DataError(
            f"columns missing: {shown_names(missing.values())}; found: {shown_names(found)}",
            where=where,
            fix=f"Name the file's columns with {settings} (or under `options:` in the dataset's YAML file{none})",
        )
    twice = [name for name in dict.fromkeys(options.values()) if list(found).count(name) > 1]
    if twice:
        raise DataError(
            f"column name '{shown(twice[0])}' stands {list(found).count(twice[0])} times",
            where=where,
            fix="Rename or remove all but one",
        )
