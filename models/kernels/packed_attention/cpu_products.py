"""The matrix products of compiled attention: one micro-kernel of eight accumulators, sixteen lanes wide.

Its users hold a strip of scores ``[keys, 16]``, sixteen queries side by side in the lanes of a vector.
"""

# mypy: ignore-errors
# ruff: noqa: ANN
from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from models.kernels.packed_attention.cpu_lanes import spread, transpose16
from models.kernels.simd import LANES, fma, load, splat, store


@register_jitable
def products(a, place, step, stride, b, start, b_stride, count, sums):
    """Eight vectors: ``sums[r] + sum over t of a[place + r step + t stride] * b[start + t b_stride ...]``."""
    s0, s1, s2, s3, s4, s5, s6, s7 = sums
    for t in range(count):
        vector, at = load(b, start + t * b_stride), place + t * stride
        s0 = fma(spread(a, at), vector, s0)
        s1 = fma(spread(a, at + step), vector, s1)
        s2 = fma(spread(a, at + 2 * step), vector, s2)
        s3 = fma(spread(a, at + 3 * step), vector, s3)
        s4 = fma(spread(a, at + 4 * step), vector, s4)
        s5 = fma(spread(a, at + 5 * step), vector, s5)
        s6 = fma(spread(a, at + 6 * step), vector, s6)
        s7 = fma(spread(a, at + 7 * step), vector, s7)
    return s0, s1, s2, s3, s4, s5, s6, s7


@register_jitable
def zeros():
    """Eight vectors of zeros."""
    zero = splat(np.float32(0.0))
    return zero, zero, zero, zero, zero, zero, zero, zero


@register_jitable
def load8(array, place, step):
    """Eight vectors, ``step`` numbers apart."""
    return (
        load(array, place), load(array, place + step), load(array, place + 2 * step), load(array, place + 3 * step),
        load(array, place + 4 * step), load(array, place + 5 * step), load(array, place + 6 * step),
        load(array, place + 7 * step),
    )  # fmt: skip


@register_jitable
def store8(array, place, step, v):
    """Eight vectors back, ``step`` numbers apart."""
    store(array, place, v[0])
    store(array, place + step, v[1])
    store(array, place + 2 * step, v[2])
    store(array, place + 3 * step, v[3])
    store(array, place + 4 * step, v[4])
    store(array, place + 5 * step, v[5])
    store(array, place + 6 * step, v[6])
    store(array, place + 7 * step, v[7])


@register_jitable
def dot_strip(rows, first, turned, against, count, D, out):
    """``out`` ``[count, 16]``: dot products of 16 ``rows``, from ``first`` on, with ``count`` rows ``against``."""
    for c in range(0, D, LANES):
        transpose16(rows, first * D + c, D, turned, c * LANES)
    for j in range(0, count, 8):
        store8(out, j * LANES, LANES, products(against, j * D, D, 1, turned, 0, LANES, D, zeros()))
