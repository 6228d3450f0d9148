"""The loops of packed attention that numba compiles: (row, head, 16 queries), and all keys up to the newest of them.

Sixteen queries are the lanes of a vector, so a strip of scores ``[keys, 16]`` is made, masked, exponentiated, summed
and dropped without a sum across lanes; it stays in the L1 cache (13 KB at 200 keys). Keys beyond the strip's last
query are never touched: half the work of a square. Every product is one micro-kernel: eight accumulators, each a
broadcast number times a vector. A head's keys and values are copied once per row to ``[L, D]``, with zero tokens up to
a multiple of 16. D is one too (the caller pads).
"""

# mypy: ignore-errors
# ruff: noqa: ANN
from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from models.kernels.compiled import compiled
from models.kernels.packed_attention.cpu_lanes import keep_lanes, query_keys, spread
from models.kernels.packed_attention.cpu_products import dot_strip, load8, products, store8, zeros
from models.kernels.simd import LANES, choose_below, exp2, fma, load, splat, store

_LOG2_E = 1.4426950408889634
_NEVER = -1e30  # a masked score: its exponential is exactly 0
_F, _I = "float32[::1]", "int64[::1]"


@register_jitable
def pack(source, row, start, column, length, padded, D, scale, target):
    """``scale`` times one head of one row, ``[padded, D]``, zero where there is no token."""
    for t in range(length):
        for c in range(0, D, LANES):
            store(target, t * D + c, load(source, (start + t) * row + column + c) * splat(scale))
    target[length * D : padded * D] = 0


@register_jitable
def unpack(source, length, D, target, row, start, column):
    """``source`` ``[L, D]`` back to one head of one row."""
    for t in range(length):
        for c in range(0, D, LANES):
            store(target, (start + t) * row + column + c, load(source, t * D + c))


@register_jitable
def exponentials(strip, first, lanes, count):
    """Scores to exponentials, in place; the reciprocal of their sum, per query."""
    number = load(lanes, 0)
    for j in range(first, count):  # the 16 newest keys: each query sees those up to itself
        place = j * LANES
        store(strip, place, choose_below(number, splat(np.float32(j - first)), splat(_NEVER), load(strip, place)))
    m0 = m1 = m2 = m3 = splat(_NEVER)
    for place in range(0, count * LANES, 4 * LANES):
        s0, s1 = load(strip, place), load(strip, place + LANES)
        s2, s3 = load(strip, place + 2 * LANES), load(strip, place + 3 * LANES)
        m0, m1 = choose_below(m0, s0, s0, m0), choose_below(m1, s1, s1, m1)
        m2, m3 = choose_below(m2, s2, s2, m2), choose_below(m3, s3, s3, m3)
    m0, m2 = choose_below(m0, m1, m1, m0), choose_below(m2, m3, m3, m2)
    shift = choose_below(m0, m2, m2, m0) * splat(-_LOG2_E)
    total = splat(np.float32(0.0))
    for place in range(0, count * LANES, LANES):
        e = exp2(fma(load(strip, place), splat(_LOG2_E), shift))
        store(strip, place, e)
        total = total + e
    return splat(np.float32(1.0)) / total


@compiled(f"void({_F},int64,{_F},int64,{_F},int64,{_I},int64,int64,int64,int64,float32,int64,int64,float32,{_F},{_F})")
def forward(
    q, q_row, k, k_row, v, v_row, offsets, first, last, heads, D, scale, seed, threshold, kept, lanes, out
):  # fmt: skip
    """Rows ``first .. last - 1`` of ``out`` ``[T, heads * D]``; ``kept`` is 1 / (1 - dropout), 1 without dropout."""
    longest = 0
    for row in range(first, last):
        longest = max(longest, offsets[row + 1] - offsets[row])
    longest = (longest + LANES - 1) // LANES * LANES
    queries, keys = np.empty(longest * D, np.float32), np.empty(longest * D, np.float32)
    values, results = np.empty(longest * D, np.float32), np.empty(longest * D, np.float32)
    strip, turned = np.empty(longest * LANES, np.float32), np.empty(D * LANES, np.float32)
    inverse = np.empty(LANES, np.float32)
    for row in range(first, last):
        start, length = offsets[row], offsets[row + 1] - offsets[row]
        padded = (length + LANES - 1) // LANES * LANES
        for head in range(heads):
            column = head * D
            pack(q, q_row, start, column, length, padded, D, scale, queries)
            pack(k, k_row, start, column, length, padded, D, np.float32(1.0), keys)
            pack(v, v_row, start, column, length, padded, D, np.float32(1.0), values)
            for i in range(0, length, LANES):
                count = i + LANES
                dot_strip(queries, i, turned, keys, count, D, strip)
                store(inverse, 0, exponentials(strip, i, lanes, count) * splat(kept))
                if threshold > 0:
                    own = query_keys(start + i, heads, head, seed)
                    for j in range(count):
                        place = j * LANES
                        keep = keep_lanes(own, j, threshold, np.float32(1.0))
                        store(strip, place, load(strip, place) * keep)
                for r in range(0, LANES, 8):
                    for c in range(0, D, LANES):
                        s = products(strip, r, 1, LANES, values, c, D, count, zeros())
                        f = (
                            s[0] * spread(inverse, r), s[1] * spread(inverse, r + 1), s[2] * spread(inverse, r + 2),
                            s[3] * spread(inverse, r + 3), s[4] * spread(inverse, r + 4), s[5] * spread(inverse, r + 5),
                            s[6] * spread(inverse, r + 6), s[7] * spread(inverse, r + 7),
                        )  # fmt: skip
                        store8(results, (i + r) * D + c, D, f)
            unpack(results, length, D, out, heads * D, start, column)


