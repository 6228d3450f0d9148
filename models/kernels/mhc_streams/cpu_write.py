"""Loops that numba compiles: writing a sub-layer's output into the streams, one token after another.

Arrays are flat. ``C`` is a multiple of 16; ``width`` of its columns are real and the rest is zero. A token's routes
stand at ``routes[t * K]``: H_pre ``[n]``, H_post ``[n]``, H_res ``[n, n]``; ``K`` is a multiple of 16. The streams
before a LayerNorm are computed again in the backward pass: five multiplications a number cost less than keeping them.
"""

# mypy: ignore-errors
# ruff: noqa: ANN
from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from models.kernels.compiled import compiled
from models.kernels.packed_attention.cpu_lanes import spread
from models.kernels.simd import LANES, add_sums, dot4, fma, load, load4, splat, store

_F = "float32[::1]"


@register_jitable
def lane_sums(vectors, count, sums):
    """``sums[k]`` of the lanes of vector ``k``; both arrays have room for a multiple of 4, zero behind ``count``."""
    for k in range(0, count, 4):
        sums[k : k + 4] = 0
        add_sums(sums, k, load4(vectors, k * LANES, LANES))


@register_jitable
def _mix(x, routes, f, t, n, C, K, target, place):
    """``H_res X + H_post^T F`` of token ``t`` to ``target[place ...]``."""
    own, start = t * K, t * n * C
    for c in range(0, C, LANES):
        output = load(f, t * C + c)
        if n == 4:
            four = load4(x, start + c, C)
            for i in range(4):
                m = own + 8 + 4 * i
                row = spread(routes, m), spread(routes, m + 1), spread(routes, m + 2), spread(routes, m + 3)
                store(target, place + i * C + c, dot4(row, four, spread(routes, own + 4 + i) * output))
        else:
            for i in range(n):
                total = spread(routes, own + n + i) * output
                for j in range(n):
                    total = fma(spread(routes, own + 2 * n + i * n + j), load(x, start + j * C + c), total)
                store(target, place + i * C + c, total)


@register_jitable
def _real_columns(C, width):
    real = np.zeros(C, np.float32)
    real[:width] = 1
    return real


@register_jitable
def _moments(values, place, n, C, width, real, eps, vectors, mean, inverse):
    """Mean and reciprocal standard deviation of each of ``n`` streams; padded columns hold zero and ``real`` is 0."""
    for i in range(n):
        total = splat(np.float32(0.0))
        for c in range(0, C, LANES):
            total = total + load(values, place + i * C + c)
        store(vectors, i * LANES, total)
    lane_sums(vectors, n, mean)
    for i in range(n):
        mean[i] = mean[i] / np.float32(width)
        total = splat(np.float32(0.0))
        for c in range(0, C, LANES):
            away = load(values, place + i * C + c) - spread(mean, i) * load(real, c)
            total = fma(away, away, total)
        store(vectors, i * LANES, total)
    lane_sums(vectors, n, inverse)
    for i in range(n):
        inverse[i] = np.float32(1.0) / np.sqrt(inverse[i] / np.float32(width) + np.float32(eps))


@compiled(f"void({_F},{_F},{_F},int64,int64,int64,int64,int64,int64,int64,{_F},{_F},float32,{_F})")
def forward(x, routes, f, n, C, K, width, first, last, norm, weight, bias, eps, out):
    """Tokens ``first .. last - 1``; with ``norm`` a LayerNorm over every stream of the result."""
    room = (n + 3) // 4 * 4
    vectors = np.zeros(room * LANES, np.float32)
    mean, inverse, real = np.zeros(room, np.float32), np.zeros(room, np.float32), _real_columns(C, width)
    for t in range(first, last):
        place = t * n * C
        _mix(x, routes, f, t, n, C, K, out, place)
        if norm:
            _moments(out, place, n, C, width, real, eps, vectors, mean, inverse)
            for i in range(n):
                for c in range(0, C, LANES):
                    at = place + i * C + c
                    scaled = (load(out, at) - spread(mean, i)) * spread(inverse, i)
                    store(out, at, fma(scaled, load(weight, c), load(bias, c)))


