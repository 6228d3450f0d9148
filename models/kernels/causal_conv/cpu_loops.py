"""The loops of the causal convolution that numba compiles. All arrays are flat; D is a multiple of 16."""

# mypy: ignore-errors
# ruff: noqa: ANN, C901
from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from models.kernels.compiled import compiled
from models.kernels.simd import LANES, fma, load, sigmoid, splat, store

_F = "float32[::1]"


@register_jitable
def _convolve(x, x_row, weight, bias, first_token, t, d, K, D):
    """Before the SiLU; taps that reach back over the row's start are left out."""
    total = load(bias, d)
    for back in range(min(K, t - first_token + 1)):
        total = fma(load(weight, (K - 1 - back) * D + d), load(x, (t - back) * x_row + d), total)
    return total


@compiled(f"void({_F},int64,{_F},{_F},int64[::1],int64,int64,int64,int64,{_F})")
def forward(x, x_row, weight, bias, offsets, first, last, K, D, out):
    """Rows ``first .. last - 1``; ``weight`` is ``[K, D]``."""
    for row in range(first, last):
        for t in range(offsets[row], offsets[row + 1]):
            for d in range(0, D, LANES):
                total = _convolve(x, x_row, weight, bias, offsets[row], t, d, K, D)
                store(out, t * D + d, total * sigmoid(total))


@compiled(f"void({_F},int64,{_F},{_F},int64[::1],int64,int64,int64,int64,{_F},{_F},{_F},{_F},int64)")
def backward(x, x_row, weight, bias, offsets, first, last, K, D, grad, grad_x, part_weight, part_bias, group):
    """Gradients of rows ``first .. last - 1``; those of weight and bias are added to this ``group``'s part."""
    longest = 0
    for row in range(first, last):
        longest = max(longest, offsets[row + 1] - offsets[row])
    inner = np.empty(longest * LANES, np.float32)  # gradient before the SiLU, of one row and 16 channels
    for row in range(first, last):
        begin, end = offsets[row], offsets[row + 1]
        for d in range(0, D, LANES):
            sum_bias = load(part_bias, group * D + d)
            for t in range(begin, end):
                total = _convolve(x, x_row, weight, bias, begin, t, d, K, D)
                s = sigmoid(total)
                g = load(grad, t * D + d) * s * fma(total, splat(1.0) - s, splat(1.0))
                store(inner, (t - begin) * LANES, g)
                sum_bias = sum_bias + g
            store(part_bias, group * D + d, sum_bias)
            for back in range(min(K, end - begin)):
                place = (group * K + K - 1 - back) * D + d
                part = load(part_weight, place)
                for t in range(begin + back, end):
                    part = fma(load(inner, (t - begin) * LANES), load(x, (t - back) * x_row + d), part)
                store(part_weight, place, part)
            for t in range(begin, end):
                total = splat(0.0)
                for ahead in range(min(K, end - t)):
                    tap = load(weight, (K - 1 - ahead) * D + d)
                    total = fma(tap, load(inner, (t - begin + ahead) * LANES), total)
                store(grad_x, t * D + d, total)
