"""The loops of interval attention that numba compiles: packed attention's strips, and strips of buckets beside them.

A strip is 16 queries wide, ``[keys, 16]``, as in ``packed_attention.cpu_loops``. What a query gives with each interval
vector is a strip as well, ``[S + 1, 16]``, one product a strip; pairs look it up by their bucket, and weights are added
up by bucket before they meet the values' table. A row's buckets, ``[L / 16, L, 16]``, are made once for all heads; they
are the only L x L numbers, held while the row is worked on. The tables' rows are padded to a multiple of 16.
"""

# mypy: ignore-errors
# ruff: noqa: ANN
from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from models.kernels.compiled import compiled
from models.kernels.packed_attention.cpu_lanes import keep_lanes, query_keys, spread
from models.kernels.packed_attention.cpu_loops import exponentials, pack, score_gradients, unpack
from models.kernels.packed_attention.cpu_products import dot_strip, load8, products, store8, zeros
from models.kernels.simd import LANES, load, splat, store

_F, _I = "float32[::1]", "int64[::1]"


@register_jitable
def _longest(offsets, first, last):
    longest = 0
    for row in range(first, last):
        longest = max(longest, offsets[row + 1] - offsets[row])
    return (longest + LANES - 1) // LANES * LANES


@register_jitable
def _find_buckets(times, start, length, padded, unit, span, buckets):
    """``min(|t_i - t_j| // unit, span)`` times 16, plus the query's lane: places in a strip of buckets."""
    inverse, limit = 1.0 / unit, span * unit
    for i in range(0, padded, LANES):
        count = i + LANES
        for j in range(count):
            key = times[start + min(j, length - 1)]
            place = (i * padded) + j * LANES
            for lane in range(LANES):
                apart = abs(times[start + min(i + lane, length - 1)] - key)
                bucket = span
                if apart < limit:
                    bucket = np.int64(apart * inverse)  # off by one at most: the product is rounded
                    bucket -= bucket * unit > apart
                    bucket += (bucket + 1) * unit <= apart
                buckets[place + lane] = np.uint32(bucket * LANES + lane)


