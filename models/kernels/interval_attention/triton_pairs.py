"""Parts of the Triton kernels of interval attention: dropout, blocks of rows, buckets of pairs, sums by bucket."""

from __future__ import annotations

import triton
import triton.language as tl

STEP = tl.constexpr(0x9E3779B9)  # these five as in packed_attention/dropout.py: the paths drop the same weights
SHIFT_1, TIMES_1 = tl.constexpr(16), tl.constexpr(0x21F0AAAD)
SHIFT_2, TIMES_2 = tl.constexpr(15), tl.constexpr(0xD35A2D97)
SHIFT_3 = tl.constexpr(15)
FURTHEST = tl.constexpr(2**31 - 1)  # 68 years of seconds: what is further from a row's earliest counts as that


@triton.jit
def _mix(numbers: tl.tensor) -> tl.tensor:
    """The mixer of packed_attention/dropout.py on uint32."""
    numbers = (numbers ^ (numbers >> SHIFT_1)) * TIMES_1
    numbers = (numbers ^ (numbers >> SHIFT_2)) * TIMES_2
    return numbers ^ (numbers >> SHIFT_3)


@triton.jit
def query_keys(seed: tl.tensor, first: tl.tensor, i: tl.tensor, heads: tl.tensor, head: tl.tensor) -> tl.tensor:
    """A number for each query and head, uint32, that its keys' numbers come from."""
    whole = tl.load(seed)
    own = ((first + i) * heads + head).to(tl.uint32) ^ whole.to(tl.uint32)
    return _mix(_mix(own) + (whole >> 32).to(tl.uint32))


@triton.jit
def survive(keys: tl.tensor, j: tl.tensor, threshold: tl.tensor) -> tl.tensor:
    """Which weights dropout leaves, ``[BLOCK, BLOCK]``."""
    return _mix(keys[:, None] + (j.to(tl.uint32) * STEP)[None, :]) >= threshold.to(tl.uint32)


