"""Time between events, as the step size of a state-space layer.

Raw seconds do not do: 36-49% of the gaps in MovieLens-1M are 0, which makes the input's weight in a zero-order hold 0
(the item vanishes), and the others spread over seven orders of magnitude, so that nearly every state is either
untouched or wiped. ``log1p`` brings a gap to a step near 1, keeps the order of gaps, and its floor lets tied events in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.batch import SequenceBatch

SCALINGS = ("log1p", "per_user", "raw")
FLOOR = 0.25
"""Step of two events in the same second (``log1p`` and ``per_user``), where an hour's step is 1.25."""
HOUR = math.log1p(3600.0)


def time_intervals(batch: SequenceBatch, *, query_time: str, scaling: str) -> Tensor:
    """The step of each token, ``[T]`` float32.

    Args:
        batch: queries with int64 seconds; the differences are taken in int64 and are exact.
        query_time: ``aware``: time until the next event, for the newest token until the request (the model is told when
            it is asked). ``blind``: time since the event before, 0 for the first one.
        scaling: ``log1p``: FLOOR + log1p(seconds) / log1p(an hour). ``per_user``: FLOOR + seconds / the row's mean gap
            so far.
            ``raw``: seconds, as the paper's code has it.
    """
    first, newest = batch.offsets[:-1], batch.offsets[1:] - 1
    gaps = torch.zeros_like(batch.timestamps)
    between = batch.timestamps[1:] - batch.timestamps[:-1]
    if query_time == "aware":
        gaps[:-1] = between
        gaps[newest] = batch.request_time - batch.timestamps[newest]
    else:
        gaps[1:] = between
        gaps[first] = 0
    seconds = gaps.clamp_(min=0).to(torch.float32)
    if scaling == "raw":
        return seconds
    if scaling == "log1p":
        return FLOOR + torch.log1p(seconds) / HOUR
    # The mean of the gaps so far: the whole row's mean would tell a token what comes later.
    rows = batch.jagged(seconds)
    total = torch.cumsum(seconds.to(torch.float64), 0)  # [T], over all rows
    before = torch.cat([total.new_zeros(1), total])[batch.offsets[:-1]]  # [U], what the rows before add up to
    so_far = total - before[rows.row_of_token()]
    mean = so_far / (rows.position_of_token() + 1)
    return FLOOR + seconds / mean.clamp(min=1.0).to(torch.float32)
