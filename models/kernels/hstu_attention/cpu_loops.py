"""The loops of HSTU's attention that numba compiles: (row, 16 queries, head), and all keys that one of them sees.

As in packed attention, sixteen queries are the lanes of a vector and a strip of scores ``[keys, 16]`` stays in the
cache; keys beyond the last one that is seen are never touched. The bias of a strip is the same for all heads and made
once: by distance in places it is a vector load (the lanes are neighbours), by time a walk along the keys whose bucket
rarely changes, without a logarithm. All arrays are flat; D and E are multiples of 16.
"""

# mypy: ignore-errors
# ruff: noqa: ANN
from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from models.kernels.compiled import compiled
from models.kernels.hstu_attention.mask import FROM, PLACE, TO, UP_TO
from models.kernels.packed_attention.cpu_products import dot_strip, load8, products, store8, zeros
from models.kernels.simd import LANES, choose_below, fma, load, sigmoid, splat, store

_COLUMNS = 5
_F, _I, _W = "float32[::1]", "int64[::1]", "int32[::1]"
_STRIDED = f"{_F},int64,int64"
_ROWS = f"{_I},int64,int64,int64,int64,int64,int64,int64"
_BIAS = f"{_W},{_F},{_F},{_I},{_I},{_I}"


@register_jitable
def _pack(source, token, head_step, start, length, padded, heads, d, D, scale, target):
    """``scale`` times one row, ``[heads, padded, D]``, zero where there is no token and beyond ``d``."""
    for head in range(heads):
        for t in range(length):
            at, out = (start + t) * token + head * head_step, (head * padded + t) * D
            for c in range(d):
                target[out + c] = source[at + c] * scale
            for c in range(d, D):
                target[out + c] = np.float32(0.0)
        target[(head * padded + length) * D : (head + 1) * padded * D] = 0


@register_jitable
def _unpack(source, length, padded, heads, d, D, scale, target, start):
    for head in range(heads):
        for t in range(length):
            at, out = (head * padded + t) * D, ((start + t) * heads + head) * d
            for c in range(d):
                target[out + c] = source[at + c] * scale


@register_jitable
def _limits(seen, start, length, padded, limits):
    """The mask of a row's queries as three runs of numbers, for lanes; queries of the padding see what the last does.

    Returns how many of the oldest tokens have their own number as their place.
    """
    plain = length
    for t in range(padded):
        at = (start + min(t, length - 1)) * _COLUMNS
        limits[t] = seen[at + UP_TO]
        limits[padded + t] = seen[at + FROM]
        limits[2 * padded + t] = seen[at + TO]
        if t < length and seen[at + PLACE] != t:
            plain = min(plain, t)
    return plain


@register_jitable
def _extent(limits, padded, i):
    """Keys that every query of a strip sees, and those that one of them sees (a multiple of 8)."""
    whole, last = padded, 0
    for t in range(i, i + LANES):
        whole = min(whole, int(limits[t]))
        last = max(last, int(limits[t]), int(limits[2 * padded + t]))
    return whole, (last + 7) // 8 * 8


@register_jitable
def _shown(limits, padded, i, j, value):
    """``value`` in the lanes of the queries that see key ``j``, 0 in the others."""
    key, zero = splat(np.float32(j)), splat(np.float32(0.0))
    own = choose_below(
        key, load(limits, padded + i), zero, choose_below(key, load(limits, 2 * padded + i), value, zero)
    )
    return choose_below(key, load(limits, i), value, own)


@register_jitable
def _bucket(apart, bucket, borders):
    """The bucket of ``apart`` seconds, looked for from a neighbour's bucket."""
    while bucket < len(borders) and apart >= borders[bucket]:
        bucket += 1
    while bucket > 0 and apart < borders[bucket - 1]:
        bucket -= 1
    return bucket


@register_jitable
def _add_bias(i, count, start, length, plain, seen, position, time, borders, times, next_times, out):
    """The bias ``[count, 16]`` of a strip; ``position`` is long enough for every difference of two places."""
    middle, newest = len(position) // 2, length - 1
    if len(position) == 0:
        out[: count * LANES] = 0
    elif plain == length or i + LANES <= plain:
        for j in range(count):
            store(out, j * LANES, load(position, middle + i - j))
    else:
        for lane in range(LANES):
            place = middle + seen[(start + min(i + lane, newest)) * _COLUMNS + PLACE]
            for j in range(count):
                out[j * LANES + lane] = position[place - seen[(start + min(j, newest)) * _COLUMNS + PLACE]]
    if len(time) > 0:
        for lane in range(LANES):
            now, bucket = next_times[start + min(i + lane, newest)], 0
            for j in range(count - 1, -1, -1):
                bucket = _bucket(abs(now - times[start + min(j, newest)]), bucket, borders)
                out[j * LANES + lane] += time[bucket]


