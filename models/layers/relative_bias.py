"""The learned tables of HSTU's relative attention bias."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.kernels.hstu_attention import RelativeBias

BiasKind = Literal["none", "position", "position_time"]


class RelativeBiasTables(nn.Module):
    """A number for each distance in places and, with ``position_time``, for each bucket of seconds.

    Args:
        kind: ``position`` or ``position_time``.
        max_length: P, the longest row told apart: the position table has ``2 P - 1`` numbers.
        time_buckets: buckets ``floor(ln(max(1, |seconds|)) / .301)``, 128 as published.
    """

    def __init__(self, kind: BiasKind, max_length: int, time_buckets: int = 128) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(2 * max_length - 1).normal_(std=0.02))
        self.time = nn.Parameter(torch.empty(time_buckets).normal_(std=0.02)) if kind == "position_time" else None

    def forward(self, times: Tensor | None, next_times: Tensor | None) -> RelativeBias:
        """The bias of rows whose tokens happened at ``times`` ``[T]`` and are asked at ``next_times`` ``[T]``."""
        if self.time is None:
            return RelativeBias(self.position)
        return RelativeBias(self.position, self.time, times, next_times)
