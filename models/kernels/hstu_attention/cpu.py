"""HSTU's attention compiled for the CPU by numba: no padding, only what is seen, both bias tables inside.

A row is computed by one thread in a fixed order, and what rows add to the tables' gradients is summed over groups of
rows that the rows alone fix: bit-identical for any number of threads. The backward pass computes the scores again;
only ``q``, ``k`` and ``v`` are kept, and the working memory is linear in the longest row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.kernels.compiled import Floats, flat, round_up, row_borders, row_groups, run_tasks
from models.kernels.hstu_attention import cpu_loops
from models.kernels.hstu_attention.bias import bucket_borders
from models.kernels.simd import LANES

GROUPS = 64  # runs of rows dealt to threads; each has its own part of the tables' gradients


class _HSTUAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, position: Tensor, time: Tensor, rows: Any, bias: Any, factors: Any
    ) -> Tensor:
        tokens, heads, d = q.shape
        e = v.shape[2]
        ctx.groups = row_groups(rows, GROUPS)
        ctx.sizes = heads, d, round_up(d, LANES), e, round_up(e, LANES)
        ctx.rows, ctx.bias, ctx.factors = rows, bias, factors
        out = torch.empty(tokens, heads, e)
        inputs, result = (*_view(q), *_view(k), *_view(v), rows), flat(out)
        tables = _tables(bias, position, time)

        def run(group: int) -> None:
            borders = ctx.groups[group], ctx.groups[group + 1]
            cpu_loops.forward(*inputs, *borders, *ctx.sizes, *factors, *tables, result)

        run_tasks(run, len(ctx.groups) - 1)
        ctx.save_for_backward(q, k, v, position, time)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, position, time = ctx.saved_tensors
        parts = len(ctx.groups) - 1
        grads = [torch.empty(x.shape) for x in (q, k, v)]
        of_position, of_time = torch.zeros(parts, position.numel()), torch.zeros(parts, time.numel())
        inputs = (*_view(q), *_view(k), *_view(v), *_view(grad), ctx.rows)
        tables = _tables(ctx.bias, position, time)
        results = [flat(one) for one in (*grads, of_position, of_time)]

        def run(group: int) -> None:
            borders = ctx.groups[group], ctx.groups[group + 1]
            cpu_loops.backward(*inputs, *borders, *ctx.sizes, *ctx.factors, *tables, *results, group)

        run_tasks(run, parts)
        return *grads, of_position.sum(0), of_time.sum(0), None, None, None


def _tables(bias: Any, position: Tensor, time: Tensor) -> tuple[Any, ...]:
    seen, borders, times, next_times = bias
    return seen, flat(position), flat(time), borders, times, next_times


def _view(tensor: Tensor) -> tuple[Floats, int, int]:
    """``[T, H, d]`` as (flat numpy view, distances between tokens and heads); copies unless numbers are adjacent."""
    tensor = tensor.detach()
    tokens, heads, d = tensor.shape
    if tensor.stride(2) != 1 or tensor.stride(1) < d or tensor.stride(0) < d:
        tensor = tensor.contiguous()
    by_token, by_head = tensor.stride(0), tensor.stride(1)
    length = (tokens - 1) * by_token + (heads - 1) * by_head + d if tensor.numel() else 0
    return tensor.as_strided((length,), (1,)).numpy(), by_token, by_head


def _long_enough(position: Tensor, longest: int) -> Tensor:
    """The table with its ends repeated: compiled code, which checks no bounds, reads up to a strip beyond a row."""
    if not position.numel():
        return position
    reach, furthest = round_up(longest, LANES) + LANES, position.numel() // 2
    return position[torch.arange(-reach, reach + 1).clamp(-furthest, furthest) + furthest]


def hstu_attention_numba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor,
    time: Tensor,
    offsets: Tensor,
    seen: Tensor,
    times: Tensor,
    next_times: Tensor,
    *,
    scale: float = 1.0,
    max_length: int = 1,
) -> Tensor:
    """float32 only; tensors as in :func:`models.kernels.hstu_attention.reference.hstu_attention_reference`."""
    rows = row_borders(offsets, q.shape[0])
    if not q.numel() or not v.numel():
        return v.new_zeros(v.shape)
    position = _long_enough(position, int(np.diff(rows).max()))
    numbers = seen.contiguous().view(-1).numpy(), np.array(bucket_borders(max(time.numel(), 1)), np.int64)
    bias = (*numbers, times.contiguous().numpy(), next_times.contiguous().numpy())
    factors = np.float32(scale), np.float32(1 / max_length)
    return _HSTUAttention.apply(q, k, v, position, time, rows, bias, factors)  # type: ignore[no-untyped-call]