@register_jitable
def _add_bias_gradient(
    i, count, start, length, plain, seen, borders, times, next_times, given, of_position, of_time, at_time, buckets,
    at_position, places,
):  # fmt: skip
    """Adds the gradient ``given`` ``[count, 16]`` of a strip's bias to this group's part of both tables."""
    middle = at_position + places // 2
    if places > 0 and (plain == length or i + LANES <= plain):
        for j in range(count):
            at = middle + i - j
            store(of_position, at, load(of_position, at) + load(given, j * LANES))
    elif places > 0:
        for lane in range(min(LANES, length - i)):
            place = middle + seen[(start + i + lane) * _COLUMNS + PLACE]
            for j in range(min(count, length)):
                of_position[place - seen[(start + j) * _COLUMNS + PLACE]] += given[j * LANES + lane]
    if buckets > 0:
        for lane in range(min(LANES, length - i)):
            now, bucket, total = next_times[start + i + lane], 0, np.float32(0.0)
            for j in range(min(count, length) - 1, -1, -1):
                found = _bucket(abs(now - times[start + j]), bucket, borders)
                if found != bucket:
                    of_time[at_time + bucket] += total
                    bucket, total = found, np.float32(0.0)
                total += given[j * LANES + lane]
            of_time[at_time + bucket] += total


@register_jitable
def _weights(strip, bias, biased, limits, padded, i, whole, count, inverse):
    """Scores to ``SiLU(score + bias) / N``, in place."""
    n = splat(inverse)
    for j in range(count):
        place = j * LANES
        score = load(strip, place)
        if biased:
            score = score + load(bias, place)
        weight = score * n * sigmoid(score)
        store(strip, place, weight if j < whole else _shown(limits, padded, i, j, weight))


@register_jitable
def _score_gradients(strip, given, bias, biased, limits, padded, i, whole, count, inverse):
    """Scores to weights, and gradients of weights (``given``) to gradients of scores, in place."""
    n, one = splat(inverse), splat(np.float32(1.0))
    for j in range(count):
        place = j * LANES
        score = load(strip, place)
        if biased:
            score = score + load(bias, place)
        share = sigmoid(score)
        weight = score * share
        slope = load(given, place) * n * fma(weight, one - share, share)
        weight = weight * n
        if j >= whole:
            weight, slope = _shown(limits, padded, i, j, weight), _shown(limits, padded, i, j, slope)
        store(strip, place, weight)
        store(given, place, slope)


@register_jitable
def _longest(offsets, first, last):
    longest = 0
    for row in range(first, last):
        longest = max(longest, offsets[row + 1] - offsets[row])
    return (longest + LANES - 1) // LANES * LANES


@register_jitable
def _numbers(count):
    return np.empty(count, np.float32)


@compiled(f"void({_STRIDED},{_STRIDED},{_STRIDED},{_ROWS},float32,float32,{_BIAS},{_F})")
def forward(
    q, q_token, q_head, k, k_token, k_head, v, v_token, v_head, offsets, first, last, heads, d, D, e, E,
    scale, inverse, seen, position, time, borders, times, next_times, out,
):  # fmt: skip
    """Rows ``first .. last - 1`` of ``out`` ``[T, heads, e]``; ``inverse`` is 1 / N."""
    longest, one = _longest(offsets, first, last), np.float32(1.0)
    queries, keys = _numbers(longest * heads * D), _numbers(longest * heads * D)
    values, results = _numbers(longest * heads * E), _numbers(longest * heads * E)
    strip, bias, turned = _numbers(longest * LANES), _numbers(longest * LANES), _numbers(D * LANES)
    limits, biased = _numbers(3 * longest), len(position) + len(time) > 0
    for row in range(first, last):
        start, length = offsets[row], offsets[row + 1] - offsets[row]
        padded = (length + LANES - 1) // LANES * LANES
        _pack(q, q_token, q_head, start, length, padded, heads, d, D, scale, queries)
        _pack(k, k_token, k_head, start, length, padded, heads, d, D, one, keys)
        _pack(v, v_token, v_head, start, length, padded, heads, e, E, one, values)
        plain = _limits(seen, start, length, padded, limits)
        for i in range(0, length, LANES):
            whole, count = _extent(limits, padded, i)
            if biased:
                _add_bias(i, count, start, length, plain, seen, position, time, borders, times, next_times, bias)
            for head in range(heads):
                own = keys[head * padded * D : (head + 1) * padded * D]
                dot_strip(queries, head * padded + i, turned, own, count, D, strip)
                _weights(strip, bias, biased, limits, padded, i, whole, count, inverse)
                for r in range(0, LANES, 8):
                    for c in range(0, E, LANES):
                        s = products(strip, r, 1, LANES, values, head * padded * E + c, E, count, zeros())
                        store8(results, (head * padded + i + r) * E + c, E, s)
        _unpack(results, length, padded, heads, e, E, one, out, start)


