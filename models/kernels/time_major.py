"""Packed rows laid out step by step, for scans written as a loop over time in PyTorch: no padding, no masks.

Rows are sorted by length, longest first, so the rows that still run at step ``t`` are the first ``active[t]`` ones and
their tokens stand side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TimeMajor:
    """One block of rows, step by step.

    Attributes:
        tokens: ``[T']`` int64, the packed token at each place of this layout.
        active: rows that run at each step, never growing.
        starts: place of each step's first token; one more for the end.
    """

    tokens: Tensor
    active: list[int]
    starts: list[int]

    def steps(self) -> Iterator[tuple[int, slice]]:
        """Per step: how many rows run, and where their tokens stand."""
        for count, start in zip(self.active, self.starts, strict=False):
            yield count, slice(start, start + count)


def time_major(offsets: Tensor, rows_per_block: int) -> list[TimeMajor]:
    """Blocks of at most ``rows_per_block`` rows of similar length that together hold every token once."""
    starts, lengths = offsets[:-1], offsets.diff()
    order = torch.argsort(lengths, descending=True, stable=True)
    blocks = []
    for rows in torch.split(order, max(rows_per_block, 1)):
        row_lengths = lengths[rows]
        steps = int(row_lengths[0])
        if steps == 0:
            break
        runs = torch.arange(steps, device=offsets.device)[:, None] < row_lengths  # [steps, rows]
        tokens = (starts[rows] + torch.arange(steps, device=offsets.device)[:, None])[runs]
        active = runs.sum(1)
        blocks.append(TimeMajor(tokens, active.tolist(), [0, *active.cumsum(0).tolist()]))
    return blocks
