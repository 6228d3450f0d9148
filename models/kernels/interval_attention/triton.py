"""Interval attention on the GPU: two Triton kernels on packed rows, deterministic, nothing of the pairs in memory.

Forward, a program takes a block of 32 queries of one head. What the queries give with each interval vector,
``[32, S + 1]``, is one product, laid down in the program's own scratch; pairs look it up by their bucket. A first walk
over the keys finds each query's sum, a second one the weights, which meet the values, and are added up by bucket before
they meet the values' table: S + 1 products a query, as many as pairs at 257 tokens, instead of two vectors a pair.

Adding up by bucket needs no atomics: times never decrease inside a row, so a query's keys of one bucket are neighbours;
a scan along the block adds each run up and the run's last key alone writes. (Where times do decrease, keys are added
one after another.) Backward, a program takes a head of a whole row, because only so do the gradients of its keys and
values have one writer; the tables' gradients are products of the sums by bucket with the queries, one part for each of
at most ``GROUPS`` programs. Every sum has a fixed order: equal bits from run to run, with ``training.deterministic`` or
without, and no slower for it, since atomics would meet on few rows. A batch with fewer rows times heads than the GPU
has processors leaves some idle backward.

What moves, of a token with H heads of d in fp32: forward at least 16 H d + 8 bytes (q, k, v, out, times: 1,032 at H d =
64) and 4 H more for the logarithms of the sums; backward at least 32 H d + 4 H + 8. Keys and values are read again by
each block of newer queries, twice forward, and backward their gradients as well: L / 64 times on average, from the
cache. The scratch is 4 * 32 * (S + 1) numbers a program backward, half of it forward (38 MB at S = 256, of which
buckets that occur are touched), whatever the batch. Kept for the backward pass: q, k, v, out, times, the logarithms.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.kernels.interval_attention.intervals import whole_units
from models.kernels.packed_attention.dropout import threshold

try:
    import triton
except ImportError as error:
    raise ImportError(
        "the Triton kernels need the package 'triton' (comes with PyTorch's CUDA builds on Linux): "
        "install it or choose another kernel path"
    ) from error

from models.kernels.interval_attention import triton_kernels

MAX_WIDTH = 128  # of a head: what a block holds of it stays in registers
MAX_SPAN = 1 << 14  # of the tables: that many days are a number of 32 bits, in seconds
BLOCK = 32  # queries, and keys
TILE = 32  # interval vectors at a time
GROUPS = 256  # programs backward, each with a part of the tables' gradients; twice as many forward
STAGES = 1  # loads ahead of a walk would take the registers that a second program on a processor needs
SCRATCH = 1 << 26  # bytes for all programs together, unless one for each head takes more


def _sizes(d: int, span: int, unit: int, dropout: float) -> dict[str, Any]:
    """Constants of both kernels; products want sides of at least 16."""
    padded = max(16, triton.next_power_of_2(d))
    buckets = triton.cdiv(span + 1, TILE) * TILE
    sizes = {"D": d, "BLOCK_D": padded, "BLOCK": BLOCK, "TILE": TILE, "BUCKETS": buckets, "UNIT": unit}
    return {**sizes, "DROP": dropout > 0}


def _warps(dtype: torch.dtype, backward: bool) -> int:
    """With fewer, a thread's share of a block does not fit its registers."""
    return 8 if backward or dtype == torch.float32 else 4


