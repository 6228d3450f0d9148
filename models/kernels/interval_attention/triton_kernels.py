"""The two Triton kernels of interval attention; models/kernels/interval_attention/triton.py says how they work."""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.interval_attention.triton_pairs import (
    add_both_by_bucket,
    add_by_bucket,
    bucket_of,
    query_keys,
    reach,
    rows_of,
    survive,
    table_rows,
    times_at,
)


@triton.jit
def _place(offsets: tl.tensor, rows: tl.tensor, slot: tl.tensor, BLOCK: tl.constexpr) -> tuple:
    """First token and length of the row that a slot belongs to, and the block's first place in it."""
    low = slot * 0
    high = low + rows
    while high - low > 1:
        middle = (low + high) // 2
        begins = (tl.load(offsets + middle) // BLOCK + middle) <= slot
        low = tl.where(begins, middle, low)
        high = tl.where(begins, high, middle)
    first = tl.load(offsets + low)
    length = (tl.load(offsets + low + 1) - first).to(tl.int32)
    return first, length, ((slot - low - first // BLOCK) * BLOCK).to(tl.int32)


@triton.jit
def _pairs(
    now: tl.tensor, i: tl.tensor, times: tl.tensor, first: tl.tensor, j: tl.tensor, length: tl.tensor,
    earliest: tl.tensor, span: tl.tensor, UNIT: tl.constexpr,
) -> tuple:  # fmt: skip
    """Buckets of a block of pairs, and of each query with the key after: -1 for keys that a query does not see."""
    bucket = bucket_of(now, times_at(times, first, j, length, earliest), span, UNIT)
    following = bucket_of(now, times_at(times, first, j + 1, length, earliest), span, UNIT)
    seen = (j[None, :] <= i[:, None]) & (i < length)[:, None]
    return tl.where(seen, bucket, -1), tl.where(seen & (j[None, :] < i[:, None]), following, -1)


@triton.jit
def _by_bucket(
    vectors: tl.tensor, table: tl.tensor, products: tl.tensor, sums: tl.tensor, head: tl.tensor, heads: tl.tensor,
    highest: tl.tensor, span: tl.tensor, scale: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
    BUCKETS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """``products`` ``[BLOCK, BUCKETS]`` of vectors and a table, up to the highest bucket; ``sums`` there to zero."""
    row, d = tl.arange(0, BLOCK)[:, None] * BUCKETS, tl.arange(0, BLOCK_D)
    for begin in tl.range(0, highest + 1, TILE, num_stages=1):
        own = table_rows(table, begin, head, heads, d, span, D, TILE)
        at = row + begin + tl.arange(0, TILE)[None, :]
        tl.store(products + at, tl.dot(vectors, tl.trans(own), input_precision="ieee") * scale)
        tl.store(sums + at, tl.zeros((BLOCK, TILE), tl.float32))


@triton.jit
def _scores(
    queries: tl.tensor, keys: tl.tensor, products: tl.tensor, bucket: tl.tensor, scale: tl.tensor,
    BUCKETS: tl.constexpr, BLOCK: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """``q k^T scale`` and what each query's bucket adds; 0 where a key is not seen."""
    at = tl.arange(0, BLOCK)[:, None] * BUCKETS + bucket
    added = tl.load(products + at, mask=bucket >= 0, other=0.0)
    return tl.where(bucket >= 0, tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale + added, 0.0)


@triton.jit(do_not_specialize=["span", "threshold"])  # 1 would be no number to convert
def forward_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, rk: tl.tensor, rv: tl.tensor, times: tl.tensor, offsets: tl.tensor,
    seed: tl.tensor, out: tl.tensor, logs: tl.tensor, scratch: tl.tensor, rows: tl.tensor, blocks: tl.tensor,
    heads: tl.tensor, span: tl.tensor, scale: tl.tensor, threshold: tl.tensor, kept: tl.tensor, q_token: tl.tensor,
    q_head: tl.tensor, k_token: tl.tensor, k_head: tl.tensor, v_token: tl.tensor, v_head: tl.tensor, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, BUCKETS: tl.constexpr, UNIT: tl.constexpr,
    DROP: tl.constexpr,
) -> None:  # fmt: skip
    """Blocks of queries: a walk for the logarithm of each sum, ``logs`` ``[T, H]``, and one for the weights."""
    group, d = tl.program_id(0), tl.arange(0, BLOCK_D)
    products = scratch + group.to(tl.int64) * (2 * BLOCK * BUCKETS)
    sums = products + BLOCK * BUCKETS
    for block in tl.range(group, blocks, tl.num_programs(0)):
        slot, head = block // heads, block % heads
        first, length, start = _place(offsets, rows, slot, BLOCK)
        i = start + tl.arange(0, BLOCK)
        if start < length:
            end = tl.minimum(start + BLOCK, length)
            earliest, highest, ordered = reach(times, first, end, span, UNIT, BLOCK)
            queries = rows_of(q, first, q_token, head * q_head, i, d, length, D)
            now = times_at(times, first, i, length, earliest)
            tl.debug_barrier()  # the block before has been read
            _by_bucket(queries, rk, products, sums, head, heads, highest, span, scale, D, BLOCK_D, TILE, BUCKETS, BLOCK)
            tl.debug_barrier()
            most, total = tl.full((BLOCK,), -1.0e30, tl.float32), tl.zeros((BLOCK,), tl.float32)
            for begin in tl.range(0, end, BLOCK):
                j = begin + tl.arange(0, BLOCK)
                bucket, following = _pairs(now, i, times, first, j, length, earliest, span, UNIT)
                keys = rows_of(k, first, k_token, head * k_head, j, d, length, D)
                score = _scores(queries, keys, products, bucket, scale, BUCKETS, BLOCK)
                score = tl.where(bucket >= 0, score, -1.0e30)
                higher = tl.maximum(most, tl.max(score, axis=1))
                total = total * tl.exp(most - higher) + tl.sum(tl.exp(score - higher[:, None]), axis=1)
                most = higher
            log = most + tl.log(total)
            tl.store(logs + (first + i) * heads + head, log, mask=i < length)
            result = tl.zeros((BLOCK, BLOCK_D), tl.float32)
            for begin in tl.range(0, end, BLOCK, num_stages=1):
                j = begin + tl.arange(0, BLOCK)
                bucket, following = _pairs(now, i, times, first, j, length, earliest, span, UNIT)
                keys = rows_of(k, first, k_token, head * k_head, j, d, length, D)
                score = _scores(queries, keys, products, bucket, scale, BUCKETS, BLOCK)
                weight = tl.exp(tl.where(bucket >= 0, score - log[:, None], -1.0e30))
                if DROP:
                    own = query_keys(seed, first, i, heads, head)
                    weight = tl.where(survive(own, j, threshold), weight * kept, 0.0)
                values = rows_of(v, first, v_token, head * v_head, j, d, length, D)
                result += tl.dot(weight.to(values.dtype), values, input_precision="ieee")
                add_by_bucket(sums, weight, bucket, following, j, ordered, BUCKETS, BLOCK)
                tl.debug_barrier()  # the next keys' threads hold other buckets
            row = tl.arange(0, BLOCK)[:, None] * BUCKETS
            for begin in tl.range(0, highest + 1, TILE, num_stages=1):
                own = table_rows(rv, begin, head, heads, d, span, D, TILE)
                weight = tl.load(sums + row + begin + tl.arange(0, TILE)[None, :])
                result += tl.dot(weight.to(own.dtype), own, input_precision="ieee")
            at = (first + i)[:, None] * (heads * D) + head * D + d[None, :]
            tl.store(out + at, result.to(out.dtype.element_ty), mask=(i < length)[:, None] & (d < D)[None, :])


@triton.jit
def _slopes(
    score: tl.tensor, given: tl.tensor, seen: tl.tensor, shown: tl.tensor, log: tl.tensor, level: tl.tensor,
    kept: tl.tensor,
) -> tuple:  # fmt: skip
    """Weights behind dropout, and the gradients of the scores from ``given``, those of the weights."""
    share = tl.exp(tl.where(seen, score - log[:, None], -1.0e30))
    slope = share * (tl.where(shown, given * kept, 0.0) - level[:, None])
    return tl.where(shown, share * kept, 0.0), slope


@triton.jit
def _add_rows(
    target: tl.tensor, first: tl.tensor, heads: tl.tensor, head: tl.tensor, at: tl.tensor, d: tl.tensor,
    length: tl.tensor, values: tl.tensor, start: tl.tensor, D: tl.constexpr,
) -> None:  # fmt: skip
    """Adds to ``[T, H, D]`` in float32, which this program alone writes; places from ``start`` on are met first now."""
    place = target + (first + at)[:, None] * (heads * D) + head * D + d[None, :]
    mask = (at < length)[:, None] & (d < D)[None, :]
    before = tl.load(place, mask=mask & (at < start)[:, None], other=0.0)
    tl.store(place, before + values, mask=mask)


@triton.jit
def _table_gradients(
    dq: tl.tensor, sums: tl.tensor, slopes: tl.tensor, queries: tl.tensor, outer: tl.tensor, rk: tl.tensor,
    part: tl.tensor, head: tl.tensor, heads: tl.tensor, highest: tl.tensor, span: tl.tensor, scale: tl.tensor,
    D: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr, BUCKETS: tl.constexpr, BLOCK: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Both tables' gradients from the sums by bucket of a block of queries; what RK gives these is added to ``dq``."""
    row, d = tl.arange(0, BLOCK)[:, None] * BUCKETS, tl.arange(0, BLOCK_D)
    for begin in tl.range(0, highest + 1, TILE, num_stages=1):
        b = begin + tl.arange(0, TILE)
        slope, weight = tl.load(slopes + row + b[None, :]), tl.load(sums + row + b[None, :])
        own = table_rows(rk, begin, head, heads, d, span, D, TILE)
        dq += tl.dot(slope.to(own.dtype), own, input_precision="ieee")
        at, mask = part + b[:, None] * D + d[None, :], (b < BUCKETS)[:, None] & (d < D)[None, :]
        of_keys = tl.dot(tl.trans(slope.to(queries.dtype)), queries, input_precision="ieee") * scale
        of_values = tl.dot(tl.trans(weight.to(outer.dtype)), outer, input_precision="ieee")
        tl.store(at, tl.load(at, mask=mask, other=0.0) + of_keys, mask=mask)
        at += BUCKETS * D
        tl.store(at, tl.load(at, mask=mask, other=0.0) + of_values, mask=mask)
    return dq


@triton.jit(do_not_specialize=["span", "threshold"])  # 1 would be no number to convert
def backward_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, rk: tl.tensor, rv: tl.tensor, times: tl.tensor, offsets: tl.tensor,
    seed: tl.tensor, out: tl.tensor, logs: tl.tensor, grad: tl.tensor, dq: tl.tensor, dk: tl.tensor, dv: tl.tensor,
    parts: tl.tensor, scratch: tl.tensor, items: tl.tensor, heads: tl.tensor, span: tl.tensor, scale: tl.tensor,
    threshold: tl.tensor, kept: tl.tensor, q_token: tl.tensor, q_head: tl.tensor, k_token: tl.tensor,
    k_head: tl.tensor, v_token: tl.tensor, v_head: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, BUCKETS: tl.constexpr, UNIT: tl.constexpr, DROP: tl.constexpr,
) -> None:  # fmt: skip
    """All gradients of a head of whole rows, one row after another; ``parts`` ``[groups, 2, BUCKETS, D]`` the tables'.

    The number of programs is a multiple of the heads: a program meets one head only.
    """
    group, d = tl.program_id(0), tl.arange(0, BLOCK_D)
    head, wide = group % heads, heads * D
    of_queries = scratch + group.to(tl.int64) * (4 * BLOCK * BUCKETS)
    of_outer, sums = of_queries + BLOCK * BUCKETS, of_queries + 2 * BLOCK * BUCKETS
    slopes = sums + BLOCK * BUCKETS
    part = parts + group.to(tl.int64) * (2 * BUCKETS * D)
    for item in tl.range(group, items, tl.num_programs(0)):
        first = tl.load(offsets + item // heads)
        length = (tl.load(offsets + item // heads + 1) - first).to(tl.int32)
        for start in tl.range(0, length, BLOCK):
            i, end = start + tl.arange(0, BLOCK), tl.minimum(start + BLOCK, length)
            earliest, highest, ordered = reach(times, first, end, span, UNIT, BLOCK)
            queries = rows_of(q, first, q_token, head * q_head, i, d, length, D)
            now = times_at(times, first, i, length, earliest)
            outer = rows_of(grad, first, wide, head * D, i, d, length, D)
            level = tl.sum(outer.to(tl.float32) * rows_of(out, first, wide, head * D, i, d, length, D), axis=1)
            log = tl.load(logs + (first + i) * heads + head, mask=i < length, other=0.0)
            tl.debug_barrier()  # the block before has been read
            _by_bucket(
                queries, rk, of_queries, sums, head, heads, highest, span, scale, D, BLOCK_D, TILE, BUCKETS, BLOCK
            )
            _by_bucket(outer, rv, of_outer, slopes, head, heads, highest, span, 1.0, D, BLOCK_D, TILE, BUCKETS, BLOCK)
            tl.debug_barrier()
            total = tl.zeros((BLOCK, BLOCK_D), tl.float32)
            for begin in tl.range(0, end, BLOCK, num_stages=1):
                j = begin + tl.arange(0, BLOCK)
                bucket, following = _pairs(now, i, times, first, j, length, earliest, span, UNIT)
                keys = rows_of(k, first, k_token, head * k_head, j, d, length, D)
                values = rows_of(v, first, v_token, head * v_head, j, d, length, D)
                shown = bucket >= 0
                if DROP:
                    shown = shown & survive(query_keys(seed, first, i, heads, head), j, threshold)
                score = _scores(queries, keys, of_queries, bucket, scale, BUCKETS, BLOCK)
                given = _scores(outer, values, of_outer, bucket, 1.0, BUCKETS, BLOCK)
                weight, slope = _slopes(score, given, bucket >= 0, shown, log, level, kept)
                total += tl.dot(slope.to(keys.dtype), keys, input_precision="ieee")
                own = tl.dot(tl.trans(slope.to(queries.dtype)), queries, input_precision="ieee") * scale
                _add_rows(dk, first, heads, head, j, d, length, own, start, D)
                own = tl.dot(tl.trans(weight.to(outer.dtype)), outer, input_precision="ieee")
                _add_rows(dv, first, heads, head, j, d, length, own, start, D)
                add_both_by_bucket(sums, slopes, weight, slope, bucket, following, j, ordered, BUCKETS, BLOCK)
                tl.debug_barrier()  # the next keys' threads hold other buckets
            total = _table_gradients(
                total, sums, slopes, queries, outer, rk, part, head, heads, highest, span, scale, D, BLOCK_D, TILE,
                BUCKETS, BLOCK,
            )  # fmt: skip
            at, mask = (first + i)[:, None] * wide + head * D + d[None, :], (i < length)[:, None] & (d < D)[None, :]
            tl.store(dq + at, (total * scale).to(dq.dtype.element_ty), mask=mask)
