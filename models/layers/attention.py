"""Causal multi-head attention over packed rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.kernels.packed_attention import packed_attention


class SelfAttention(nn.Module):
    """Multi-head attention in which a token sees itself and the older tokens of its row.

    Parameters have the names and shapes of ``nn.MultiheadAttention``'s. Queries may come from another view of the
    tokens than keys and values: SASRec normalises the queries alone.

    Args:
        width: ``D``, features in and out, a multiple of ``heads``.
        heads: ``H``.
        dropout: share of attention weights dropped in training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, context: Tensor, offsets: Tensor) -> Tensor:
        """``query`` and ``context`` ``[T, D]`` over packed rows to ``[T, D]``."""
        # Three products: one of [T, 3D] would have its gradient put together from three, a copy of 3 T D.
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        inputs = (query, context, context)
        q, k, v = (
            functional.linear(x, weight, bias).view(len(x), self.heads, -1)  # [T, H, d]
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        )
        out = packed_attention(q, k, v, offsets, dropout=self.dropout if self.training else 0.0)
        return self.out_proj(out.flatten(1))