def _programs(wanted: int, most: int, tables: int, buckets: int, heads: int) -> int:
    """How many programs share ``wanted`` pieces of work: a multiple of the heads."""
    fitting = min(wanted, most, SCRATCH // (4 * tables * BLOCK * buckets))
    return max(fitting // heads, 1) * heads


class _IntervalAttention(torch.autograd.Function):
    """Launches; tensors as in :func:`interval_attention_triton`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, rk: Tensor, rv: Tensor, times: Tensor, offsets: Tensor, unit: int,
        dropout: float,
    ) -> Tensor:  # fmt: skip
        q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
        rk, rv, times, offsets = (x.contiguous() for x in (rk, rv, times, offsets))
        (tokens, heads, d), span, rows = q.shape, rk.shape[0] - 1, offsets.numel() - 1
        ctx.sizes = _sizes(d, span, unit, dropout)
        # Of the device, so that a recorded graph draws anew each time; on a CPU what draw_seed gives.
        seed = torch.randint(2**63 - 1, (1,), device=q.device) if dropout > 0 else offsets
        ctx.numbers = heads, span, 1 / math.sqrt(d), threshold(dropout), 1 / (1 - dropout), *_strides(q, k, v)
        out, logs = torch.empty(q.shape, dtype=q.dtype, device=q.device), times.new_empty(tokens, heads).float()
        blocks = (tokens // BLOCK + rows) * heads  # rows have room from offsets[u] // BLOCK + u on
        groups = _programs(blocks, 2 * GROUPS, 2, ctx.sizes["BUCKETS"], heads)
        scratch = logs.new_empty(groups, 2, BLOCK, ctx.sizes["BUCKETS"])
        with torch.cuda.device(q.get_device()):
            triton_kernels.forward_kernel[(groups,)](
                q, k, v, rk, rv, times, offsets, seed, out, logs, scratch, rows, blocks, *ctx.numbers, **ctx.sizes,
                num_warps=_warps(q.dtype, backward=False), num_stages=STAGES,
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, rk, rv, times, offsets, seed, out, logs)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        q, k, v, rk, rv, _, offsets = inputs[:7]
        (_, heads, d), buckets = q.shape, ctx.sizes["BUCKETS"]
        items = (offsets.numel() - 1) * heads
        groups = _programs(items, GROUPS, 4, buckets, heads)
        dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        dk, dv = (torch.empty(x.shape, dtype=torch.float32, device=x.device) for x in (k, v))
        parts, scratch = dk.new_zeros(groups, 2, buckets, d), dk.new_empty(groups, 4, BLOCK, buckets)
        with torch.cuda.device(q.get_device()):
            triton_kernels.backward_kernel[(groups,)](
                *inputs, grad.contiguous(), dq, dk, dv, parts, scratch, items, *ctx.numbers, **ctx.sizes,
                num_warps=_warps(q.dtype, backward=True), num_stages=STAGES,
            )  # fmt: skip
        of_tables = parts.view(-1, heads, 2, buckets, d).sum(0)[:, :, : rk.shape[0]].transpose(0, 2)  # [S + 1, 2, H, d]
        drk, drv = (of_tables[:, place].to(table.dtype) for place, table in enumerate((rk, rv)))
        return dq, dk.to(k.dtype), dv.to(v.dtype), drk, drv, None, None, None, None


def _strides(*tensors: Tensor) -> list[int]:
    """Distances between tokens and between heads."""
    return [step for tensor in tensors for step in tensor.stride()[:2]]


def interval_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    interval_keys: Tensor,
    interval_values: Tensor,
    timestamps: Tensor,
    offsets: Tensor,
    unit: str | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Arguments as in :func:`models.kernels.interval_attention.interval_attention`.

    Inputs in fp32, bf16 or fp16, ``q``, ``k`` and ``v`` of any stride but for a head's numbers, which stand side by
    side; gradients in the dtype of their inputs, equal from run to run. Not differentiable twice. Dropout is the
    reference's hash, its seed from the generator of the device.

    Raises:
        TypeError: a tensor is in float64, which this path would silently round.
        ValueError: heads wider than 128, or tables of more than 16,384 intervals.
    """
    if any(x.dtype == torch.float64 for x in (q, k, v, interval_keys, interval_values)):
        raise TypeError("the Triton attention computes in float32: cast the inputs or choose the reference path")
    if q.shape[2] > MAX_WIDTH:
        raise ValueError(
            f"the Triton attention takes heads of at most {MAX_WIDTH} numbers, not {q.shape[2]}: use more heads"
        )
    if interval_keys.shape[0] - 1 > MAX_SPAN:
        raise ValueError(
            f"the Triton attention takes a time_span of at most {MAX_SPAN:,}, not {interval_keys.shape[0] - 1:,}"
        )
    if not q.numel():
        return torch.zeros_like(q)
    times, length = whole_units(timestamps, offsets, unit)
    tables = interval_keys, interval_values
    return _IntervalAttention.apply(q, k, v, *tables, times, offsets, length, dropout)  # type: ignore[no-untyped-call]