@register_jitable
def _before_norm(
    mixed, grad, place, n, C, width, real, eps, weight, vectors, mean, inverse, slope, tilt, sums, given
):  # fmt: skip
    """The gradient ``given`` of what the LayerNorm took; ``sums`` ``[2, C]`` gathers those of its weight and bias."""
    _moments(mixed, 0, n, C, width, real, eps, vectors, mean, inverse)
    for i in range(n):
        total, along = splat(np.float32(0.0)), splat(np.float32(0.0))
        for c in range(0, C, LANES):
            scaled = (load(mixed, i * C + c) - spread(mean, i)) * spread(inverse, i)
            outer = load(grad, place + i * C + c)
            store(sums, c, fma(outer, scaled, load(sums, c)))
            store(sums, C + c, load(sums, C + c) + outer)
            inner = outer * load(weight, c)
            total, along = total + inner, fma(inner, scaled, along)
            store(mixed, i * C + c, scaled)
            store(given, i * C + c, inner)
        store(vectors, i * LANES, total)
        store(vectors, (slope.size + i) * LANES, along)
    lane_sums(vectors, n, slope)
    lane_sums(vectors[slope.size * LANES :], n, tilt)
    for i in range(n):
        level, lean = splat(slope[i] / np.float32(width)), splat(tilt[i] / np.float32(width))
        for c in range(0, C, LANES):
            at = i * C + c
            store(given, at, (load(given, at) - level - load(mixed, at) * lean) * spread(inverse, i))


@register_jitable
def _unmix(given, place, routes, t, n, C, K, grad_x, grad_f):
    """Gradients of the streams and of the sub-layer's output."""
    own, start = t * K, t * n * C
    for c in range(0, C, LANES):
        if n == 4:
            four = load4(given, place + c, C)
            p = own + 4
            row = spread(routes, p), spread(routes, p + 1), spread(routes, p + 2), spread(routes, p + 3)
            store(grad_f, t * C + c, dot4(row, four, splat(np.float32(0.0))))
            for j in range(4):
                p = own + 8 + j
                row = spread(routes, p), spread(routes, p + 4), spread(routes, p + 8), spread(routes, p + 12)
                store(grad_x, start + j * C + c, dot4(row, four, splat(np.float32(0.0))))
        else:
            total = splat(np.float32(0.0))
            for i in range(n):
                total = fma(spread(routes, own + n + i), load(given, place + i * C + c), total)
            store(grad_f, t * C + c, total)
            for j in range(n):
                total = splat(np.float32(0.0))
                for i in range(n):
                    total = fma(spread(routes, own + 2 * n + i * n + j), load(given, place + i * C + c), total)
                store(grad_x, start + j * C + c, total)


@register_jitable
def _route_gradients(given, place, x, f, t, n, C, K, vectors, sums, grad_routes):
    """Gradients of H_post and H_res: each a dot product over the columns."""
    start = t * n * C
    for i in range(n):
        post = splat(np.float32(0.0))
        for c in range(0, C, LANES):
            post = fma(load(given, place + i * C + c), load(f, t * C + c), post)
        store(vectors, i * LANES, post)
        for j in range(n):
            mix = splat(np.float32(0.0))
            for c in range(0, C, LANES):
                mix = fma(load(given, place + i * C + c), load(x, start + j * C + c), mix)
            store(vectors, (n + i * n + j) * LANES, mix)
    count = n + n * n
    lane_sums(vectors, count, sums)
    grad_routes[t * K : t * K + n] = 0
    for k in range(count):
        grad_routes[t * K + n + k] = sums[k]


@compiled(f"void({_F},{_F},{_F},{_F},int64,int64,int64,int64,int64,int64,int64,{_F},float32,{_F},{_F},{_F},{_F},int64)")
def backward(
    x, routes, f, grad, n, C, K, width, first, last, norm, weight, eps, grad_x, grad_f, grad_routes, parts, group
):  # fmt: skip
    """Gradients of tokens ``first .. last - 1``; ``parts`` ``[G, 2, C]``: those of the LayerNorm's weight and bias."""
    room = (n + n * n + 3) // 4 * 4
    vectors, totals = np.zeros(2 * room * LANES, np.float32), np.zeros(room, np.float32)
    few = (n + 3) // 4 * 4
    mean, inverse = np.zeros(few, np.float32), np.zeros(few, np.float32)
    slope, tilt = np.zeros(few, np.float32), np.zeros(few, np.float32)
    apart = np.zeros(2 * few * LANES, np.float32)
    mixed, before, sums = np.empty(n * C, np.float32), np.empty(n * C, np.float32), np.zeros(2 * C, np.float32)
    given, real = before if norm else grad, _real_columns(C, width)
    for t in range(first, last):
        place = t * n * C
        if norm:
            _mix(x, routes, f, t, n, C, K, mixed, 0)
            _before_norm(
                mixed, grad, place, n, C, width, real, eps, weight, apart, mean, inverse, slope, tilt, sums, before
            )  # fmt: skip
            place = 0
        _unmix(given, place, routes, t, n, C, K, grad_x, grad_f)
        _route_gradients(given, place, x, f, t, n, C, K, vectors, totals, grad_routes)
    for c in range(2 * C):
        parts[group * 2 * C + c] = sums[c]
