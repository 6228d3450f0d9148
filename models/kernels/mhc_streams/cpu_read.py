"""Loops that numba compiles: routes of sixteen tokens at a time, and what a sub-layer reads with them.

Streams of a token lie side by side, ``W = n C`` numbers with C a multiple of 16; ``K`` is 2n + n^2 rounded up to 16.
Products, squares and reading run along the columns; sigmoids and Sinkhorn run with sixteen tokens as the lanes of a
vector, ``[K, 16]``, so that their sums never cross lanes. Arrays are flat. What goes in is read once in each direction:
a tile of sixteen tokens stays in the cache from the product to the last sum.
"""

# mypy: ignore-errors
# ruff: noqa: ANN
from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from models.kernels.compiled import compiled
from models.kernels.packed_attention.cpu_lanes import spread, transpose16
from models.kernels.packed_attention.cpu_products import load8, products, store8, zeros
from models.kernels.simd import LANES, choose_below, exp2, fma, load, sigmoid, splat, store

_LOG2_E = 1.4426950408889634
_F = "float32[::1]"


@register_jitable
def _across(vectors, turned):
    """The sums over the lanes of sixteen vectors, as one vector."""
    transpose16(vectors, 0, LANES, turned, 0)
    total = load(turned, 0)
    for r in range(1, LANES):
        total = total + load(turned, r * LANES)
    return total


@register_jitable
def _inverse_rms(x, start, W, width, eps, vectors, turned, out):
    for r in range(LANES):
        total = splat(np.float32(0.0))
        for c in range(0, W, LANES):
            value = load(x, start + r * W + c)
            total = fma(value, value, total)
        store(vectors, r * LANES, total)
    store(turned, 0, _across(vectors, turned))
    for r in range(LANES):
        out[r] = np.float32(1.0) / np.sqrt(turned[r] / np.float32(width) + np.float32(eps))


@register_jitable
def _turn_in(rows, start, K, lanes):
    """``rows[start ...]`` ``[16, K]`` to ``lanes`` ``[K, 16]``."""
    for k in range(0, K, LANES):
        transpose16(rows, start + k, K, lanes, k * LANES)


@register_jitable
def _turn_out(lanes, K, turned, rows, start):
    """``lanes`` ``[K, 16]`` to ``rows[start ...]`` ``[16, K]``."""
    for k in range(0, K, LANES):
        transpose16(lanes, k * LANES, LANES, turned, 0)
        for r in range(LANES):
            store(rows, start + r * K + k, load(turned, r * LANES))


@register_jitable
def _round(mix, place, n, step, stride, kept, at, keep):
    """Divides ``n`` sets of ``n`` numbers, ``stride`` apart in a set and ``step`` from set to set, by their sums."""
    for i in range(n):
        own = place + i * step
        total = load(mix, own)
        for j in range(1, n):
            total = total + load(mix, own + j * stride)
        if keep:
            store(kept, at + i * LANES, total)
        inverse = splat(np.float32(1.0)) / total
        for j in range(n):
            store(mix, own + j * stride, load(mix, own + j * stride) * inverse)


@register_jitable
def _routes(z, n, rounds, inverse_rms, scale, shift, kept, keep):
    """Products to H_pre, H_post and H_res in place; with ``keep`` the sums that Sinkhorn divided by."""
    base = 2 * n * LANES
    for k in range(2 * n + n * n):
        value = fma(load(z, k * LANES) * inverse_rms, spread(scale, k), spread(shift, k))
        if k < n:
            value = sigmoid(value)
        elif k < 2 * n:
            value = sigmoid(value)
            value = value + value
        store(z, k * LANES, value)
    highest = load(z, base)
    for k in range(2 * n + 1, 2 * n + n * n):
        value = load(z, k * LANES)
        highest = choose_below(highest, value, value, highest)
    for k in range(2 * n, 2 * n + n * n):
        store(z, k * LANES, exp2((load(z, k * LANES) - highest) * splat(_LOG2_E)))
    for step in range(rounds):
        at = step * 2 * n * LANES
        _round(z, base, n, n * LANES, LANES, kept, at, keep)
        _round(z, base, n, LANES, n * LANES, kept, at + n * LANES, keep)


