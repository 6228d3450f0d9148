"""The diagonal scan of S5 compiled for the CPU by numba: discretisation and recurrence in one pass, 16 states at once.

Decay and input factor are computed from the interval on the fly, both ways; the backward pass reads the states that the
forward pass returned, so nothing else is kept. Sums across rows are added in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.kernels.compiled import flat, pad_columns, round_up, row_borders, row_groups, rows_view, run_tasks
from models.kernels.diagonal_scan import cpu_loops
from models.kernels.simd import LANES

GROUPS = 64  # runs of rows; each has partial sums of its own for the gradients of parameters


def _table(lambda_re: Tensor, lambda_im: Tensor, step_scale: Tensor, P: int) -> Tensor:
    re, im, scale = (pad_columns(v.detach().double(), P) for v in (lambda_re, lambda_im, step_scale))
    square = re * re + im * im
    still = square < 1e-60  # 1 / Lambda would leave float32's range, while step Lambda is nothing
    square = torch.where(still, torch.ones_like(square), square)
    moving = (~still).double()
    # the order of cpu_loops' rows: Lambda, step_scale, 1 / Lambda, whether Lambda is 0
    return torch.stack((re, im, scale, moving * re / square, -moving * im / square, still.double())).float()


def _pad_halves(values: Tensor, P: int) -> Tensor:
    """``[T, 2p]`` to ``[T, 2P]``, both halves filled up with zeros."""
    if values.shape[1] == 2 * P:
        return values
    return pad_columns(values.reshape(values.shape[0], 2, -1), P).flatten(1)


def _cut_halves(values: Tensor, p: int) -> Tensor:
    return values if values.shape[1] == 2 * p else values.view(values.shape[0], 2, -1)[:, :, :p].flatten(1)


class _DiagonalScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        bu: Tensor,
        interval: Tensor,
        lambda_re: Tensor,
        lambda_im: Tensor,
        step_scale: Tensor,
        offsets: Tensor,
    ) -> Tensor:
        states = lambda_re.shape[0]
        P = round_up(states, LANES)
        table, bu, interval = _table(lambda_re, lambda_im, step_scale, P), _pad_halves(bu, P), interval.contiguous()
        rows = row_borders(offsets, bu.shape[0])
        groups = row_groups(rows, GROUPS)
        out = torch.empty(bu.shape[0], 2 * P)
        inputs, result = (*rows_view(bu), flat(interval), flat(table), rows), flat(out)

        def run(group: int) -> None:
            cpu_loops.forward(*inputs, groups[group], groups[group + 1], P, P, result)

        run_tasks(run, len(groups) - 1)
        cut = _cut_halves(out, states)
        ctx.save_for_backward(bu, interval, table, offsets, cut)
        ctx.layout = groups, states
        return cut

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bu, interval, table, offsets, out = ctx.saved_tensors
        groups, states = ctx.layout
        P = table.shape[1]
        parts = torch.zeros(len(groups) - 1, 3, P)
        grad_bu = torch.empty(bu.shape[0], 2 * P)
        inputs = (*rows_view(bu), flat(interval), flat(table), offsets.numpy())
        views = tuple(flat(v) for v in (_pad_halves(grad, P), _pad_halves(out, P), grad_bu, parts))

        def run(group: int) -> None:
            cpu_loops.backward(*inputs, groups[group], groups[group + 1], P, P, *views, group)

        run_tasks(run, len(groups) - 1)
        sums = parts.sum(0)[:, :states]
        return _cut_halves(grad_bu, states), None, sums[0], sums[1], sums[2], None


def diagonal_scan_numba(
    bu: Tensor,
    interval: Tensor,
    lambda_re: Tensor,
    lambda_im: Tensor,
    step_scale: Tensor,
    offsets: Tensor,
) -> Tensor:
    """float32 only; arguments as in :func:`models.kernels.diagonal_scan.diagonal_scan`."""
    inputs = (bu, interval, lambda_re, lambda_im, step_scale, offsets)
    return _DiagonalScan.apply(*inputs)  # type: ignore[no-untyped-call]