@register_jitable
def _head_gradients(i, count, D, E, given, strip, keys, queries, outer, of_queries, of_keys, of_values):
    """One head of a strip: its queries' gradient, and what it adds to those of keys and values."""
    for c in range(0, D, LANES):
        for r in range(0, LANES, 8):
            s = products(given, r, 1, LANES, keys, c, D, count, zeros())
            store8(of_queries, (i + r) * D + c, D, s)
        for j in range(0, count, 8):
            s = load8(of_keys, j * D + c, D)
            s = products(given, j * LANES, LANES, 1, queries, i * D + c, D, LANES, s)
            store8(of_keys, j * D + c, D, s)
    for c in range(0, E, LANES):
        for j in range(0, count, 8):
            s = load8(of_values, j * E + c, E)
            s = products(strip, j * LANES, LANES, 1, outer, i * E + c, E, LANES, s)
            store8(of_values, j * E + c, E, s)


@compiled(
    f"void({_STRIDED},{_STRIDED},{_STRIDED},{_STRIDED},{_ROWS},float32,float32,{_BIAS},{_F},{_F},{_F},{_F},{_F},int64)"
)
def backward(
    q, q_token, q_head, k, k_token, k_head, v, v_token, v_head, grad, grad_token, grad_head,
    offsets, first, last, heads, d, D, e, E, scale, inverse, seen, position, time, borders, times, next_times,
    grad_q, grad_k, grad_v, of_position, of_time, group,
):  # fmt: skip
    """Gradients of rows ``first .. last - 1``, scores computed again; those of tables go to this ``group``'s part."""
    longest, one = _longest(offsets, first, last), np.float32(1.0)
    queries, keys, of_queries = (
        _numbers(longest * heads * D),
        _numbers(longest * heads * D),
        _numbers(longest * heads * D),
    )
    values, outer, of_keys = _numbers(longest * heads * E), _numbers(longest * heads * E), _numbers(longest * heads * D)
    of_values, turned, limits = _numbers(longest * heads * E), _numbers(max(D, E) * LANES), _numbers(3 * longest)
    strip, given = _numbers(longest * LANES), _numbers(longest * LANES)
    bias, of_bias = _numbers(longest * LANES), _numbers(longest * LANES)
    places, buckets = len(position), len(time)
    biased = places + buckets > 0
    for row in range(first, last):
        start, length = offsets[row], offsets[row + 1] - offsets[row]
        padded = (length + LANES - 1) // LANES * LANES
        _pack(q, q_token, q_head, start, length, padded, heads, d, D, scale, queries)
        _pack(k, k_token, k_head, start, length, padded, heads, d, D, one, keys)
        _pack(v, v_token, v_head, start, length, padded, heads, e, E, one, values)
        _pack(grad, grad_token, grad_head, start, length, padded, heads, e, E, one, outer)
        of_keys[: heads * padded * D] = 0
        of_values[: heads * padded * E] = 0
        plain = _limits(seen, start, length, padded, limits)
        for i in range(0, length, LANES):
            whole, count = _extent(limits, padded, i)
            if biased:
                _add_bias(i, count, start, length, plain, seen, position, time, borders, times, next_times, bias)
                of_bias[: count * LANES] = 0
            for head in range(heads):
                a, b, x, y = head * padded * D, (head + 1) * padded * D, head * padded * E, (head + 1) * padded * E
                dot_strip(queries[a:b], i, turned, keys[a:b], count, D, strip)
                dot_strip(outer[x:y], i, turned, values[x:y], count, E, given)
                _score_gradients(strip, given, bias, biased, limits, padded, i, whole, count, inverse)
                if biased:
                    for place in range(0, count * LANES, LANES):
                        store(of_bias, place, load(of_bias, place) + load(given, place))
                _head_gradients(
                    i, count, D, E, given, strip, keys[a:b], queries[a:b], outer[x:y],
                    of_queries[a:b], of_keys[a:b], of_values[x:y],
                )  # fmt: skip
            if biased:
                _add_bias_gradient(
                    i, count, start, length, plain, seen, borders, times, next_times, of_bias,
                    of_position, of_time, group * buckets, buckets, group * places, places,
                )  # fmt: skip
        _unpack(of_queries, length, padded, heads, d, D, scale, grad_q, start)
        _unpack(of_keys, length, padded, heads, d, D, one, grad_k, start)
        _unpack(of_values, length, padded, heads, e, E, one, grad_v, start)
