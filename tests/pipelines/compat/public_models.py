"""The public SASRec and TiSASRec, said again for the tests from their description: padded, in float64.

Names and shapes of the parameters are the public ones. Rows are ``[B, L]`` with 0 on the left where a history is short.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Inner(nn.Module):
    """The point-wise layer, without its residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv1d(width, width, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x.mT).relu()).mT


class IntervalHeads(nn.Module):
    """TiSASRec's attention with the tensors [B, L, L, D] that its equations ask for."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.Q_w, self.K_w, self.V_w = (nn.Linear(width, width) for _ in range(3))

    def forward(self, query: Tensor, context: Tensor, pk: Tensor, pv: Tensor, rk: Tensor, rv: Tensor) -> Tensor:
        q, k, v = self.Q_w(query), self.K_w(context) + pk, self.V_w(context) + pv
        parts = []
        for of_head in torch.arange(q.shape[-1]).chunk(self.heads):
            keys = k[:, None, :, of_head] + rk[..., of_head]  # [B, i, j, d]
            scores = (q[:, :, None, of_head] * keys).sum(-1) / math.sqrt(len(of_head))
            scores = scores.masked_fill(future(q.shape[1]), float("-inf"))
            values = v[:, None, :, of_head] + rv[..., of_head]
            parts.append((scores.softmax(-1)[..., None] * values).sum(2))
        return torch.cat(parts, -1)


def future(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu(1)


class Public(nn.Module):
    """``year``: 2020 (also TiSASRec's form), 2024 or 2025; ``pre`` is 2025's norm_first; ``span`` makes it TiSASRec."""

    def __init__(
        self,
        items: int,
        maxlen: int,
        *,
        year: int = 2020,
        pre: bool = False,
        span: int | None = None,
        width: int = 8,
        heads: int = 2,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.year, self.pre, self.span = year, pre, span
        self.item_emb = nn.Embedding(items + 1, width, padding_idx=0)
        if span is None:
            later = year > 2020
            self.pos_emb = nn.Embedding(maxlen + later, width, padding_idx=0 if later else None)
        else:
            self.abs_pos_K_emb, self.abs_pos_V_emb = (nn.Embedding(maxlen, width) for _ in range(2))
            self.time_matrix_K_emb, self.time_matrix_V_emb = (nn.Embedding(span + 1, width) for _ in range(2))
        self.attention_layernorms, self.forward_layernorms = (
            nn.ModuleList(nn.LayerNorm(width, eps=1e-8) for _ in range(blocks)) for _ in range(2)
        )
        self.attention_layers: nn.ModuleList = nn.ModuleList(
            nn.MultiheadAttention(width, heads) if span is None else IntervalHeads(width, heads) for _ in range(blocks)
        )
        self.forward_layers = nn.ModuleList(Inner(width) for _ in range(blocks))
        self.last_layernorm = nn.LayerNorm(width, eps=1e-8)
        for name, parameter in self.named_parameters():  # everything moves, biases and norms too
            zero_row = name in ("item_emb.weight", "pos_emb.weight") and not (name[0] == "p" and year == 2020)
            nn.init.normal_(parameter, std=0.5)
            if zero_row:
                nn.init.zeros_(parameter[0].detach())
        self.double()

    def attend(self, block: int, query: Tensor, context: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
        layer = self.attention_layers[block]
        if self.span is not None:
            return layer(query, context, *tables)
        q, k = query.transpose(0, 1), context.transpose(0, 1)
        return layer(q, k, k, attn_mask=future(len(q)))[0].transpose(0, 1)

    def states(self, rows: Tensor, times: Tensor) -> Tensor:
        """``[B, L, D]`` of items and, for TiSASRec, t' ``[B, L]`` (0 at padding)."""
        length, real = rows.shape[1], (rows != 0)[..., None]
        x = self.item_emb(rows) * math.sqrt(self.item_emb.embedding_dim)
        tables: tuple[Tensor, ...] = ()
        if self.span is not None:
            between = (times[:, :, None] - times[:, None, :]).abs().clamp(max=self.span)
            tables = (self.abs_pos_K_emb.weight, self.abs_pos_V_emb.weight)
            tables += (self.time_matrix_K_emb(between), self.time_matrix_V_emb(between))
        elif self.year == 2020:
            x = x + self.pos_emb.weight
        else:
            x = x + self.pos_emb(torch.arange(1, length + 1) * (rows != 0))
        if self.year == 2020:
            x = x * real
        for block, (first, second) in enumerate(zip(self.attention_layernorms, self.forward_layernorms, strict=True)):
            inner = self.forward_layers[block]
            if self.year < 2025:  # LayerNorm on the queries
                query = first(x)
                x = second(query + self.attend(block, query, x, tables))
                x = x + inner(x)
            elif self.pre:
                normed = first(x)
                x = x + self.attend(block, normed, normed, tables)
                x = x + inner(second(x))
            else:
                x = first(x + self.attend(block, x, x, tables))
                x = second(x + inner(x))
            x = x * real if self.year == 2020 else x
        return self.last_layernorm(x)

    def logits(self, rows: Tensor, times: Tensor) -> Tensor:
        """Of all items for the newest place, ``[B, items]``."""
        return self.states(rows, times)[:, -1] @ self.item_emb.weight[1:].T
