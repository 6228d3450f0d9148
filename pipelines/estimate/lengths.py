"""Lengths of histories that nobody has counted: a distribution with the right shortest one and the right mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lengths:
    """A supposed distribution of lengths: ``least`` plus a geometric number, with the right mean.

    Attributes:
        least: the shortest.
        mean: of all.
    """

    least: int
    mean: float

    def share_above(self, length: int | np.ndarray) -> np.ndarray:
        """The share of users whose length is greater than ``length``."""
        more = np.asarray(length) - self.least
        q = (self.mean - self.least) / (self.mean - self.least + 1.0)
        return np.where(more < 0, 1.0, q ** np.maximum(more + 1, 0))

    def capped(self, limit: int) -> float:
        """The mean of ``min(length, limit)``."""
        return float(self.share_above(np.arange(limit)).sum())

    def pieces(self, limit: int) -> float:
        """The mean of ``ceil(length / limit)``."""
        reach = int(np.ceil((self.least + 40 * (self.mean - self.least + 1)) / limit)) + 1  # beyond: e^-40
        return float(self.share_above(np.arange(reach) * limit).sum())

    def shared(self, limit: int, every: bool) -> float:
        """``sum l^2 / sum l`` over windows of at most ``limit`` tokens."""
        reach = int(self.least + 40 * (self.mean - self.least + 1)) if every else limit
        place = np.arange(reach)
        # l^2 is the sum of 2 k + 1 over the places k of a window, and a place is there with the share of longer users
        share = self.share_above(place)
        return float(((2 * (place % limit) + 1) * share).sum() / share.sum())
