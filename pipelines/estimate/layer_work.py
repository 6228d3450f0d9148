"""What the count of a model's layers consists of: number formats in, costs of a token out."""

from __future__ import annotations

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
        encode_fixed: bytes of the widest point without gradients, whatever the batch.
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
    encode_fixed: float = 0.0


CountLayers = Callable[[Any, float, Formats], LayerWork]
"""A model's options, the tokens that a token shares its row with on average, number formats; to what a token costs."""
