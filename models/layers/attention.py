"""Causal multi-head attention over packed rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batch import Jagged
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

    def forward(self, query: Tensor, context: Tensor, offsets: Tensor, longest: int | None = None) -> Tensor:
        """``query`` and ``context`` ``[T, D]`` over packed rows, ``longest`` where it is known, to ``[T, D]``."""
        q, k, v = self._projected(query, context)
        out = packed_attention(q, k, v, offsets, dropout=self.dropout if self.training else 0.0, longest=longest)
        return self.out_proj(out.flatten(1))

    def newest(self, query: Tensor, context: Tensor, offsets: Tensor) -> Tensor:
        """What :meth:`forward` gives for each row's newest token alone, in evaluation: no query of the others is made.

        Args:
            query: ``[U, D]``, of the newest tokens.
            context: ``[T, D]`` over packed rows, none of them empty.
            offsets: ``[U + 1]`` int64.

        Returns:
            ``[U, D]``.
        """
        q, k, v = self._projected(query, context)  # [U, H, d], [T, H, d], [T, H, d]
        row = Jagged(k, offsets).row_of_token()  # [T]
        scores = (q.index_select(0, row) * k).sum(2) / math.sqrt(q.shape[2])  # [T, H]
        largest = scores.new_full(q.shape[:2], float("-inf"))
        largest = largest.scatter_reduce(0, row[:, None].expand_as(scores), scores, "amax")
        weights = (scores - largest.index_select(0, row)).exp()  # [T, H]
        total = torch.zeros_like(largest).index_add(0, row, weights)  # [U, H]
        summed = torch.zeros_like(q).index_add(0, row, weights[:, :, None] * v)  # [U, H, d]
        return self.out_proj((summed / total[:, :, None]).flatten(1))

    def _projected(self, query: Tensor, context: Tensor) -> list[Tensor]:
        """Queries, keys and values by head."""
        # Three products: one of [T, 3D] would have its gradient put together from three, a copy of 3 T D.
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        return [
            functional.linear(x, weight, bias).view(len(x), self.heads, -1)
            for x, weight, bias in zip((query, context, context), weights, biases, strict=True)
        ]