@compiled(f"void({_F},{_F},{_F},{_F},int64,int64,int64,int64,float32,int64,int64,int64,{_F},{_F},{_F},{_F})")
def forward(x, table, scale, shift, n, C, K, width, eps, rounds, first, last, projected, inverse, routes, read):
    """Tiles ``first .. last - 1``; ``table`` is the projection ``[n C, K]``. The products are kept as well."""
    W = n * C
    lanes, vectors = np.empty(K * LANES, np.float32), np.empty(LANES * LANES, np.float32)
    turned, rms = np.empty(LANES * LANES, np.float32), np.empty(LANES, np.float32)
    kept = np.empty(1, np.float32)
    for tile in range(first, last):
        start = tile * LANES
        _inverse_rms(x, start * W, W, width, eps, vectors, turned, rms)
        store(inverse, start, load(rms, 0))
        for k in range(0, K, LANES):
            for r in range(0, LANES, 8):
                sums = products(x, (start + r) * W, W, 1, table, k, K, W, zeros())
                store8(projected, (start + r) * K + k, K, sums)
        _turn_in(projected, start * K, K, lanes)
        _routes(lanes, n, rounds, load(rms, 0), scale, shift, kept, False)
        _turn_out(lanes, K, turned, routes, start * K)
        for t in range(start, start + LANES):
            for c in range(0, C, LANES):
                total = spread(routes, t * K) * load(x, t * W + c)
                for j in range(1, n):
                    total = fma(spread(routes, t * K + j), load(x, t * W + j * C + c), total)
                store(read, t * C + c, total)


@register_jitable
def _unround(mix, grad, place, n, step, stride, kept, at):
    """:func:`_round` backwards: the gradient of what it took, and what it took."""
    for i in range(n):
        own, total = place + i * step, load(kept, at + i * LANES)
        along = load(mix, own) * load(grad, own)
        for j in range(1, n):
            along = fma(load(mix, own + j * stride), load(grad, own + j * stride), along)
        inverse = splat(np.float32(1.0)) / total
        for j in range(n):
            p = own + j * stride
            store(grad, p, (load(grad, p) - along) * inverse)
            store(mix, p, load(mix, p) * total)


@register_jitable
def _logit_gradients(z, grad, n, rounds, kept):
    """Gradients of the routes (``grad``, in place) to those of their logits; ``z`` holds the routes."""
    base, one = 2 * n * LANES, splat(np.float32(1.0))
    for step in range(rounds - 1, -1, -1):
        at = step * 2 * n * LANES
        _unround(z, grad, base, n, LANES, n * LANES, kept, at + n * LANES)
        _unround(z, grad, base, n, n * LANES, LANES, kept, at)
    for k in range(2 * n + n * n):
        value, p = load(z, k * LANES), k * LANES
        if k < n:
            value = value * (one - value)
        elif k < 2 * n:
            value = value * (one - value * splat(np.float32(0.5)))
        store(grad, p, load(grad, p) * value)


@register_jitable
def _read_gradients(x, start, grad_read, n, C, grad, vectors, turned):
    """Adds to ``grad`` of H_pre the dot products of the streams with what came back to the reading."""
    for j in range(n):
        for r in range(LANES):
            t, total = start + r, splat(np.float32(0.0))
            for c in range(0, C, LANES):
                total = fma(load(grad_read, t * C + c), load(x, (t * n + j) * C + c), total)
            store(vectors, r * LANES, total)
        store(grad, j * LANES, load(grad, j * LANES) + _across(vectors, turned))


