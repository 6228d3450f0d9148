"""Selective scan on the GPU: two Triton kernels on packed rows, deterministic, fp32 inside whatever the inputs are.

How the work is cut. One program owns (row, ``BLOCK_D`` channels) and walks its row in chunks of ``CHUNK`` tokens. A
chunk is a tile ``[CHUNK, N, BLOCK_D]`` whose time axis lies inside a thread, so that the scan along it is CHUNK fused
multiply-adds in registers; loads along D are coalesced, those of the next chunk are in flight meanwhile, and barriers
are paid once a chunk instead of once a token. No program waits for another and none uses an atomic: sums over rows or
over blocks of channels leave as partial sums that one ``torch.sum`` adds up in a fixed order.

What is kept for the backward pass. The state at the start of every chunk, ``[chunks, N, D]`` fp32: N / CHUNK times the
size of x, never ``[T, N, D]``. The backward kernel walks the chunks from the newest to the oldest and rebuilds the
states of one chunk from its start: running the recurrence backwards would divide by decays that underflow.

One configuration, no autotuning: a step must not depend on timings, and the interpreter knows one. 512 (state, channel)
pairs a program, on 4 warps forward and 8 backward, are 32 and 16 values a thread and tile: without spills on sm_80 and
sm_90 up to N = 64, which the compile test holds. The figures behind the choice are the compiler's (registers, spills,
shuffles, barriers), not timings. A row is walked in sequence: a batch of few very long rows leaves the GPU idle and
would need a scan that is parallel over chunks as well.

Source of the equations: Gu and Dao 2023, "Mamba", arXiv 2312.00752.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        "the Triton kernels need the package 'triton' (comes with PyTorch's CUDA builds on Linux): "
        "install it or choose another kernel path"
    ) from error

CHUNK = 8  # tokens a tile; the kept states shrink with it, the registers of a tile grow with it
PAIRS = 512  # (state, channel) pairs a program
MAX_STATES = 128
FORWARD_WARPS = 4
BACKWARD_WARPS = 8


@triton.jit
def _at(tile: tl.tensor, k: tl.tensor, i: tl.constexpr) -> tl.tensor:
    """Token ``i`` of a tile ``[CHUNK, N, D]``: integer zeros fold away, so that this names registers and moves none."""
    bits = tl.where(k[:, None, None] == i, tile.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, axis=0).to(tl.float32, bitcast=True)


@triton.jit
def _scan(
    decay: tl.tensor, drive: tl.tensor, h: tl.tensor, k: tl.tensor, CHUNK: tl.constexpr, REVERSE: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """``h = decay h + drive`` along a tile ``[CHUNK, N, D]``: every ``h``, and the last one.

    Not ``tl.associative_scan``: backwards in time that one turns the lanes of the warp around, 5 shuffles a value.
    """
    states = drive
    for i in tl.static_range(CHUNK):
        at = CHUNK - 1 - i if REVERSE else i
        h = _at(decay, k, at) * h + _at(drive, k, at)
        states = tl.where(k[:, None, None] == at, h[None, :, :], states)
    return states, h


@triton.jit
def _softplus(v: tl.tensor) -> tl.tensor:
    """``log(1 + exp(v))``. log(1 + e) loses small steps to rounding; the series of 2 atanh(e / (2 + e)) does not."""
    e = tl.exp(-tl.abs(v))
    s = e / (2.0 + e)  # at most 1/3
    q = s * s
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
    return tl.maximum(v, 0.0) + 2.0 * s * series


@triton.jit
def _tile(
    base: tl.tensor, first: tl.tensor, stride: tl.tensor, t: tl.tensor, columns: tl.tensor, mask: tl.tensor
) -> tl.tensor:
    """``[t, columns]`` of a packed tensor, counted from token ``first`` (64-bit), as fp32; 0 outside the mask."""
    return tl.load(base + first * stride + t[:, None] * stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _place(offsets: tl.tensor, width: tl.tensor, BLOCK_D: tl.constexpr) -> tuple[tl.tensor, ...]:
    """Row, block, channels, first token and length of this program; a row's blocks are neighbours and share b and c."""
    blocks = tl.cdiv(width, BLOCK_D)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    first = tl.load(offsets + row)
    length = (tl.load(offsets + row + 1) - first).to(tl.int32)
    return row, block, block * BLOCK_D + tl.arange(0, BLOCK_D), first, length


