"""Interval attention with PyTorch alone: rectangles of rows of nearly equal length, a few rows at a time.

``q . RK^T`` is computed once for all ``S + 1`` buckets and looked up by ``r_ij``; weights are summed by bucket before
they meet ``RV``. The largest tensors are ``[rows, H, L, L]`` of a few rows, computed again in the backward pass.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.kernels.interval_attention.intervals import interval_buckets
from models.kernels.packed_attention.vectorised import equal_length_groups
from models.layers.dropout import keep_mask

NUMBERS_AT_A_TIME = 1 << 20  # of one [rows, H, L, max(L, S + 1)] tensor: 4 MB, so that a chunk stays in the cache


def interval_attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    interval_keys: Tensor,
    interval_values: Tensor,
    timestamps: Tensor,
    offsets: Tensor,
    unit: str | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Any float type and device; dropout draws from the generator of the device.

    Arguments as in :func:`models.kernels.interval_attention.interval_attention`.
    """
    borders = offsets.cpu().numpy()
    lengths, heads, span = np.diff(borders), q.shape[1], interval_keys.shape[0] - 1
    parts, places = [], []
    for group in equal_length_groups(lengths):
        longest = int(lengths[group[0]])
        at_a_time = max(1, NUMBERS_AT_A_TIME // (heads * longest * max(longest, span + 1)))
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
