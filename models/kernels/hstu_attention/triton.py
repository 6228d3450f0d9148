"""HSTU's attention on the GPU: SiLU, bias, mask and 1/N in one Triton kernel forward and two backward, deterministic.

A program owns (a block of one row's queries, a head), in the gradients of keys and values a block of keys, and walks
over what is seen. Rows have room for their blocks from ``offsets[u] // BLOCK + u`` on, so that no count has to come
back from the GPU; which row a block belongs to is found by bisection. Scores live in registers alone. The gradients of
the bias tables are summed by a fixed number of groups, each of which takes its blocks in order: no atomics, equal bits
from run to run. Sums are float32 whatever the inputs are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.kernels.hstu_attention.bias import BUCKET_WIDTH, bucket_borders

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        "the Triton kernels need the package 'triton' (comes with PyTorch's CUDA builds on Linux): "
        "install it or choose another kernel path"
    ) from error

MAX_WIDTH = 128  # of a head: what a block holds of it stays in registers
GROUPS = 1024  # parts of the tables' gradients
COLUMNS = tl.constexpr(5)  # of the mask's numbers: UP_TO, FROM, TO, FIRST, PLACE
MOST_SECONDS = tl.constexpr(2**31 - 1)  # 68 years: what is longer counts as that
BUCKETS_PER_LOG = tl.constexpr(1.0 / BUCKET_WIDTH)


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
    start = ((slot - low - first // BLOCK) * BLOCK).to(tl.int32)
    return first, length, start


@triton.jit
def _rows(
    base: tl.tensor, first: tl.tensor, token: tl.tensor, head: tl.tensor, at: tl.tensor, c: tl.tensor,
    length: tl.tensor, width: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """``[B, WIDTH]`` of one head at the row's places ``at``; 0 behind the row and beyond the head's width."""
    mask = (at < length)[:, None] & (c < width)[None, :]
    return tl.load(base + head + (first + at)[:, None] * token + c[None, :], mask=mask, other=0.0)


@triton.jit
def _number(seen: tl.tensor, first: tl.tensor, at: tl.tensor, length: tl.tensor, column: tl.constexpr) -> tl.tensor:
    return tl.load(seen + (first + at) * COLUMNS + column, mask=at < length, other=0)


@triton.jit
def _bucket(now: tl.tensor, then: tl.tensor, limits: tl.tensor, buckets: tl.tensor) -> tl.tensor:
    """The bucket of each pair; a float32 logarithm may be one off at a border, which whole seconds decide."""
    apart = tl.minimum(tl.abs(now[:, None] - then[None, :]), MOST_SECONDS).to(tl.int32)  # halves the registers
    guess = (tl.log(tl.maximum(apart, 1).to(tl.float32)) * BUCKETS_PER_LOG).to(tl.int32)
    guess = tl.minimum(guess, buckets - 1)
    under = (apart < tl.load(limits + guess)).to(tl.int32)
    over = (apart >= tl.load(limits + guess + 1)) & (guess < buckets - 1)
    return guess - under + over.to(tl.int32)


@triton.jit
def _score(
    q: tl.tensor, k: tl.tensor, scale: tl.tensor, place_q: tl.tensor, place_k: tl.tensor, now: tl.tensor,
    then: tl.tensor, position: tl.tensor, time: tl.tensor, limits: tl.tensor, furthest: tl.tensor, buckets: tl.tensor,
    POSITION: tl.constexpr, TIME: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """``q k^T scale + bias``, ``[BLOCK, BLOCK]`` float32."""
    score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if POSITION:
        apart = place_q[:, None] - place_k[None, :]
        score += tl.load(position + furthest + tl.minimum(tl.maximum(apart, -furthest), furthest)).to(tl.float32)
    if TIME:
        score += tl.load(time + _bucket(now, then, limits, buckets)).to(tl.float32)
    return score


@triton.jit
def _shown(up_to: tl.tensor, start: tl.tensor, to: tl.tensor, j: tl.tensor) -> tl.tensor:
    own = (j[None, :] >= start[:, None]) & (j[None, :] < to[:, None])
    return (j[None, :] < up_to[:, None]) | own


@triton.jit
def _forward_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, position: tl.tensor, time: tl.tensor, offsets: tl.tensor,
    seen: tl.tensor, times: tl.tensor, next_times: tl.tensor, limits: tl.tensor, out: tl.tensor, rows: tl.tensor,
    heads: tl.tensor, furthest: tl.tensor, buckets: tl.tensor, scale: tl.tensor, inverse: tl.tensor,
    q_token: tl.tensor, q_head: tl.tensor, k_token: tl.tensor, k_head: tl.tensor, v_token: tl.tensor,
    v_head: tl.tensor, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK: tl.constexpr, POSITION: tl.constexpr, TIME: tl.constexpr,
) -> None:  # fmt: skip
    slot, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first, length, start = _place(offsets, rows, slot, BLOCK)
    i, d, e = start + tl.arange(0, BLOCK), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    if start < length:
        queries = _rows(q, first, q_token, head * q_head, i, d, length, D)
        up_to, low = _number(seen, first, i, length, 0), _number(seen, first, i, length, 1)
        to, place_q = _number(seen, first, i, length, 2), _number(seen, first, i, length, 4)
        now = tl.load(next_times + first + i, mask=i < length, other=0)
        total = tl.zeros((BLOCK, BLOCK_E), tl.float32)
        for begin in tl.range(0, tl.maximum(tl.max(up_to, axis=0), tl.max(to, axis=0)), BLOCK):
            j = begin + tl.arange(0, BLOCK)
            keys = _rows(k, first, k_token, head * k_head, j, d, length, D)
            values = _rows(v, first, v_token, head * v_head, j, e, length, E)
            place_k = _number(seen, first, j, length, 4)
            then = tl.load(times + first + j, mask=j < length, other=0)
            score = _score(
                queries, keys, scale, place_q, place_k, now, then, position, time, limits, furthest, buckets,
                POSITION, TIME,
            )  # fmt: skip
            weight = tl.where(_shown(up_to, low, to, j), score * tl.sigmoid(score) * inverse, 0.0)
            total += tl.dot(weight.to(values.dtype), values, input_precision="ieee")
        at = (first + i)[:, None] * (heads * E) + head * E + e[None, :]
        tl.store(out + at, total.to(out.dtype.element_ty), mask=(i < length)[:, None] & (e < E)[None, :])


@triton.jit
def _key_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, position: tl.tensor, time: tl.tensor, offsets: tl.tensor,
    seen: tl.tensor, times: tl.tensor, next_times: tl.tensor, limits: tl.tensor, grad: tl.tensor, dk: tl.tensor,
    dv: tl.tensor, rows: tl.tensor, heads: tl.tensor, furthest: tl.tensor, buckets: tl.tensor, scale: tl.tensor,
    inverse: tl.tensor, q_token: tl.tensor, q_head: tl.tensor, k_token: tl.tensor, k_head: tl.tensor,
    v_token: tl.tensor, v_head: tl.tensor, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK: tl.constexpr, POSITION: tl.constexpr, TIME: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of a block of keys and values, from every query that sees one of them."""
    slot, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first, length, start = _place(offsets, rows, slot, BLOCK)
    j, d, e = start + tl.arange(0, BLOCK), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    if start < length:
        keys = _rows(k, first, k_token, head * k_head, j, d, length, D)
        values = _rows(v, first, v_token, head * v_head, j, e, length, E)
        place_k = _number(seen, first, j, length, 4)
        then = tl.load(times + first + j, mask=j < length, other=0)
        oldest = tl.load(seen + (first + j) * COLUMNS + 3, mask=j < length, other=2147483647)
        sum_k, sum_v = tl.zeros((BLOCK, BLOCK_D), tl.float32), tl.zeros((BLOCK, BLOCK_E), tl.float32)
        for begin in tl.range(tl.min(oldest, axis=0) // BLOCK * BLOCK, length, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            queries = _rows(q, first, q_token, head * q_head, i, d, length, D)
            outer = _rows(grad, first, heads * E, head * E, i, e, length, E)
            up_to, low = _number(seen, first, i, length, 0), _number(seen, first, i, length, 1)
            to, place_q = _number(seen, first, i, length, 2), _number(seen, first, i, length, 4)
            now = tl.load(next_times + first + i, mask=i < length, other=0)
            score = _score(
                queries, keys, scale, place_q, place_k, now, then, position, time, limits, furthest, buckets,
                POSITION, TIME,
            )  # fmt: skip
            share, shown = tl.sigmoid(score), _shown(up_to, low, to, j)
            weight = tl.where(shown, score * share * inverse, 0.0)
            sum_v += tl.dot(tl.trans(weight.to(outer.dtype)), outer, input_precision="ieee")
            slope = share * (1.0 + score * (1.0 - share)) * inverse
            given = tl.dot(outer, tl.trans(values), input_precision="ieee")
            given = tl.where(shown, given * slope, 0.0)
            sum_k += tl.dot(tl.trans(given.to(queries.dtype)), queries, input_precision="ieee")
        at_d = (first + j)[:, None] * (heads * D) + head * D + d[None, :]
        at_e = (first + j)[:, None] * (heads * E) + head * E + e[None, :]
        mask = (j < length)[:, None]
        tl.store(dk + at_d, (sum_k * scale).to(dk.dtype.element_ty), mask=mask & (d < D)[None, :])
        tl.store(dv + at_e, sum_v.to(dv.dtype.element_ty), mask=mask & (e < E)[None, :])


@triton.jit
def _add_by_distance(table: tl.tensor, totals: tl.tensor, distance: tl.tensor, furthest: tl.tensor) -> None:
    """Adds ``totals`` of neighbouring distances to this group's table; whatever lies further falls on its ends."""
    inside = tl.abs(distance) < furthest
    at = table + furthest + distance
    tl.store(at, tl.load(at, mask=inside, other=0.0) + totals, mask=inside)
    end = tl.arange(0, 2)
    above = tl.sum(tl.where(distance >= furthest, totals, 0.0), axis=0)
    below = tl.sum(tl.where(distance <= -furthest, totals, 0.0), axis=0)
    at_end = table + end * 2 * furthest
    tl.store(at_end, tl.load(at_end) + tl.where(end == 1, above, below))
    tl.debug_barrier()  # the next block's threads hold other places of the table


@triton.jit
def _position_gradient(
    table: tl.tensor, given: tl.tensor, shown: tl.tensor, place_q: tl.tensor, place_k: tl.tensor, i: tl.tensor,
    j: tl.tensor, length: tl.tensor, furthest: tl.tensor, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    t = tl.arange(0, 2 * BLOCK)
    moved = tl.max(tl.where(i < length, tl.abs(place_q - i), 0), axis=0)
    moved += tl.max(tl.where(j < length, tl.abs(place_k - j), 0), axis=0)
    if moved == 0:  # a diagonal is a distance: each row of the block is shifted by its number, then columns are summed
        row = tl.arange(0, BLOCK)
        column = row[:, None] - t[None, :] + (BLOCK - 1)
        valid = (column >= 0) & (column < BLOCK)
        shifted = tl.gather(given, tl.where(valid, column, 0), 1)
        totals = tl.sum(tl.where(valid, shifted, 0.0), axis=0)
        _add_by_distance(table, totals, tl.min(i, axis=0) - tl.min(j, axis=0) + t - (BLOCK - 1), furthest)
    else:  # targets stand where their group would be the only one: distance by distance
        apart = place_q[:, None] - place_k[None, :]
        least = tl.min(tl.min(tl.where(shown, apart, 2147483647), axis=1), axis=0)
        most = tl.max(tl.max(tl.where(shown, apart, -2147483647), axis=1), axis=0)
        for begin in tl.range(least, most + 1, 2 * BLOCK):
            totals = tl.zeros((2 * BLOCK,), tl.float32)
            for distance in tl.range(begin, tl.minimum(begin + 2 * BLOCK, most + 1)):
                total = tl.sum(tl.sum(tl.where(apart == distance, given, 0.0), axis=1), axis=0)
                totals += tl.where(t == distance - begin, total, 0.0)
            _add_by_distance(table, totals, begin + t, furthest)


@triton.jit
def _query_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, position: tl.tensor, time: tl.tensor, offsets: tl.tensor,
    seen: tl.tensor, times: tl.tensor, next_times: tl.tensor, limits: tl.tensor, grad: tl.tensor, dq: tl.tensor,
    dposition: tl.tensor, dtime: tl.tensor, rows: tl.tensor, blocks: tl.tensor, heads: tl.tensor, furthest: tl.tensor,
    buckets: tl.tensor, scale: tl.tensor, inverse: tl.tensor, q_token: tl.tensor, q_head: tl.tensor,
    k_token: tl.tensor, k_head: tl.tensor, v_token: tl.tensor, v_head: tl.tensor, D: tl.constexpr, E: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK: tl.constexpr, POSITION: tl.constexpr,
    TIME: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of queries, and this group's part of those of both tables."""
    group, d, e = tl.program_id(0), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    b = tl.arange(0, BLOCK_B)
    by_bucket = tl.zeros((BLOCK_B,), tl.float32)
    table = dposition + group.to(tl.int64) * (2 * furthest + 1)
    for block in tl.range(group, blocks, tl.num_programs(0)):
        slot, head = block // heads, block % heads
        first, length, start = _place(offsets, rows, slot, BLOCK)
        i = start + tl.arange(0, BLOCK)
        if start < length:
            queries = _rows(q, first, q_token, head * q_head, i, d, length, D)
            outer = _rows(grad, first, heads * E, head * E, i, e, length, E)
            up_to, low = _number(seen, first, i, length, 0), _number(seen, first, i, length, 1)
            to, place_q = _number(seen, first, i, length, 2), _number(seen, first, i, length, 4)
            now = tl.load(next_times + first + i, mask=i < length, other=0)
            total = tl.zeros((BLOCK, BLOCK_D), tl.float32)
            for begin in tl.range(0, tl.maximum(tl.max(up_to, axis=0), tl.max(to, axis=0)), BLOCK):
                j = begin + tl.arange(0, BLOCK)
                keys = _rows(k, first, k_token, head * k_head, j, d, length, D)
                values = _rows(v, first, v_token, head * v_head, j, e, length, E)
                place_k = _number(seen, first, j, length, 4)
                then = tl.load(times + first + j, mask=j < length, other=0)
                score = _score(
                    queries, keys, scale, place_q, place_k, now, then, position, time, limits, furthest, buckets,
                    POSITION, TIME,
                )  # fmt: skip
                share, shown = tl.sigmoid(score), _shown(up_to, low, to, j)
                given = tl.dot(outer, tl.trans(values), input_precision="ieee")
                given = tl.where(shown, given * share * (1.0 + score * (1.0 - share)) * inverse, 0.0)
                total += tl.dot(given.to(keys.dtype), keys, input_precision="ieee")
                if POSITION:
                    _position_gradient(table, given, shown, place_q, place_k, i, j, length, furthest, BLOCK)
                if TIME:  # times are sorted as a rule: a block knows few buckets
                    found = _bucket(now, then, limits, buckets)
                    least = tl.min(tl.min(tl.where(shown, found, buckets), axis=1), axis=0)
                    most = tl.max(tl.max(tl.where(shown, found, -1), axis=1), axis=0)
                    for bucket in tl.range(least, most + 1):
                        part = tl.sum(tl.sum(tl.where(found == bucket, given, 0.0), axis=1), axis=0)
                        by_bucket += tl.where(b == bucket, part, 0.0)
            at = (first + i)[:, None] * (heads * D) + head * D + d[None, :]
            mask = (i < length)[:, None] & (d < D)[None, :]
            tl.store(dq + at, (total * scale).to(dq.dtype.element_ty), mask=mask)
    if TIME:
        tl.store(dtime + group.to(tl.int64) * buckets + b, by_bucket, mask=b < buckets)


def _sizes(d: int, e: int, dtype: torch.dtype, biased: bool, backward: bool) -> tuple[dict[str, int], int]:
    """Widths of a head as they are and as powers of two, the tokens of a block, and warps.

    They compile to (next to) no spills for heads of 64 on sm_80 and sm_90. A bias, whose every pair has a place and a
    bucket, needs room.
    """
    block_d, block_e = (max(16, triton.next_power_of_2(width)) for width in (d, e))
    narrow = dtype != torch.float32 and max(block_d, block_e) <= 64
    block = 64 if narrow and not (biased and backward) else 32
    warps = 8 if dtype == torch.float32 or (biased and not backward) else 4
    return {"D": d, "E": e, "BLOCK_D": block_d, "BLOCK_E": block_e, "BLOCK": block}, warps


def _limits(buckets: int, device: torch.device) -> Tensor:
    """``[buckets + 1]`` int32, the fewest seconds of each bucket, and an end that is read and not asked."""
    seconds = [0, *bucket_borders(max(buckets, 1)), 2**62]
    return torch.tensor([min(second, 2**31 - 1) for second in seconds], dtype=torch.int32, device=device)


def _slots(tokens: int, rows: int, sizes: dict[str, int]) -> int:
    """Blocks that rows may have: each begins at ``offsets[u] // BLOCK + u``, so that no two share one."""
    return tokens // sizes["BLOCK"] + rows


class _HSTUAttention(torch.autograd.Function):
    """Forward and backward launches; tensors as in :func:`hstu_attention_triton`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, position: Tensor, time: Tensor, *rest: Any) -> Tensor:
        offsets, seen, times, next_times, scale, max_length = rest
        q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
        (tokens, heads, d), e, rows = q.shape, v.shape[2], offsets.numel() - 1
        ctx.biased = {"POSITION": position.numel() > 0, "TIME": time.numel() > 0}
        ctx.numbers = (position.numel() // 2, time.numel(), float(scale), 1 / max_length)
        sizes, warps = _sizes(d, e, q.dtype, any(ctx.biased.values()), backward=False)
        limits = _limits(time.numel(), q.device)
        out = torch.empty((tokens, heads, e), dtype=v.dtype, device=v.device)
        with torch.cuda.device(q.get_device()):
            _forward_kernel[(_slots(tokens, rows, sizes) * heads,)](
                q, k, v, position, time, offsets, seen, times, next_times, limits, out, rows, heads, *ctx.numbers,
                *_strides(q, k, v), **sizes, **ctx.biased, num_warps=warps,
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, position, time, offsets, seen, times, next_times, limits)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, position, time, *inputs = ctx.saved_tensors
        (tokens, heads, d), rows = q.shape, inputs[0].numel() - 1
        sizes, warps = _sizes(d, v.shape[2], q.dtype, any(ctx.biased.values()), backward=True)
        blocks = _slots(tokens, rows, sizes) * heads
        furthest, buckets = ctx.numbers[:2]
        groups = min(GROUPS, blocks)
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        dposition, dtime = (
            torch.zeros((groups if used else 1, width), dtype=torch.float32, device=q.device)
            for used, width in ((ctx.biased["POSITION"], 2 * furthest + 1), (ctx.biased["TIME"], max(buckets, 1)))
        )
        common = (q, k, v, position, time, *inputs, grad.contiguous())
        block_b = max(16, triton.next_power_of_2(max(buckets, 1)))
        with torch.cuda.device(q.get_device()):
            _key_kernel[(blocks,)](
                *common, dk, dv, rows, heads, *ctx.numbers, *_strides(q, k, v), **sizes, **ctx.biased, num_warps=warps,
            )  # fmt: skip
            _query_kernel[(groups,)](
                *common, dq, dposition, dtime, rows, blocks, heads, *ctx.numbers, *_strides(q, k, v), **sizes,
                **ctx.biased, BLOCK_B=block_b, num_warps=warps,
            )  # fmt: skip
        of_position = dposition.sum(0).to(position.dtype) if ctx.biased["POSITION"] else None
        of_time = dtime.sum(0).to(time.dtype) if ctx.biased["TIME"] else None
        return dq, dk, dv, of_position, of_time, *(None,) * 6


def _strides(*tensors: Tensor) -> list[int]:
    """Distances between tokens and between heads."""
    return [step for tensor in tensors for step in tensor.stride()[:2]]


def hstu_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor,
    time: Tensor,
    offsets: Tensor,
    seen: Tensor,
    times: Tensor,
    next_times: Tensor,
    *,
    scale: float = 1.0,
    max_length: int = 1,
) -> Tensor:
    """Tensors as in :func:`models.kernels.hstu_attention.reference.hstu_attention_reference`, an empty table for none.

    Inputs in fp32, bf16 or fp16, of any stride but for a head's numbers, which stand side by side; gradients in the
    dtype of their inputs, equal from run to run. Not differentiable twice.

    Raises:
        TypeError: a tensor is in float64, which this path would silently round.
        ValueError: heads wider than 128, whose blocks do not fit the registers.
    """
    if any(tensor.dtype == torch.float64 for tensor in (q, k, v, position, time)):
        raise TypeError("the Triton attention computes in float32: cast the inputs or choose the reference path")
    if max(q.shape[2], v.shape[2]) > MAX_WIDTH:
        width = max(q.shape[2], v.shape[2])
        raise ValueError(
            f"the Triton attention takes heads of at most {MAX_WIDTH} numbers, not {width}: use more heads"
        )
    if not q.numel() or not v.numel():
        return v.new_zeros(v.shape)
    if position.numel() == 1:
        position = position.expand(3)  # both ends of a table are places of their own
    numbers = (x.contiguous() for x in (position, time, offsets, seen, times, next_times))
    position, time, *rest = numbers
    return _HSTUAttention.apply(q, k, v, position, time, *rest, scale, max_length)  # type: ignore[no-untyped-call]
