"""What the count of a model's layers consists of: number formats in, costs of a token out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Formats:
    """Number formats and kernels of a device, as far as memory and speed depend on them.

    Attributes:
        device: ``cpu`` or ``cuda``.
        narrow: bytes of a number in the layers' matrix products: 2 under autocast, else 4.
        loss: bytes of a number in the loss' matrix products.
    """

    device: str
    narrow: int
    loss: int

    @property
    def scan_chunk(self) -> int:
        """Tokens between two states that the selective scan keeps: its kernels' own constants (a test compares)."""
        return 32 if self.device == "cpu" else 8


@dataclass(frozen=True)
class Rectangles:
    """Interval attention's working memory: some rows at a time, forward and once more in the backward pass.

    Attributes:
        numbers: of the largest tensor, unless one row needs more.
        heads: of attention.
        buckets: intervals told apart.
        width: of all heads.
        drops: whether weights are dropped in training.
        share: of 4 bytes that a number takes in training.
        held: bytes a token alive beside them without gradients.
        beside: bytes a token that the rest of the backward pass adds meanwhile to what is then still kept.
    """

    numbers: int
    heads: int
    buckets: int
    width: int
    drops: bool
    share: float
    held: float
    beside: float

    def _bytes(self, tokens: int, longest: int) -> tuple[float, float, float, float]:
        """Of a tensor by bucket, one by pair, gathered tokens, and gathered interval vectors."""
        at_a_time = max(1, self.numbers // (self.heads * longest * max(longest, self.buckets)))
        rows = min(at_a_time, math.ceil(tokens / longest))
        places = 4.0 * rows * longest
        by_token = places * self.heads
        return by_token * self.buckets, by_token * longest, places * self.width, 4.0 * rows * self.buckets * self.width

    def encode(self, tokens: int, longest: int) -> float:
        """Bytes without gradients: buckets, then scores or weights, with the intervals (int64) and q, k, v."""
        by_bucket, by_pair, gathered, _ = self._bytes(tokens, longest)
        intervals = 2 * by_pair / self.heads
        return self.held * tokens + max(3 * by_bucket + 2 * by_pair, by_bucket + 4 * by_pair) + 3 * gathered + intervals

    def backward(self, tokens: int, longest: int) -> float:
        """Bytes that the backward pass adds while it computes rectangles again: at their end, or in their gradients."""
        by_bucket, by_pair, gathered, values = self._bytes(tokens, longest)
        end = 3 * by_bucket + (4 if self.drops else 2) * by_pair + 3 * gathered
        gradients = 4 * by_bucket + 2 * by_pair + 2 * values + 2 * gathered
        return self.beside * tokens + self.share * max(end, gradients)


@dataclass(frozen=True)
class Strips:
    """Compiled interval attention's working memory: no pairs, but the tables by head and sums of their gradients.

    Attributes:
        runs: of rows, at most, whose sums are made apart.
        tables: bytes of both tables by head.
        held: bytes a token alive beside them without gradients.
        beside: bytes a token that the rest of the backward pass adds meanwhile to what is then still kept.
    """

    runs: int
    tables: int
    held: float
    beside: float

    def encode(self, tokens: int, longest: int) -> float:
        """Bytes without gradients."""
        return self.held * tokens + self.tables

    def backward(self, tokens: int, longest: int) -> float:
        """Bytes that the backward pass adds: the sums of each run, and those of all."""
        return self.beside * tokens + (min(self.runs, math.ceil(tokens / longest)) + 1) * self.tables


@dataclass(frozen=True)
class LayerWork:
    """What the layers cost a token, the loss apart.

    Attributes:
        parameters: all but the item table's.
        product_flops: matrix products of one forward pass.
        scan_flops: arithmetic of scans, convolutions and Sinkhorn's rounds of one forward pass, elementwise.
        saved: bytes kept for the backward pass.
        saved_row: bytes more for each row.
        encode: bytes alive at the widest point of a forward pass without gradients.
        backward: bytes that the backward pass adds at its widest point to what is then still kept; may be negative.
        backward_row: bytes more for each row.
        backward_fixed: bytes more whatever the batch.
        attention_flops: products of attention, forward and backward together: what its backward pass computes again is
            part of it.
        saved_pair: bytes kept for each pair of tokens of a row (``l^2`` of a row of ``l``).
        saved_fixed: bytes kept whatever the batch.
        streamed: bytes that a token moves besides what is kept for it alone, forward and backward.
        working: interval attention's working memory, see :class:`Rectangles` and :class:`Strips`.
        item_tables: copies of the item table that the loss scores against instead of the table itself.
    """

    parameters: int
    product_flops: float
    scan_flops: float
    saved: float
    saved_row: float
    encode: float
    backward: float
    backward_row: float
    backward_fixed: float
    attention_flops: float = 0.0
    saved_pair: float = 0.0
    saved_fixed: float = 0.0
    streamed: float = 0.0
    working: Rectangles | Strips | None = None
    item_tables: float = 0.0


CountLayers = Callable[[Any, float, Formats], LayerWork]
"""A model's options, the tokens that a token shares its row with on average, number formats; to what a token costs."""