@register_jitable
def _projected_gradients(lanes, grad, n, K, width, inverse, scale, sums, factor):
    """Logits' gradients to those of the products (in place), the sums of gates and biases, and ``factor`` of x."""
    along = splat(np.float32(0.0))
    for k in range(2 * n + n * n):
        p, g = load(lanes, k * LANES), load(grad, k * LANES)
        store(sums, k * LANES, fma(g, p * inverse, load(sums, k * LANES)))
        store(sums, (K + k) * LANES, load(sums, (K + k) * LANES) + g)
        g = g * spread(scale, k)
        along = fma(g, p, along)
        store(grad, k * LANES, g * inverse)
    store(factor, 0, splat(np.float32(-1.0 / width)) * along * inverse * inverse * inverse)


@register_jitable
def _stream_gradients(x, start, rows, weight, n, C, K, routes, grad_read, held, has_held, factor, part, grad_x):
    """Through products, norm and reading to the streams; ``held`` is what came back to the streams themselves."""
    W, used = n * C, 2 * n + n * n
    for r in range(0, LANES, 8):
        for j in range(n):
            for c in range(0, C, LANES):
                column = j * C + c
                store8(part, 0, LANES, products(rows, r * K, K, 1, weight, column, W, used, zeros()))
                for i in range(8):
                    t = start + r + i
                    at = t * W + column
                    total = fma(spread(factor, r + i), load(x, at), load(part, i * LANES))
                    total = fma(spread(routes, (r + i) * K + j), load(grad_read, t * C + c), total)
                    if has_held:
                        total = total + load(held, at)
                    store(grad_x, at, total)


@compiled(
    f"void({_F},{_F},{_F},{_F},{_F},{_F},int64,int64,int64,int64,int64,int64,int64,{_F},{_F},{_F},int64,{_F},{_F},"
    f"{_F},int64)"
)
def backward(
    x, projected, inverse, weight, scale, shift, n, C, K, width, rounds, first, last, grad_read, grad_routes, held,
    has_held, grad_x, parts, sums, group,
):  # fmt: skip
    """Tiles ``first .. last - 1``; ``weight`` is the projection ``[2n + n^2, n C]``.

    ``parts`` ``[G, K, n C]`` gets its gradient, ``sums`` ``[G, 2, K, 16]`` those of scales and biases, of this group.
    """
    W, used = n * C, 2 * n + n * n
    lanes, grad = np.empty(K * LANES, np.float32), np.empty(K * LANES, np.float32)
    values, rows = np.empty(K * LANES, np.float32), np.empty(K * LANES, np.float32)
    routes, kept = np.empty(K * LANES, np.float32), np.empty(max(rounds, 1) * 2 * n * LANES, np.float32)
    vectors, turned = np.empty(LANES * LANES, np.float32), np.empty(LANES * LANES, np.float32)
    factor, part = np.empty(LANES, np.float32), np.empty(8 * LANES, np.float32)
    own_sums, own_part = np.zeros(2 * K * LANES, np.float32), np.zeros(K * W, np.float32)
    for tile in range(first, last):
        start = tile * LANES
        rms = load(inverse, start)
        _turn_in(projected, start * K, K, lanes)
        values[:] = lanes
        _routes(values, n, rounds, rms, scale, shift, kept, True)
        _turn_out(values, K, turned, routes, 0)
        _turn_in(grad_routes, start * K, K, grad)
        _read_gradients(x, start, grad_read, n, C, grad, vectors, turned)
        _logit_gradients(values, grad, n, rounds, kept)
        _projected_gradients(lanes, grad, n, K, width, rms, scale, own_sums, factor)
        _turn_out(grad, K, turned, rows, 0)
        _stream_gradients(
            x, start, rows, weight, n, C, K, routes, grad_read, held, has_held, factor, part, grad_x
        )  # fmt: skip
        for k in range(0, used, 8):
            for c in range(0, W, LANES):
                s = load8(own_part, k * W + c, W)
                store8(own_part, k * W + c, W, products(rows, k, 1, K, x, start * W + c, W, LANES, s))
    for c in range(K * W):
        parts[group * K * W + c] = own_part[c]
    for c in range(2 * K * LANES):
        sums[group * 2 * K * LANES + c] = own_sums[c]
