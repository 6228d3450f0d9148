"""The causal convolution compiled for the CPU by numba: convolution, SiLU and all gradients in one pass each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.kernels.causal_conv import cpu_loops
from models.kernels.compiled import flat, pad_columns, round_up, row_borders, row_groups, rows_view, run_tasks
from models.kernels.simd import LANES

GROUPS = 64  # runs of rows; each has partial sums of its own for the gradients of weight and bias


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
        K, D = weight.shape[1], round_up(x.shape[1], LANES)
        x, bias, taps = pad_columns(x, D), pad_columns(bias, D), pad_columns(weight.t(), D).contiguous()  # [K, D]
        rows = row_borders(offsets, x.shape[0])
        groups = row_groups(rows, GROUPS)
        out = torch.empty(x.shape[0], D)
        inputs, result = (*rows_view(x), flat(taps), flat(bias), rows), flat(out)

        def run(group: int) -> None:
            cpu_loops.forward(*inputs, groups[group], groups[group + 1], K, D, result)

        run_tasks(run, len(groups) - 1)
        ctx.save_for_backward(x, taps, bias, offsets)
        ctx.layout = groups, weight.shape[0]
        return out[:, : weight.shape[0]]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, bias, offsets = ctx.saved_tensors
        groups, channels = ctx.layout
        K, D = taps.shape
        parts = len(groups) - 1
        grad_x, part_weight, part_bias = torch.empty(x.shape[0], D), torch.zeros(parts, K, D), torch.zeros(parts, D)
        inputs = (*rows_view(x), flat(taps), flat(bias), offsets.numpy())
        views = tuple(flat(v) for v in (pad_columns(grad, D), grad_x, part_weight, part_bias))

        def run(group: int) -> None:
            cpu_loops.backward(*inputs, groups[group], groups[group + 1], K, D, *views, group)

        run_tasks(run, parts)
        return grad_x[:, :channels], part_weight.sum(0)[:, :channels].t(), part_bias.sum(0)[:channels], None


def causal_conv_numba(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
    """float32 only; arguments as in :func:`models.kernels.causal_conv.causal_conv`."""
    return _CausalConv.apply(x, weight, bias, offsets)  # type: ignore[no-untyped-call]
