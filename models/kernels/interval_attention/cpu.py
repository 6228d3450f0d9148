"""Interval attention compiled for the CPU by numba: no padding, half the square, nothing of the pairs kept.

Memory is what goes in and out, and for each thread the buckets of the row that it works on. Rows and heads are computed
by one thread each in a fixed order; the tables' gradients are added up over runs of rows that depend on the rows alone:
equal numbers for any number of threads.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.kernels.compiled import flat, pad_columns, round_up, row_borders, row_groups, rows_view, run_tasks
from models.kernels.interval_attention import cpu_loops
from models.kernels.interval_attention.intervals import whole_units
from models.kernels.packed_attention.dropout import draw_seed, threshold
from models.kernels.simd import LANES

GROUPS = 16  # runs of rows dealt to threads; each has gradients of the tables of its own
_LANE_NUMBERS = np.arange(LANES, dtype=np.float32)


class _IntervalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rk: Tensor,
        rv: Tensor,
        times: Tensor,
        offsets: Tensor,
        unit: int,
        dropout: float,
    ) -> Tensor:
        tokens, heads, d = q.shape
        rows = row_borders(offsets, tokens)
        groups = row_groups(rows, GROUPS)
        seed = draw_seed() if dropout > 0 else 0
        D = round_up(d, LANES)
        settings = heads, D, 1 / math.sqrt(d), seed, threshold(dropout), 1 / (1 - dropout), _LANE_NUMBERS
        q, k, v = (pad_columns(x, D) for x in (q, k, v))
        span, tables = rk.shape[0] - 1, [_by_head(x, D) for x in (rk, rv)]
        out = torch.empty(tokens, heads * D)
        clock = times.detach().contiguous()
        inputs = *_view(q), *_view(k), *_view(v), *map(flat, tables), tables[0].shape[1], span, clock.numpy(), unit
        result = flat(out)

        def run(group: int) -> None:
            cpu_loops.forward(*inputs, rows, groups[group], groups[group + 1], *settings, result)

        run_tasks(run, len(groups) - 1)
        ctx.save_for_backward(q, k, v, *tables, clock)
        ctx.rows, ctx.groups, ctx.settings, ctx.sizes = rows, groups, settings, (d, span, unit)
        return out.view(tokens, heads, D)[..., :d]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rk, rv, clock = ctx.saved_tensors
        (tokens, heads, D), (d, span, unit) = q.shape, ctx.sizes
        grads = [torch.empty(tokens, heads * D) for _ in range(3)]
        groups, padded = ctx.groups, rk.shape[1]
        parts = torch.zeros(max(len(groups) - 1, 1), 2, heads, padded, D)
        tables = flat(rk), flat(rv), padded, span
        inputs = *_view(q), *_view(k), *_view(v), *tables, clock.numpy(), unit, *_view(pad_columns(grad, D)), ctx.rows
        results = [flat(one) for one in (*grads, parts)]

        def run(group: int) -> None:
            cpu_loops.backward(*inputs, groups[group], groups[group + 1], *ctx.settings, *results, group)

        run_tasks(run, len(groups) - 1)
        of_tables = parts.sum(0)[:, :, : span + 1, :d].transpose(1, 2)  # [2, S + 1, H, d]
        of_tokens = (one.view(tokens, heads, D)[..., :d] for one in grads)
        return *of_tokens, of_tables[0], of_tables[1], None, None, None, None


def _by_head(table: Tensor, D: int) -> Tensor:
    """``[S + 1, H, d]`` as ``[H, rows, D]``, rows filled up to a multiple of 16."""
    missing = round_up(table.shape[0], LANES) - table.shape[0]
    turned = table.detach().transpose(0, 1)
    return functional.pad(turned, (0, D - table.shape[2], 0, missing)).contiguous()


def _view(tensor: Tensor) -> tuple[Any, int]:
    """``[T, H, d]`` as (flat numpy view, distance between tokens); copies only when a token's numbers are apart."""
    tokens, heads, d = tensor.shape
    adjacent = tensor.stride(2) == 1 and tensor.stride(1) == d
    return rows_view(tensor.flatten(1) if adjacent else tensor.reshape(tokens, heads * d))


def interval_attention_numba(
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
    """float32 only; arguments as in :func:`models.kernels.interval_attention.interval_attention`."""
    row_borders(offsets, q.shape[0])  # refuses borders that would be read past
    times, length = whole_units(timestamps, offsets, unit)
    tables = interval_keys, interval_values
    return _IntervalAttention.apply(q, k, v, *tables, times, offsets, length, dropout)  # type: ignore[no-untyped-call]
