"""How far apart two events are, as a bucket: ``r_ij = min(|t_i - t_j|, span)`` in a row's own or a fixed unit."""

from __future__ import annotations

import torch
from torch import Tensor

UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


def interval_buckets(timestamps: Tensor, span: int, unit: str | None) -> Tensor:
    """``r_ij = min(|t_i - t_j|, span)`` of padded rows.

    Args:
        timestamps: ``[B, L]`` int64 seconds, never decreasing inside a row; places behind its end hold its last one.
        span: the largest bucket, ``S``.
        unit: ``second``, ``minute``, ``hour`` or ``day``: whole units between two events. None: the paper's scale, the
            row's smallest gap above 0 is 1: ``t' = round((t - t_first) / gap) + 1``.

    Returns:
        ``[B, L, L]`` int64, 0 .. span.
    """
    if unit is not None:
        gaps = timestamps[:, :, None] - timestamps[:, None, :]
        return gaps.abs_().div_(UNITS[unit], rounding_mode="floor").clamp_(max=span)
    steps = timestamps.diff(dim=1)
    smallest = steps.masked_fill(steps <= 0, torch.iinfo(torch.int64).max)
    gap = smallest.amin(1, keepdim=True) if steps.shape[1] else torch.ones_like(timestamps)
    since = (timestamps - timestamps[:, :1]).to(torch.float64)
    scaled = torch.round(since / gap).to(torch.int64)  # differences do not feel the + 1
    return (scaled[:, :, None] - scaled[:, None, :]).abs_().clamp_(max=span)


def whole_units(timestamps: Tensor, offsets: Tensor, unit: str | None) -> tuple[Tensor, int]:
    """Times of packed tokens and the unit in which their differences are buckets, as in :func:`interval_buckets`.

    Args:
        timestamps: ``[T]`` int64 seconds, never decreasing inside a row.
        offsets: ``[U + 1]`` int64, row borders.
        unit: a name, or None for the paper's scale.

    Returns:
        ``[T]`` int64 and the unit's length: ``r_ij = min(|t_i - t_j| // length, span)``.
    """
    if unit is not None or len(timestamps) == 0:
        return timestamps, 1 if unit is None else UNITS[unit]
    lengths = offsets.diff()
    row = torch.repeat_interleave(lengths, output_size=len(timestamps))  # [T]; nothing is asked of the device
    steps = timestamps.diff(prepend=timestamps[:1])
    largest = torch.iinfo(torch.int64).max
    first = row.diff(prepend=row[:1] - 1) > 0
    steps = steps.masked_fill(first | (steps <= 0), largest)
    gap = torch.full_like(lengths, largest).scatter_reduce(0, row, steps, "amin")  # [U]
    begin = timestamps[offsets[:-1].clamp_max(len(timestamps) - 1)]
    since = (timestamps - begin[row]).to(torch.float64)
    return torch.round(since / gap[row]).to(torch.int64), 1
