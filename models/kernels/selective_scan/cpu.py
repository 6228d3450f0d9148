"""The selective scan compiled for the CPU by numba: one pass over the tokens with the state in registers.

The forward pass keeps the state at the start of every 32 tokens (``T / 32 x D x N`` numbers: 512 bytes a token at
D = 128, N = 32) and the sum before the gate ``[T, D]``; the backward pass recomputes the states of those 32 tokens into
the L1 cache and walks back through them. No ``[T, D, N]`` tensor exists. Rows are dealt to threads in runs that the
rows alone fix, and sums across runs are added in a fixed order: bit-identical results for any number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.kernels.compiled import flat, pad_columns, round_up, row_borders, row_groups, rows_view, run_tasks
from models.kernels.selective_scan import cpu_loops
from models.kernels.selective_scan.cpu_loops import CHUNK, LN_2, STATES
from models.kernels.simd import LANES

GROUPS = 64  # runs of rows; each has partial sums of its own for the gradients of parameters


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        dt_bias: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        skip: Tensor,
        z: Tensor,
        offsets: Tensor,
        keep: bool,
    ) -> Tensor:
        N, D = round_up(a.shape[1], STATES), round_up(x.shape[1], LANES)
        x, dt, z, dt_bias, skip = (pad_columns(v, D) for v in (x, dt, z, dt_bias, skip))
        b, c = pad_columns(b, N).contiguous(), pad_columns(c, N).contiguous()
        # [N, D], in powers of two: exp(delta a) = 2^(delta a2). Padding: decay 1, nothing driven, nothing read
        a2 = functional.pad(a.t() / LN_2, (0, D - a.shape[0], 0, N - a.shape[1])).contiguous()
        rows = row_borders(offsets, x.shape[0])
        chunks = np.concatenate(([0], np.cumsum(-(-np.diff(rows) // CHUNK))))
        groups = row_groups(rows, GROUPS)
        out = torch.empty(x.shape[0], D)
        summed = torch.empty_like(out) if keep else out
        kept = torch.empty(int(chunks[-1]) * D * N if keep else 0)
        inputs = (*rows_view(x), *rows_view(dt), *rows_view(z), *(flat(v) for v in (dt_bias, a2, b, c, skip)))
        results = (flat(out), flat(summed), flat(kept), keep)

        def run(group: int) -> None:
            cpu_loops.forward(*inputs, rows, chunks, groups[group], groups[group + 1], N, D, *results)

        run_tasks(run, len(groups) - 1)
        ctx.save_for_backward(x, dt, z, dt_bias, a2, b, c, skip, offsets, summed, kept)
        ctx.layout = chunks, groups, a.shape
        return out[:, : a.shape[0]]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, z, dt_bias, a2, b, c, skip, offsets, summed, kept = ctx.saved_tensors
        chunks, groups, (channels, states) = ctx.layout
        N, D = a2.shape
        rows = offsets.numpy()
        parts = len(groups) - 1
        grad_x, grad_dt, grad_z = (torch.empty(x.shape[0], D) for _ in range(3))
        grad_b, grad_c = torch.zeros_like(b), torch.zeros_like(c)
        part_a, part_skip, part_bias = torch.zeros(parts, N, D), torch.zeros(parts, D), torch.zeros(parts, D)
        inputs = (*rows_view(x), *rows_view(dt), *rows_view(z), *(flat(v) for v in (dt_bias, a2, b, c, skip)))
        of_tokens = (pad_columns(grad, D), summed, kept, grad_x, grad_dt, grad_z, grad_b, grad_c)
        views = tuple(flat(v) for v in (*of_tokens, part_a, part_skip, part_bias))

        def run(group: int) -> None:
            cpu_loops.backward(*inputs, rows, chunks, groups[group], groups[group + 1], N, D, *views, group)

        run_tasks(run, parts)
        narrow = slice(0, channels)
        return (
            grad_x[:, narrow],
            grad_dt[:, narrow],
            part_bias.sum(0)[narrow],
            part_a.sum(0)[:states, narrow].t(),
            grad_b[:, :states],
            grad_c[:, :states],
            part_skip.sum(0)[narrow],
            grad_z[:, narrow],
            None,
            None,
        )


def selective_scan_numba(
    x: Tensor,
    dt: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    z: Tensor,
    offsets: Tensor,
) -> Tensor:
    """float32 only; arguments as in :func:`models.kernels.selective_scan.selective_scan`."""
    tensors = (x, dt, dt_bias, a, b, c, skip, z)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return _SelectiveScan.apply(*tensors, offsets, keep)  # type: ignore[no-untyped-call]
