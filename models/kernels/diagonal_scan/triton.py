"""S5's diagonal complex scan on the GPU: two Triton kernels on packed rows, deterministic, fp32 inside.

How the work is cut. One program, a single warp, owns (row, ``BLOCK`` complex states) and walks its row in chunks of
``CHUNK`` tokens. Exponentials, sines and the input factor are computed for the whole chunk at once, so that only one
complex multiply-add a token stands in the chain of the recurrence; the next chunk's loads are in flight meanwhile.
Eight states a program (one 32-byte sector a load) and not 32: a batch has few rows, the walk along a row is latency and
not bandwidth, and narrow blocks shorten it and leave more warps to hide it. The states are the output, so the backward
pass has nothing to rebuild. No atomics: the gradients of the parameters leave as one partial sum a row.

Source of the equations: Smith, Warrington, Linderman 2023, arXiv 2208.04933.
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

CHUNK = 8  # tokens a tile
BLOCK = 8  # complex states a program


@triton.jit
def _at(tile: tl.tensor, k: tl.tensor, i: tl.constexpr) -> tl.tensor:
    """Token ``i`` of a tile ``[CHUNK, P]``, exactly: integer zeros are added to its bits."""
    bits = tl.where(k[:, None] == i, tile.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, axis=0).to(tl.float32, bitcast=True)


@triton.jit
def _exp(re: tl.tensor, im: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The exponential of a complex number."""
    size = tl.exp(re)
    return size * tl.cos(im), size * tl.sin(im)