@register_jitable
def _highest(buckets, first, count):
    """How many rows of a strip of buckets are looked at, rounded up to 16."""
    highest = np.uint32(0)
    for place in range(first, first + count * LANES):
        highest = max(highest, buckets[place])
    return (np.int64(highest) // LANES + LANES) // LANES * LANES


@register_jitable
def _by_bucket(table, start, turned, used, D, out):
    """``out`` ``[used, 16]``: dot products of the turned queries with the interval vectors."""
    for s in range(0, used, 8):
        store8(out, s * LANES, LANES, products(table, start + s * D, D, 1, turned, 0, LANES, D, zeros()))


@register_jitable
def _look_up(strip, count, buckets, first, by_bucket):
    for place in range(count * LANES):
        strip[np.uint64(place)] += by_bucket[buckets[np.uint64(first + place)]]


@register_jitable
def _gather(strip, count, buckets, first, used, by_bucket):
    """Adds a strip up by bucket."""
    by_bucket[: used * LANES] = 0
    for place in range(count * LANES):
        by_bucket[buckets[np.uint64(first + place)]] += strip[np.uint64(place)]


@compiled(
    f"void({_F},int64,{_F},int64,{_F},int64,{_F},{_F},int64,int64,{_I},int64,{_I},int64,int64,int64,int64,float32,"
    f"int64,int64,float32,{_F},{_F})"
)
def forward(
    q, q_row, k, k_row, v, v_row, rk, rv, rows, span, times, unit, offsets, first, last, heads, D, scale, seed,
    threshold, kept, lanes, out,
):  # fmt: skip
    """Rows ``first .. last - 1`` of ``out`` ``[T, heads * D]``; ``rk`` and ``rv`` are ``[heads, rows, D]``."""
    longest = _longest(offsets, first, last)
    queries, keys = np.empty(longest * D, np.float32), np.empty(longest * D, np.float32)
    values, results = np.empty(longest * D, np.float32), np.empty(longest * D, np.float32)
    strip, turned = np.empty(longest * LANES, np.float32), np.empty(D * LANES, np.float32)
    inverse, by_bucket = np.empty(LANES, np.float32), np.empty(rows * LANES, np.float32)
    buckets = np.empty(longest * longest, np.uint32)
    for row in range(first, last):
        start, length = offsets[row], offsets[row + 1] - offsets[row]
        padded = (length + LANES - 1) // LANES * LANES
        _find_buckets(times, start, length, padded, unit, span, buckets)
        for head in range(heads):
            column, table = head * D, head * rows * D
            pack(q, q_row, start, column, length, padded, D, scale, queries)
            pack(k, k_row, start, column, length, padded, D, np.float32(1.0), keys)
            pack(v, v_row, start, column, length, padded, D, np.float32(1.0), values)
            for i in range(0, length, LANES):
                count, pairs = i + LANES, i * padded
                used = _highest(buckets, pairs, count)
                dot_strip(queries, i, turned, keys, count, D, strip)
                _by_bucket(rk, table, turned, used, D, by_bucket)
                _look_up(strip, count, buckets, pairs, by_bucket)
                store(inverse, 0, exponentials(strip, i, lanes, count) * splat(kept))
                if threshold > 0:
                    own = query_keys(start + i, heads, head, seed)
                    for j in range(count):
                        place = j * LANES
                        store(strip, place, load(strip, place) * keep_lanes(own, j, threshold, np.float32(1.0)))
                _gather(strip, count, buckets, pairs, used, by_bucket)
                for r in range(0, LANES, 8):
                    for c in range(0, D, LANES):
                        s = products(strip, r, 1, LANES, values, c, D, count, zeros())
                        s = products(by_bucket, r, 1, LANES, rv, table + c, D, used, s)
                        f = (
                            s[0] * spread(inverse, r), s[1] * spread(inverse, r + 1), s[2] * spread(inverse, r + 2),
                            s[3] * spread(inverse, r + 3), s[4] * spread(inverse, r + 4), s[5] * spread(inverse, r + 5),
                            s[6] * spread(inverse, r + 6), s[7] * spread(inverse, r + 7),
                        )  # fmt: skip
                        store8(results, (i + r) * D + c, D, f)
            unpack(results, length, D, out, heads * D, start, column)


@register_jitable
def _add_outer(weights, count, rows, first, D, target, start):
    """``target`` ``[count, D]`` += ``weights`` ``[count, 16]`` times sixteen ``rows``."""
    for j in range(0, count, 8):
        for c in range(0, D, LANES):
            at = start + j * D + c
            sums = load8(target, at, D)
            store8(target, at, D, products(weights, j * LANES, LANES, 1, rows, first * D + c, D, LANES, sums))


@compiled(
    f"void({_F},int64,{_F},int64,{_F},int64,{_F},{_F},int64,int64,{_I},int64,{_F},int64,{_I},int64,int64,int64,int64,"
    f"float32,int64,int64,float32,{_F},{_F},{_F},{_F},{_F},int64)"
)
def backward(
    q, q_row, k, k_row, v, v_row, rk, rv, rows, span, times, unit, grad, grad_row, offsets, first, last, heads, D,
    scale, seed, threshold, kept, lanes, grad_q, grad_k, grad_v, parts, group,
):  # fmt: skip
    """Gradients of rows ``first .. last - 1``; scores are computed again, nothing was kept.

    ``parts`` ``[G, 2, heads, rows, D]`` (zero before) gathers those of both tables, of this group.
    """
    longest, size = _longest(offsets, first, last), heads * rows * D
    queries, keys = np.empty(longest * D, np.float32), np.empty(longest * D, np.float32)
    values, outer = np.empty(longest * D, np.float32), np.empty(longest * D, np.float32)
    of_queries, of_keys = np.empty(longest * D, np.float32), np.empty(longest * D, np.float32)
    of_values, turned = np.empty(longest * D, np.float32), np.empty(D * LANES, np.float32)
    strip, given = np.empty(longest * LANES, np.float32), np.empty(longest * LANES, np.float32)
    survived, by_bucket = np.empty(longest * LANES, np.float32), np.empty(rows * LANES, np.float32)
    buckets = np.empty(longest * longest, np.uint32)
    for row in range(first, last):
        start, length = offsets[row], offsets[row + 1] - offsets[row]
        padded = (length + LANES - 1) // LANES * LANES
        _find_buckets(times, start, length, padded, unit, span, buckets)
        for head in range(heads):
            column, table = head * D, head * rows * D
            pack(q, q_row, start, column, length, padded, D, scale, queries)
            pack(k, k_row, start, column, length, padded, D, np.float32(1.0), keys)
            pack(v, v_row, start, column, length, padded, D, np.float32(1.0), values)
            pack(grad, grad_row, start, column, length, padded, D, np.float32(1.0), outer)
            of_keys[: padded * D] = 0
            of_values[: padded * D] = 0
            for i in range(0, length, LANES):
                count, pairs = i + LANES, i * padded
                used = _highest(buckets, pairs, count)
                dot_strip(queries, i, turned, keys, count, D, strip)
                _by_bucket(rk, table, turned, used, D, by_bucket)
                _look_up(strip, count, buckets, pairs, by_bucket)
                inverse = exponentials(strip, i, lanes, count)
                dot_strip(outer, i, turned, values, count, D, given)
                _by_bucket(rv, table, turned, used, D, by_bucket)
                _look_up(given, count, buckets, pairs, by_bucket)
                own = query_keys(start + i, heads, head, seed)
                score_gradients(strip, given, survived, inverse, count, own, threshold, kept)
                _add_outer(given, count, queries, i, D, of_keys, 0)
                _add_outer(survived, count, outer, i, D, of_values, 0)
                _gather(survived, count, buckets, pairs, used, by_bucket)
                _add_outer(by_bucket, used, outer, i, D, parts, (2 * group + 1) * size + table)
                _gather(given, count, buckets, pairs, used, by_bucket)
                _add_outer(by_bucket, used, queries, i, D, parts, 2 * group * size + table)
                for c in range(0, D, LANES):
                    for r in range(0, LANES, 8):
                        s = products(given, r, 1, LANES, keys, c, D, count, zeros())
                        s = products(by_bucket, r, 1, LANES, rk, table + c, D, used, s)
                        store8(of_queries, (i + r) * D + c, D, s)
            for place in range(0, padded * D, LANES):
                store(of_queries, place, load(of_queries, place) * splat(scale))
            unpack(of_queries, length, D, grad_q, heads * D, start, column)
            unpack(of_keys, length, D, grad_k, heads * D, start, column)
            unpack(of_values, length, D, grad_v, heads * D, start, column)
