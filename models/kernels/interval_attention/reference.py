"""Interval attention as its equations read, on a padded view with the published code's vector for every pair."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.batch import Jagged
from models.kernels.interval_attention.intervals import interval_buckets
from models.kernels.packed_attention.dropout import draw_seed, keep_weights


def interval_attention_reference(
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
    """Arguments as in :func:`models.kernels.interval_attention.interval_attention`.

    Plain autograd in the dtype of its inputs, memory ``[U, L, L, H, d]``: for tests, not for training. Dropout is the
    compiled path's.
    """
    if q.shape[0] == 0:
        return torch.zeros_like(q)
    queries, keys, values = (Jagged(x, offsets).to_padded() for x in (q, k, v))  # [U, L, H, d]
    buckets = torch.zeros(*queries.shape[:2], queries.shape[1], dtype=torch.int64, device=q.device)  # [U, L, L]
    for row, (first, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        if end > first:
            own = interval_buckets(timestamps[None, first:end], interval_keys.shape[0] - 1, unit)[0]
            buckets[row, : end - first, : end - first] = own
    pairs = keys[:, None] + interval_keys[buckets]  # [U, L, L, H, d]
    scores = torch.einsum("uihd,uijhd->uhij", queries, pairs) / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    if dropout > 0:
        weights = weights * keep_weights(draw_seed(), offsets, scores.shape[1], scores.shape[2], dropout).to(q)
    out = torch.einsum("uhij,uijhd->uihd", weights, values[:, None] + interval_values[buckets])
    return Jagged.from_padded(out, offsets).values