@triton.jit
def _divide(re: tl.tensor, im: tl.tensor, by_re: tl.tensor, by_im: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """A quotient of complex numbers."""
    inverse = 1.0 / (by_re * by_re + by_im * by_im)
    return (re * by_re + im * by_im) * inverse, (im * by_re - re * by_im) * inverse


@triton.jit
def _phi(re: tl.tensor, im: tl.tensor, exp_re: tl.tensor, exp_im: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """``(exp(z) - 1) / z``; below |z| = 1/2, where it cancels, 1 + z/2 (1 + z/3 (1 + ...)) to float32's last bit."""
    small = re * re + im * im < 0.25
    near_re = tl.where(small, re, 0.0)
    near_im = tl.where(small, im, 0.0)
    series_re = near_re * 0.0 + 1.0
    series_im = near_im * 0.0
    for i in tl.static_range(8):
        next_re = (near_re * series_re - near_im * series_im) * (1.0 / (9 - i)) + 1.0
        series_im = (near_re * series_im + near_im * series_re) * (1.0 / (9 - i))
        series_re = next_re
    far_re, far_im = _divide(exp_re - 1.0, exp_im, tl.where(small, 1.0, re), tl.where(small, 0.0, im))
    return tl.where(small, series_re, far_re), tl.where(small, series_im, far_im)


@triton.jit
def _dphi(
    re: tl.tensor, im: tl.tensor, exp_re: tl.tensor, exp_im: tl.tensor, phi_re: tl.tensor, phi_im: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """The derivative of phi, ``(exp(z) - phi(z)) / z``; below |z| = 1/2 its series ``sum (j + 1) z^j / (j + 2)!``."""
    small = re * re + im * im < 0.25
    near_re = tl.where(small, re, 0.0)
    near_im = tl.where(small, im, 0.0)
    series_re = near_re * 0.0 + 1.0
    series_im = near_im * 0.0
    for i in tl.static_range(8):  # 1/2 (1 + z 2/(1*3) (1 + z 3/(2*4) (1 + z 4/(3*5) (...))))
        ratio = (9 - i) / ((8 - i) * (10 - i))
        next_re = (near_re * series_re - near_im * series_im) * ratio + 1.0
        series_im = (near_re * series_im + near_im * series_re) * ratio
        series_re = next_re
    far_re, far_im = _divide(exp_re - phi_re, exp_im - phi_im, tl.where(small, 1.0, re), tl.where(small, 0.0, im))
    return tl.where(small, 0.5 * series_re, far_re), tl.where(small, 0.5 * series_im, far_im)


@triton.jit
def _tile(
    base: tl.tensor, first: tl.tensor, stride: tl.tensor, t: tl.tensor, columns: tl.tensor, mask: tl.tensor
) -> tl.tensor:
    """``[t, columns]`` of a packed tensor, counted from token ``first`` (64-bit), as fp32; 0 outside the mask."""
    return tl.load(base + first * stride + t[:, None] * stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _scan(
    decay_re: tl.tensor, decay_im: tl.tensor, drive_re: tl.tensor, drive_im: tl.tensor, s_re: tl.tensor,
    s_im: tl.tensor, k: tl.tensor, CHUNK: tl.constexpr, REVERSE: tl.constexpr,
) -> tuple[tl.tensor, ...]:  # fmt: skip
    """``s = decay s + drive`` along a complex tile ``[CHUNK, P]``: every ``s``, and the last one."""
    out_re, out_im = drive_re, drive_im
    for i in tl.static_range(CHUNK):
        at = CHUNK - 1 - i if REVERSE else i
        a_re, a_im = _at(decay_re, k, at), _at(decay_im, k, at)
        next_re = a_re * s_re - a_im * s_im + _at(drive_re, k, at)
        s_im = a_re * s_im + a_im * s_re + _at(drive_im, k, at)
        s_re = next_re
        out_re = tl.where(k[:, None] == at, s_re[None, :], out_re)
        out_im = tl.where(k[:, None] == at, s_im[None, :], out_im)
    return out_re, out_im, s_re, s_im


@triton.jit
def _place(offsets: tl.tensor, size: tl.tensor, BLOCK: tl.constexpr) -> tuple[tl.tensor, ...]:
    """Row, states, first token and length of this program."""
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.load(offsets + row)
    length = (tl.load(offsets + row + 1) - first).to(tl.int32)
    return row, tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK), first, length


@triton.jit
def _parameters(
    lambda_re: tl.tensor, lambda_im: tl.tensor, step_scale: tl.tensor, p: tl.tensor, size: tl.tensor
) -> tuple[tl.tensor, ...]:
    """Both parts of Lambda and the step's scale as rows ``[1, P]``."""
    rate_re = tl.load(lambda_re + p, mask=p < size, other=0.0).to(tl.float32)
    rate_im = tl.load(lambda_im + p, mask=p < size, other=0.0).to(tl.float32)
    scale = tl.load(step_scale + p, mask=p < size, other=0.0).to(tl.float32)
    return rate_re[None, :], rate_im[None, :], scale[None, :]


@triton.jit
def _forward_kernel(
    bu: tl.tensor, interval: tl.tensor, lambda_re: tl.tensor, lambda_im: tl.tensor, step_scale: tl.tensor,
    offsets: tl.tensor, states: tl.tensor, size: tl.tensor, bu_stride: tl.tensor,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr,
) -> None:  # fmt: skip
    k = tl.arange(0, CHUNK)
    _, p, first, length = _place(offsets, size, BLOCK)
    rate_re, rate_im, scale = _parameters(lambda_re, lambda_im, step_scale, p, size)
    s_re, s_im = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for chunk in tl.range(0, tl.cdiv(length, CHUNK), num_stages=2):
        t = chunk * CHUNK + k
        at = (t < length)[:, None] & (p < size)[None, :]
        gap = tl.load(interval + first + t, mask=t < length, other=0.0).to(tl.float32)
        bu_re = _tile(bu, first, bu_stride, t, p, at)
        bu_im = _tile(bu, first, bu_stride, t, p + size, at)
        step = gap[:, None] * scale
        decay_re, decay_im = _exp(rate_re * step, rate_im * step)
        phi_re, phi_im = _phi(rate_re * step, rate_im * step, decay_re, decay_im)
        drive_re = step * (phi_re * bu_re - phi_im * bu_im)
        drive_im = step * (phi_re * bu_im + phi_im * bu_re)
        out_re, out_im, s_re, s_im = _scan(decay_re, decay_im, drive_re, drive_im, s_re, s_im, k, CHUNK, False)
        out = states + first * 2 * size + t[:, None] * 2 * size + p[None, :]
        tl.store(out, out_re.to(states.dtype.element_ty), mask=at)
        tl.store(out + size, out_im.to(states.dtype.element_ty), mask=at)


@triton.jit
def _backward_kernel(
    bu: tl.tensor, interval: tl.tensor, lambda_re: tl.tensor, lambda_im: tl.tensor, step_scale: tl.tensor,
    offsets: tl.tensor, states: tl.tensor, grad: tl.tensor, dbu: tl.tensor, dlambda_re: tl.tensor,
    dlambda_im: tl.tensor, dscale: tl.tensor, size: tl.tensor, bu_stride: tl.tensor,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr,
) -> None:  # fmt: skip
    k = tl.arange(0, CHUNK)
    row, p, first, length = _place(offsets, size, BLOCK)
    rate_re, rate_im, scale = _parameters(lambda_re, lambda_im, step_scale, p, size)
    g_re, g_im = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)  # gradient of the state one token later
    sum_re, sum_im = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    sum_scale = tl.zeros((BLOCK,), tl.float32)
    chunks = tl.cdiv(length, CHUNK)
    for done in tl.range(0, chunks, num_stages=2):
        t = (chunks - 1 - done) * CHUNK + k
        at = (t < length)[:, None] & (p < size)[None, :]
        # gradient of every state: the recurrence from the newest token, with the conjugate decay of the token after
        step_after = tl.load(interval + first + 1 + t, mask=t + 1 < length, other=0.0).to(tl.float32)[:, None] * scale
        after_re, after_im = _exp(rate_re * step_after, rate_im * step_after)
        into_re = _tile(grad, first, 2 * size, t, p, at)
        into_im = _tile(grad, first, 2 * size, t, p + size, at)
        ds_re, ds_im, g_re, g_im = _scan(after_re, -after_im, into_re, into_im, g_re, g_im, k, CHUNK, True)
        # decay and input factor w = step phi(z) once more, and the gradient of bu
        gap = tl.load(interval + first + t, mask=t < length, other=0.0).to(tl.float32)[:, None]
        step = gap * scale
        z_re, z_im = rate_re * step, rate_im * step
        decay_re, decay_im = _exp(z_re, z_im)
        phi_re, phi_im = _phi(z_re, z_im, decay_re, decay_im)
        out = dbu + first * 2 * size + t[:, None] * 2 * size + p[None, :]
        tl.store(out, (step * (phi_re * ds_re + phi_im * ds_im)).to(dbu.dtype.element_ty), mask=at)
        tl.store(out + size, (step * (phi_re * ds_im - phi_im * ds_re)).to(dbu.dtype.element_ty), mask=at)
        # gradients of decay (times its conjugate) and of w, as complex numbers: conj(partner) * ds
        before = at & (t > 0)[:, None]
        prev_re = _tile(states, first - 1, 2 * size, t, p, before)
        prev_im = _tile(states, first - 1, 2 * size, t, p + size, before)
        kept_re, kept_im = decay_re * prev_re - decay_im * prev_im, decay_re * prev_im + decay_im * prev_re
        da_re, da_im = kept_re * ds_re + kept_im * ds_im, kept_re * ds_im - kept_im * ds_re
        bu_re = _tile(bu, first, bu_stride, t, p, at)
        bu_im = _tile(bu, first, bu_stride, t, p + size, at)
        dw_re, dw_im = bu_re * ds_re + bu_im * ds_im, bu_re * ds_im - bu_im * ds_re
        slope_re, slope_im = _dphi(z_re, z_im, decay_re, decay_im, phi_re, phi_im)
        sum_re += tl.sum(step * (da_re + step * (slope_re * dw_re + slope_im * dw_im)), axis=0)
        sum_im += tl.sum(step * (da_im + step * (slope_re * dw_im - slope_im * dw_re)), axis=0)
        # d decay / d step = Lambda decay and d w / d step = decay
        dstep = rate_re * da_re + rate_im * da_im + decay_re * dw_re + decay_im * dw_im
        sum_scale += tl.sum(dstep * gap, axis=0)
    tl.store(dlambda_re + row * size + p, sum_re, mask=p < size)
    tl.store(dlambda_im + row * size + p, sum_im, mask=p < size)
    tl.store(dscale + row * size + p, sum_scale, mask=p < size)


class _DiagonalScan(torch.autograd.Function):
    """Forward and backward launches; tensors as in :func:`diagonal_scan_triton`."""

    @staticmethod
    def forward(ctx: Any, bu: Tensor, *inputs: Tensor) -> Tensor:
        interval, lambda_re, lambda_im, step_scale, offsets = (t.contiguous() for t in inputs)
        bu = bu if bu.stride(1) == 1 else bu.contiguous()
        size, rows = lambda_re.numel(), offsets.numel() - 1
        states = torch.empty(bu.shape, dtype=bu.dtype, device=bu.device)
        with torch.cuda.device(bu.get_device()):
            _forward_kernel[(rows * triton.cdiv(size, BLOCK),)](
                bu, interval, lambda_re, lambda_im, step_scale, offsets, states, size, bu.stride(0),
                BLOCK=BLOCK, CHUNK=CHUNK, num_warps=1,
            )  # fmt: skip
        ctx.save_for_backward(bu, interval, lambda_re, lambda_im, step_scale, offsets, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bu, interval, lambda_re, lambda_im, step_scale, offsets, states = ctx.saved_tensors
        size, rows = lambda_re.numel(), offsets.numel() - 1
        dbu = torch.empty(bu.shape, dtype=bu.dtype, device=bu.device)
        partial = torch.empty((3, rows, size), dtype=torch.float32, device=bu.device)
        with torch.cuda.device(bu.get_device()):
            _backward_kernel[(rows * triton.cdiv(size, BLOCK),)](
                bu, interval, lambda_re, lambda_im, step_scale, offsets, states, grad.contiguous(), dbu,
                *partial.unbind(0), size, bu.stride(0), BLOCK=BLOCK, CHUNK=CHUNK, num_warps=1,
            )  # fmt: skip
        dre, dim, dscale = partial.sum(1).unbind(0)
        return dbu, None, dre.to(lambda_re.dtype), dim.to(lambda_im.dtype), dscale.to(step_scale.dtype), None


def diagonal_scan_triton(
    bu: Tensor, interval: Tensor, lambda_re: Tensor, lambda_im: Tensor, step_scale: Tensor, offsets: Tensor
) -> Tensor:
    """S5's scan over packed rows; shapes and equations as in :func:`models.kernels.diagonal_scan.diagonal_scan`.

    Inputs in fp32, bf16 or fp16 (``bu`` with rows of any stride); fp32 inside; the states leave, and are kept for the
    backward pass, in the dtype of ``bu``. Gradients are equal from run to run. Not differentiable twice; ``interval``
    gets no gradient.

    Raises:
        TypeError: a tensor is in float64, which this path would silently round.
    """
    tensors = (bu, interval, lambda_re, lambda_im, step_scale)
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        raise TypeError("the Triton diagonal scan computes in float32: cast the inputs or choose the reference path")
    return _DiagonalScan.apply(*tensors, offsets)  # type: ignore[no-untyped-call]
