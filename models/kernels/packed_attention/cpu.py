"""Packed attention compiled for the CPU by numba: no padding, half the square, dropout without a mask in memory.

Rows and heads are independent and each is computed by one thread in a fixed order: bit-identical for any number of
threads. The backward pass computes the scores again; only ``q``, ``k``, ``v`` are kept.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.kernels.compiled import flat, pad_columns, round_up, row_borders, row_groups, rows_view, run_tasks
from models.kernels.packed_attention import cpu_loops
from models.kernels.packed_attention.dropout import draw_seed, threshold
from models.kernels.simd import LANES

GROUPS = 64  # runs of rows dealt to threads
_LANE_NUMBERS = np.arange(LANES, dtype=np.float32)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, dropout: float) -> Tensor:
        tokens, heads, d = q.shape
        rows = row_borders(offsets, tokens)
        groups = row_groups(rows, GROUPS)
        seed = draw_seed() if dropout > 0 else 0
        D, scale = round_up(d, LANES), 1 / math.sqrt(d)
        ctx.sizes = heads, D, scale, seed, threshold(dropout), 1 / (1 - dropout)
        q, k, v = (pad_columns(x, D) for x in (q, k, v))
        out = torch.empty(tokens, heads * D)
        inputs = (*_view(q), *_view(k), *_view(v), rows)
        result = flat(out)

        def run(group: int) -> None:
            cpu_loops.forward(*inputs, groups[group], groups[group + 1], *ctx.sizes, _LANE_NUMBERS, result)

        run_tasks(run, len(groups) - 1)
        ctx.save_for_backward(q, k, v)
        ctx.rows, ctx.groups, ctx.width = rows, groups, d
        return out.view(tokens, heads, D)[..., :d]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        tokens, heads, D = q.shape
        grads = [torch.empty(tokens, heads * D) for _ in range(3)]
        inputs = (*_view(q), *_view(k), *_view(v), *_view(pad_columns(grad, D)), ctx.rows)
        results = [flat(one) for one in grads]

        def run(group: int) -> None:
            borders = ctx.groups[group], ctx.groups[group + 1]
            cpu_loops.backward(*inputs, *borders, *ctx.sizes, _LANE_NUMBERS, *results)

        run_tasks(run, len(ctx.groups) - 1)
        grad_q, grad_k, grad_v = (one.view(tokens, heads, D)[..., : ctx.width] for one in grads)
        return grad_q, grad_k, grad_v, None, None


def _view(tensor: Tensor) -> tuple[Any, int]:
    """``[T, H, d]`` as (flat numpy view, distance between tokens); copies only when a token's numbers are apart."""
    tokens, heads, d = tensor.shape
    adjacent = tensor.stride(2) == 1 and tensor.stride(1) == d
    return rows_view(tensor.flatten(1) if adjacent else tensor.reshape(tokens, heads * d))


def packed_attention_numba(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, dropout: float = 0.0, longest: int | None = None
) -> Tensor:
    """float32 only; arguments as in :func:`models.kernels.packed_attention.packed_attention`, ``longest`` unread."""
    return _PackedAttention.apply(q, k, v, offsets, dropout)  # type: ignore[no-untyped-call]