@triton.jit
def _parameters(
    dt_bias: tl.tensor, a: tl.tensor, skip: tl.tensor, d: tl.tensor, n: tl.tensor, width: tl.tensor, N: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """``a`` as ``[N, D]``, dt_bias and skip; 0 outside, where the state then stays 0."""
    pair = (n < N)[:, None] & (d < width)[None, :]
    rate = tl.load(a + d[None, :] * N + n[:, None], mask=pair, other=0.0).to(tl.float32)
    bias = tl.load(dt_bias + d, mask=d < width, other=0.0).to(tl.float32)
    return rate, bias, tl.load(skip + d, mask=d < width, other=0.0).to(tl.float32), pair


@triton.jit
def _forward_kernel(
    x: tl.tensor, dt: tl.tensor, dt_bias: tl.tensor, a: tl.tensor, b: tl.tensor, c: tl.tensor, skip: tl.tensor,
    z: tl.tensor, offsets: tl.tensor, y: tl.tensor, starts: tl.tensor, width: tl.tensor, x_stride: tl.tensor,
    dt_stride: tl.tensor, b_stride: tl.tensor, c_stride: tl.tensor, z_stride: tl.tensor,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, KEEP: tl.constexpr,
) -> None:  # fmt: skip
    n, k = tl.arange(0, BLOCK_N), tl.arange(0, CHUNK)
    row, _, d, first, length = _place(offsets, width, BLOCK_D)
    rate, bias, gain, pair = _parameters(dt_bias, a, skip, d, n, width, N)
    slot = first // CHUNK + row  # rows never share a slot: see _slots
    h = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for chunk in tl.range(0, tl.cdiv(length, CHUNK), num_stages=2):
        t = chunk * CHUNK + k
        at_d = (t < length)[:, None] & (d < width)[None, :]
        at_n = (t < length)[:, None] & (n < N)[None, :]
        xs = _tile(x, first, x_stride, t, d, at_d)
        delta = tl.where(at_d, _softplus(_tile(dt, first, dt_stride, t, d, at_d) + bias[None, :]), 0.0)
        gate = _tile(z, first, z_stride, t, d, at_d)
        bs = _tile(b, first, b_stride, t, n, at_n)
        cs = _tile(c, first, c_stride, t, n, at_n)
        if KEEP:
            tl.store(starts + ((slot + chunk) * N + n[:, None]) * width + d[None, :], h, mask=pair)
        decay = tl.exp(delta[:, None, :] * rate[None, :, :])  # [CHUNK, N, D]
        states, h = _scan(decay, (delta * xs)[:, None, :] * bs[:, :, None], h, k, CHUNK, False)
        ys = (tl.sum(states * cs[:, :, None], axis=1) + gain[None, :] * xs) * gate * tl.sigmoid(gate)
        tl.store(y + first * width + t[:, None] * width + d[None, :], ys.to(y.dtype.element_ty), mask=at_d)


@triton.jit
def _backward_kernel(
    x: tl.tensor, dt: tl.tensor, dt_bias: tl.tensor, a: tl.tensor, b: tl.tensor, c: tl.tensor, skip: tl.tensor,
    z: tl.tensor, offsets: tl.tensor, starts: tl.tensor, dy: tl.tensor, dx: tl.tensor, ddt: tl.tensor, dz: tl.tensor,
    db: tl.tensor, dc: tl.tensor, da: tl.tensor, dbias: tl.tensor, dskip: tl.tensor, tokens: tl.tensor,
    width: tl.tensor, x_stride: tl.tensor, dt_stride: tl.tensor, b_stride: tl.tensor, c_stride: tl.tensor,
    z_stride: tl.tensor, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
) -> None:  # fmt: skip
    n, k = tl.arange(0, BLOCK_N), tl.arange(0, CHUNK)
    row, block, d, first, length = _place(offsets, width, BLOCK_D)
    rate, bias, gain, pair = _parameters(dt_bias, a, skip, d, n, width, N)
    slot = first // CHUNK + row
    g_later = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)  # gradient of the state at the first token of the later chunk
    sum_a = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    sum_bias, sum_skip = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    chunks = tl.cdiv(length, CHUNK)
    for done in tl.range(0, chunks, num_stages=2):
        chunk = chunks - 1 - done
        t = chunk * CHUNK + k
        at_d = (t < length)[:, None] & (d < width)[None, :]
        at_n = (t < length)[:, None] & (n < N)[None, :]
        xs = _tile(x, first, x_stride, t, d, at_d)
        raw = _tile(dt, first, dt_stride, t, d, at_d) + bias[None, :]
        delta = tl.where(at_d, _softplus(raw), 0.0)
        bs = _tile(b, first, b_stride, t, n, at_n)
        cs = _tile(c, first, c_stride, t, n, at_n)
        # the states of this chunk, from its start
        start = tl.load(starts + ((slot + chunk) * N + n[:, None]) * width + d[None, :], mask=pair, other=0.0)
        drive = (delta * xs)[:, None, :] * bs[:, :, None]
        states, _ = _scan(tl.exp(delta[:, None, :] * rate[None, :, :]), drive, start, k, CHUNK, False)
        # the gate
        gate = _tile(z, first, z_stride, t, d, at_d)
        sigmoid = tl.sigmoid(gate)
        grad = _tile(dy, first, width, t, d, at_d)
        dscan = grad * gate * sigmoid
        dgate = tl.sum(states * cs[:, :, None], axis=1) + gain[None, :] * xs
        dgate = grad * dgate * sigmoid * (1.0 + gate * (1.0 - sigmoid))
        # the gradient of every state: the same recurrence from the newest token, with the decay of the token after
        after = (t + 1 < length)[:, None] & (d < width)[None, :]
        delta_after = tl.where(after, _softplus(_tile(dt, first + 1, dt_stride, t, d, after) + bias[None, :]), 0.0)
        decay_after = tl.exp(delta_after[:, None, :] * rate[None, :, :])
        g, g_later = _scan(decay_after, dscan[:, None, :] * cs[:, :, None], g_later, k, CHUNK, True)
        # states - drive = decay * previous state, without a shift along time and without a division
        through_decay = g * (states - drive)
        ddrive = tl.sum(g * bs[:, :, None], axis=1)
        draw = (tl.sum(through_decay * rate[None, :, :], axis=1) + xs * ddrive) * tl.sigmoid(raw)
        sum_a += tl.sum(through_decay * delta[:, None, :], axis=0)
        sum_bias += tl.sum(draw, axis=0)  # 0 where nothing is: g and xs are
        sum_skip += tl.sum(dscan * xs, axis=0)
        out = first * width + t[:, None] * width + d[None, :]
        tl.store(dx + out, (delta * ddrive + gain[None, :] * dscan).to(dx.dtype.element_ty), mask=at_d)
        tl.store(ddt + out, draw.to(ddt.dtype.element_ty), mask=at_d)
        tl.store(dz + out, dgate.to(dz.dtype.element_ty), mask=at_d)
        part = (block * tokens + first) * N + t[:, None] * N + n[None, :]
        tl.store(db + part, tl.sum(g * (delta * xs)[:, None, :], axis=2), mask=at_n)
        tl.store(dc + part, tl.sum(states * dscan[:, None, :], axis=2), mask=at_n)
    tl.store(da + (row * N + n[:, None]) * width + d[None, :], sum_a, mask=pair)
    tl.store(dbias + row * width + d, sum_bias, mask=d < width)
    tl.store(dskip + row * width + d, sum_skip, mask=d < width)


