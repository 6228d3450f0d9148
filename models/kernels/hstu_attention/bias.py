"""HSTU's relative attention bias: one number for the distance in places, one for the distance in time.

Source: Zhai et al. 2024, arXiv 2402.17152; the buckets of time are those of its authors' ML-1M experiments:
``floor(ln(max(1, |seconds|)) / .301)``. Both tables are shared by the heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

BUCKET_WIDTH = 0.301


@dataclass(frozen=True, eq=False)
class RelativeBias:
    """What is added to a score: ``position[P - 1 + i - j] + time[bucket(next_times[i] - times[j])]``.

    Attributes:
        position: ``[2 P - 1]``, by the query's place less the key's; further apart counts as furthest. None: no such
            bias.
        time: ``[buckets]``; intervals beyond the last bucket fall into it. None: no such bias.
        times: ``[T]`` int64 seconds, of each key; needed with ``time``.
        next_times: ``[T]`` int64 seconds, what each query measures from: the time of the event after it, or its own
            for a model that is not told when it is asked; needed with ``time``.
    """

    position: Tensor | None = None
    time: Tensor | None = None
    times: Tensor | None = None
    next_times: Tensor | None = None

    def __post_init__(self) -> None:
        if self.position is not None and self.position.numel() % 2 != 1:
            raise ValueError(f"hstu_attention: a position table of {self.position.numel()} numbers has no middle")
        if self.time is not None and (self.times is None or self.next_times is None):
            raise ValueError("hstu_attention: a bias by time needs times and next_times")


def time_bucket(seconds: Tensor, buckets: int) -> Tensor:
    """``floor(ln(max(1, |seconds|)) / .301)``, at most ``buckets - 1``; int64 seconds of any shape to the same."""
    logs = seconds.abs().clamp(min=1).to(torch.float64).log()
    return (logs / BUCKET_WIDTH).floor().to(torch.int64).clamp(max=buckets - 1)


@cache
def bucket_borders(buckets: int) -> tuple[int, ...]:
    """The fewest whole seconds of buckets ``1 .. buckets - 1``: exact, and cheaper than a logarithm a pair."""
    ends = (math.exp(BUCKET_WIDTH * bucket) for bucket in range(1, buckets))
    return tuple(2**62 if end >= 2**62 else math.ceil(end) for end in ends)
