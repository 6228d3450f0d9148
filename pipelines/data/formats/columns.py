"""Which columns of a foreign table are the user, the item, the time, the rating and the order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from pipelines.data.formats.delimited import Kind
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

    def check(self, found: Sequence[str], where: str) -> None:
        """DataError naming what is missing and what is there."""
        missing = [theirs for theirs in self.wanted.values() if theirs not in found]
        if missing:
            raise DataError(
                f"columns missing: {', '.join(missing)}; found: {', '.join(found)}",
                where=where,
                fix="Name the file's columns with the options user, item, timestamp (null for none), rating, order",
            )

    def with_order(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The file order as ``order``, if the file has neither times nor an order of its own."""
        if self.timestamp is None and self.order is None:
            return frame.with_columns(order=pl.int_range(pl.len(), dtype=pl.Int64))
        return frame