def _slots(tokens: int, rows: int) -> int:
    """Room for every row's chunks when row ``u`` begins at ``offsets[u] // CHUNK + u``.

    ``floor(p + q) >= floor(p) + floor(q)`` keeps the rows apart, and no count has to come back from the GPU.
    """
    return tokens // CHUNK + rows


def _blocks(states: int) -> tuple[int, int]:
    """``BLOCK_N`` and ``BLOCK_D``: all states of 64 channels at most, and of 8 (one 32-byte sector) at least."""
    block_n = triton.next_power_of_2(states)
    return block_n, min(64, max(8, PAIRS // block_n))


class _SelectiveScan(torch.autograd.Function):
    """Forward and backward launches; tensors as in :func:`selective_scan_triton`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        x, dt, dt_bias, a, b, c, skip, z, offsets = (t if t.stride(-1) == 1 else t.contiguous() for t in inputs)
        dt_bias, a, skip = dt_bias.contiguous(), a.contiguous(), skip.contiguous()
        (tokens, width), states, rows = x.shape, a.shape[1], offsets.numel() - 1
        block_n, block_d = _blocks(states)
        keep = any(ctx.needs_input_grad)
        y = torch.empty((tokens, width), dtype=x.dtype, device=x.device)
        starts = torch.empty((_slots(tokens, rows) if keep else 0, states, width), dtype=torch.float32, device=x.device)
        with torch.cuda.device(x.get_device()):
            _forward_kernel[(rows * triton.cdiv(width, block_d),)](
                x, dt, dt_bias, a, b, c, skip, z, offsets, y, starts, width,
                x.stride(0), dt.stride(0), b.stride(0), c.stride(0), z.stride(0),
                N=states, BLOCK_N=block_n, BLOCK_D=block_d, CHUNK=CHUNK, KEEP=keep, num_warps=FORWARD_WARPS,
            )  # fmt: skip
        ctx.save_for_backward(x, dt, dt_bias, a, b, c, skip, z, offsets, starts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, dt_bias, a, b, c, skip, z, offsets, starts = ctx.saved_tensors
        (tokens, width), states, rows = x.shape, a.shape[1], offsets.numel() - 1
        block_n, block_d = _blocks(states)
        blocks = triton.cdiv(width, block_d)

        def partial(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=x.device)

        dx, ddt, dz = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, dt, z))
        db, dc = partial(blocks, tokens, states), partial(blocks, tokens, states)
        da, dbias, dskip = partial(rows, states, width), partial(rows, width), partial(rows, width)
        with torch.cuda.device(x.get_device()):
            _backward_kernel[(rows * blocks,)](
                x, dt, dt_bias, a, b, c, skip, z, offsets, starts, grad.contiguous(), dx, ddt, dz,
                db, dc, da, dbias, dskip, tokens, width,
                x.stride(0), dt.stride(0), b.stride(0), c.stride(0), z.stride(0),
                N=states, BLOCK_N=block_n, BLOCK_D=block_d, CHUNK=CHUNK, num_warps=BACKWARD_WARPS,
            )  # fmt: skip
        return (
            dx, ddt, dbias.sum(0).to(dt_bias.dtype), da.sum(0).t().to(a.dtype), db.sum(0).to(b.dtype),
            dc.sum(0).to(c.dtype), dskip.sum(0).to(skip.dtype), dz, None,
        )  # fmt: skip


def selective_scan_triton(
    x: Tensor, dt: Tensor, dt_bias: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, z: Tensor, offsets: Tensor
) -> Tensor:
    """Mamba-1's scan over packed rows; shapes and equations as in :func:`models.kernels.selective_scan.selective_scan`.

    Inputs in fp32, bf16 or fp16, rows of any stride (views of a wider projection are read in place); fp32 inside;
    gradients in the dtype of their inputs, equal from run to run. Not differentiable twice.

    Raises:
        TypeError: a tensor is in float64, which this path would silently round.
        ValueError: more than 128 states a channel, whose tile does not fit the registers.
    """
    tensors = (x, dt, dt_bias, a, b, c, skip, z)
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        raise TypeError("the Triton selective scan computes in float32: cast the inputs or choose the reference path")
    if a.shape[1] > MAX_STATES:
        raise ValueError(f"the Triton selective scan takes at most {MAX_STATES} states a channel, not {a.shape[1]}")
    return _SelectiveScan.apply(*tensors, offsets)  # type: ignore[no-untyped-call]
