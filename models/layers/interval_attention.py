"""TiSASRec's attention: learned vectors for the time between two events, without a vector for each pair of events.

    score_ij = q_i . (k_j + RK[r_ij]) / sqrt(d),   out_i = sum_j a_ij (v_j + RV[r_ij])

``q . RK^T`` is computed once for all ``S + 1`` buckets and looked up by ``r_ij``; weights are summed by bucket before
they meet ``RV``. The largest tensors are ``[rows, H, L, L]`` of a few rows at a time, computed again in the backward
pass. The published code holds ``[B, L, L, D]`` twice (1 GB each at 128 x 200 x 50).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.kernels.packed_attention.vectorised import equal_length_groups
from models.layers.dropout import keep_mask

UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_NUMBERS_AT_A_TIME = 1 << 20  # of one [rows, H, L, max(L, S + 1)] tensor: 4 MB, so that a chunk stays in the cache


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


def interval_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    interval_keys: Tensor,
    interval_values: Tensor,
    timestamps: Tensor,
    offsets: Tensor,
    *,
    unit: str | None,
    dropout: float = 0.0,
) -> Tensor:
    """Causal attention with learned interval vectors over packed rows.

    Args:
        q: ``[T, H, d]``.
        k: ``[T, H, d]``, position vectors included.
        v: ``[T, H, d]``, position vectors included.
        interval_keys: ``RK``, ``[S + 1, H, d]``.
        interval_values: ``RV``, ``[S + 1, H, d]``.
        timestamps: ``[T]`` int64 seconds.
        offsets: ``[U + 1]`` int64, row borders.
        unit: of the intervals, see :func:`interval_buckets`.
        dropout: share of attention weights dropped.

    Returns:
        ``[T, H, d]``.
    """
    borders = offsets.cpu().numpy()
    lengths, heads, span = np.diff(borders), q.shape[1], interval_keys.shape[0] - 1
    parts, places = [], []
    for group in equal_length_groups(lengths):
        longest = int(lengths[group[0]])
        at_a_time = max(1, _NUMBERS_AT_A_TIME // (heads * longest * max(longest, span + 1)))
        for rows in np.split(group, range(at_a_time, len(group), at_a_time)):
            position, own = np.arange(longest)[None], lengths[rows, None]
            index = torch.from_numpy(borders[rows, None] + np.minimum(position, own - 1)).to(q.device)  # [B, L]
            buckets = interval_buckets(timestamps[index], span, unit)
            out = _rectangle_again(q, k, v, interval_keys, interval_values, index, buckets, dropout)
            real = torch.from_numpy(np.flatnonzero(position < own)).to(q.device)
            parts.append(out.flatten(0, 1).index_select(0, real))
            places.append(index.flatten().index_select(0, real))
    if not parts:
        return torch.zeros_like(q)
    return torch.cat(parts).index_select(0, torch.argsort(torch.cat(places)))


def _rectangle_again(*arguments: Any) -> Tensor:
    """:func:`_rectangle`, forgetting everything but its arguments until the backward pass."""
    if not torch.is_grad_enabled():
        return _rectangle(*arguments)
    return checkpoint(_rectangle, *arguments, use_reentrant=False)


def _rectangle(
    q: Tensor, k: Tensor, v: Tensor, rk: Tensor, rv: Tensor, index: Tensor, buckets: Tensor, dropout: float
) -> Tensor:
    """``[B, L, H, d]`` for the tokens ``index`` ``[B, L]``, whose intervals are ``buckets`` ``[B, L, L]``."""
    queries, keys, values = (x[index].transpose(1, 2) for x in (q, k, v))  # [B, H, L, d]
    queries = queries / math.sqrt(q.shape[-1])
    by_bucket = queries @ rk.permute(1, 2, 0)  # [B, H, L, S + 1]
    looked_up = buckets[:, None].expand(-1, q.shape[1], -1, -1)  # [B, H, L, L]
    scores = queries @ keys.transpose(-1, -2) + by_bucket.gather(-1, looked_up)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    if dropout > 0:
        weights = _drop(weights, dropout)
    summed = torch.zeros_like(by_bucket).scatter_add(-1, looked_up, weights)  # [B, H, L, S + 1]
    return (weights @ values + summed @ rv.transpose(0, 1)).transpose(1, 2)


def _drop(weights: Tensor, dropout: float) -> Tensor:
    if weights.device.type != "cpu":
        return torch.nn.functional.dropout(weights, dropout)
    return weights * (keep_mask(weights.shape, dropout).to(weights.dtype) / (1.0 - dropout))
