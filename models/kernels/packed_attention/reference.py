"""Causal attention within packed rows as the equations read, on a padded view. The truth the fast paths are held to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.batch import Jagged
from models.kernels.packed_attention.dropout import draw_seed, keep_weights


def packed_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, dropout: float = 0.0, longest: int | None = None
) -> Tensor:
    """Shapes as in :func:`models.kernels.packed_attention.packed_attention`.

    Plain autograd in the dtype of its inputs (float64 works), memory ``[U, H, L, L]``: for tests, not for training.
    """
    if q.shape[0] == 0:
        return torch.zeros_like(q)
    queries, keys, values = (Jagged(x, offsets).to_padded(longest).transpose(1, 2) for x in (q, k, v))  # [U, H, L, d]
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1])  # [U, H, L, L]
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    if dropout > 0:
        weights = weights * keep_weights(draw_seed(), offsets, scores.shape[1], scores.shape[2], dropout).to(q)
    return Jagged.from_padded((weights @ values).transpose(1, 2), offsets).values