@triton.jit
def rows_of(
    base: tl.tensor, first: tl.tensor, token: tl.tensor, head: tl.tensor, at: tl.tensor, c: tl.tensor,
    length: tl.tensor, width: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """``[BLOCK, WIDTH]`` of one head at the row's places ``at``; 0 behind the row and beyond the head's width."""
    mask = (at < length)[:, None] & (c < width)[None, :]
    return tl.load(base + head + (first + at)[:, None] * token + c[None, :], mask=mask, other=0.0)


@triton.jit
def table_rows(
    table: tl.tensor, begin: tl.tensor, head: tl.tensor, heads: tl.tensor, c: tl.tensor, span: tl.tensor,
    width: tl.constexpr, TILE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """``[TILE, WIDTH]`` interval vectors of one head from bucket ``begin`` on; 0 behind the last."""
    b = begin + tl.arange(0, TILE)
    mask = (b <= span)[:, None] & (c < width)[None, :]
    return tl.load(table + (b[:, None] * heads + head) * width + c[None, :], mask=mask, other=0.0)


@triton.jit
def reach(
    times: tl.tensor, first: tl.tensor, end: tl.tensor, span: tl.tensor, UNIT: tl.constexpr, BLOCK: tl.constexpr
) -> tuple:  # fmt: skip
    """Of a row's first ``end`` tokens: the earliest time, the highest bucket, and whether times never decrease."""
    earliest = tl.load(times + first)
    latest, broken = earliest, 0
    for begin in tl.range(0, end, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        own = tl.load(times + first + tl.minimum(at, end - 1))
        following = tl.load(times + first + tl.minimum(at + 1, end - 1))
        broken = tl.maximum(broken, tl.max((following < own).to(tl.int32), axis=0))
        earliest = tl.minimum(earliest, tl.min(own, axis=0))
        latest = tl.maximum(latest, tl.max(own, axis=0))
    highest = tl.minimum(latest - earliest, span.to(tl.int64) * UNIT).to(tl.int32) // UNIT
    return earliest, highest, broken == 0


@triton.jit
def times_at(times: tl.tensor, first: tl.tensor, at: tl.tensor, length: tl.tensor, earliest: tl.tensor) -> tl.tensor:
    """Time since the earliest of a row's places, int32; behind its end that of its last one, so that none decreases."""
    since = tl.load(times + first + tl.minimum(at, length - 1)) - earliest
    return tl.minimum(tl.maximum(since, 0), FURTHEST).to(tl.int32)  # int64 pairs would fill the registers


@triton.jit
def bucket_of(now: tl.tensor, then: tl.tensor, span: tl.tensor, UNIT: tl.constexpr) -> tl.tensor:
    """``min(|t_i - t_j| // UNIT, span)`` of every pair, int32."""
    return tl.minimum(tl.abs(now[:, None] - then[None, :]), span * UNIT) // UNIT


@triton.jit
def _later_run(sum_1: tl.tensor, bucket_1: tl.tensor, sum_2: tl.tensor, bucket_2: tl.tensor) -> tuple:
    return sum_2 + tl.where(bucket_1 == bucket_2, sum_1, 0.0), bucket_2


@triton.jit
def _later_runs(
    sum_1: tl.tensor, other_1: tl.tensor, bucket_1: tl.tensor, sum_2: tl.tensor, other_2: tl.tensor, bucket_2: tl.tensor
) -> tuple:  # fmt: skip
    same = bucket_1 == bucket_2
    return sum_2 + tl.where(same, sum_1, 0.0), other_2 + tl.where(same, other_1, 0.0), bucket_2


@triton.jit
def _add_at(table: tl.tensor, places: tl.tensor, values: tl.tensor, mask: tl.tensor) -> None:
    """No two of ``places`` are the same."""
    tl.store(table + places, tl.load(table + places, mask=mask, other=0.0) + values, mask=mask)


@triton.jit
def _run_ends(bucket: tl.tensor, following: tl.tensor, j: tl.tensor, last: tl.tensor) -> tl.tensor:
    return (bucket >= 0) & ((bucket != following) | (j == last)[None, :])


@triton.jit
def add_by_bucket(
    sums: tl.tensor, weights: tl.tensor, bucket: tl.tensor, following: tl.tensor, j: tl.tensor, ordered: tl.tensor,
    BUCKETS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Adds ``weights`` ``[BLOCK, BLOCK]`` to ``sums`` ``[BLOCK, BUCKETS]`` by bucket; a bucket below 0 is none.

    Along a query's keys times never decrease, so equal buckets are neighbours: a scan adds each run up, and its last
    key alone writes. Where times do decrease, keys are added one after another: slower, the same sums.

    ``bucket`` and ``following`` are those of each query with a key and with the key after it, ``j`` the keys' places,
    ``ordered`` says that no time decreases.
    """
    row = tl.arange(0, BLOCK) * BUCKETS
    if ordered:
        totals, _runs = tl.associative_scan((weights, bucket), 1, _later_run)
        _add_at(sums, row[:, None] + bucket, totals, _run_ends(bucket, following, j, tl.max(j, axis=0)))
    else:
        for key in tl.range(tl.min(j, axis=0), tl.max(j, axis=0) + 1):
            own = j[None, :] == key
            place = tl.max(tl.where(own, bucket, -1), axis=1)
            _add_at(sums, row + place, tl.sum(tl.where(own, weights, 0.0), axis=1), place >= 0)
            tl.debug_barrier()  # the next key's bucket may be held by another thread


@triton.jit
def add_both_by_bucket(
    sums: tl.tensor, others: tl.tensor, weights: tl.tensor, slopes: tl.tensor, bucket: tl.tensor, following: tl.tensor,
    j: tl.tensor, ordered: tl.tensor, BUCKETS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """:func:`add_by_bucket` of two things with one scan."""
    if ordered:
        row = tl.arange(0, BLOCK)[:, None] * BUCKETS
        first, second, _runs = tl.associative_scan((weights, slopes, bucket), 1, _later_runs)
        ends = _run_ends(bucket, following, j, tl.max(j, axis=0))
        _add_at(sums, row + bucket, first, ends)
        _add_at(others, row + bucket, second, ends)
    else:
        add_by_bucket(sums, weights, bucket, following, j, ordered, BUCKETS, BLOCK)
        add_by_bucket(others, slopes, bucket, following, j, ordered, BUCKETS, BLOCK)