@register_jitable
def score_gradients(strip, given, survived, inverse, count, own, threshold, kept):
    """Exponentials and gradients of the weights to gradients of the scores (``given``) and dropped weights."""
    delta = splat(np.float32(0.0))
    for j in range(count):
        place = j * LANES
        weight, gradient, dropped = load(strip, place) * inverse, load(given, place), load(strip, place) * inverse
        if threshold > 0:
            keep = keep_lanes(own, j, threshold, kept)
            gradient, dropped = gradient * keep, weight * keep
        delta = fma(weight, gradient, delta)
        store(strip, place, weight)
        store(given, place, gradient)
        store(survived, place, dropped)
    for place in range(0, count * LANES, LANES):
        store(given, place, load(strip, place) * (load(given, place) - delta))


@compiled(
    f"void({_F},int64,{_F},int64,{_F},int64,{_F},int64,{_I},int64,int64,int64,int64,float32,int64,int64,float32,"
    f"{_F},{_F},{_F},{_F})"
)
def backward(
    q, q_row, k, k_row, v, v_row, grad, grad_row, offsets, first, last, heads, D, scale, seed, threshold, kept,
    lanes, grad_q, grad_k, grad_v,
):  # fmt: skip
    """Gradients ``[T, heads * D]`` of rows ``first .. last - 1``; scores are computed again, nothing was kept."""
    longest = 0
    for row in range(first, last):
        longest = max(longest, offsets[row + 1] - offsets[row])
    longest = (longest + LANES - 1) // LANES * LANES
    queries, keys = np.empty(longest * D, np.float32), np.empty(longest * D, np.float32)
    values, outer = np.empty(longest * D, np.float32), np.empty(longest * D, np.float32)
    of_queries, of_keys = np.empty(longest * D, np.float32), np.empty(longest * D, np.float32)
    of_values, turned = np.empty(longest * D, np.float32), np.empty(D * LANES, np.float32)
    strip, given = np.empty(longest * LANES, np.float32), np.empty(longest * LANES, np.float32)
    survived = np.empty(longest * LANES, np.float32)
    for row in range(first, last):
        start, length = offsets[row], offsets[row + 1] - offsets[row]
        padded = (length + LANES - 1) // LANES * LANES
        for head in range(heads):
            column = head * D
            pack(q, q_row, start, column, length, padded, D, scale, queries)
            pack(k, k_row, start, column, length, padded, D, np.float32(1.0), keys)
            pack(v, v_row, start, column, length, padded, D, np.float32(1.0), values)
            pack(grad, grad_row, start, column, length, padded, D, np.float32(1.0), outer)
            of_keys[: padded * D] = 0
            of_values[: padded * D] = 0
            for i in range(0, length, LANES):
                count = i + LANES
                dot_strip(queries, i, turned, keys, count, D, strip)
                inverse = exponentials(strip, i, lanes, count)
                dot_strip(outer, i, turned, values, count, D, given)
                own = query_keys(start + i, heads, head, seed)
                score_gradients(strip, given, survived, inverse, count, own, threshold, kept)
                for c in range(0, D, LANES):
                    for r in range(0, LANES, 8):
                        s = products(given, r, 1, LANES, keys, c, D, count, zeros())
                        store8(of_queries, (i + r) * D + c, D, s)
                    for j in range(0, count, 8):
                        at = j * D + c
                        s = load8(of_keys, at, D)
                        store8(of_keys, at, D, products(given, j * LANES, LANES, 1, queries, i * D + c, D, LANES, s))
                        s = load8(of_values, at, D)
                        s = products(survived, j * LANES, LANES, 1, outer, i * D + c, D, LANES, s)
                        store8(of_values, at, D, s)
            for place in range(0, padded * D, LANES):
                store(of_queries, place, load(of_queries, place) * splat(scale))
            unpack(of_queries, length, D, grad_q, heads * D, start, column)
            unpack(of_keys, length, D, grad_k, heads * D, start, column)
            unpack(of_values, length, D, grad_v, heads * D, start, column)
