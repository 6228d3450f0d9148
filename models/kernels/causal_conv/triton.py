"""Causal depthwise convolution with SiLU on the GPU: two Triton kernels on packed rows, deterministic, fp32 inside.

One program owns (row, ``BLOCK_D`` channels) and walks its row in tiles of ``BLOCK_T`` tokens; a walk and not a grid
over tiles, because then a token's row needs no look-up and the gradients of weight and bias stay in registers until
the row ends: they leave as one partial sum a row, without atomics. The taps' shifted loads overlap, so that all but the
first come from the L1 cache, and the backward pass computes the SiLU's slope of the following K - 1 tokens again
instead of passing it through memory: both kernels read and write each tensor once.
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

BLOCK_T = 16  # tokens a tile
BLOCK_D = 32  # channels a program: a warp's load is one line of 128 bytes in fp32
MAX_TAPS = 8  # the taps are unrolled, K^2 products a token in the backward pass


@triton.jit
def _shifted(
    base: tl.tensor,
    t: tl.tensor,
    shift: tl.constexpr,
    length: tl.tensor,
    stride: tl.tensor,
    d: tl.tensor,
    in_d: tl.tensor,
) -> tl.tensor:
    """``[T, D]`` of one row at tokens ``t + shift`` as fp32; 0 before the row and after it."""
    at = t + shift
    mask = ((at >= 0) & (at < length))[:, None] & in_d[None, :]
    return tl.load(base + at[:, None] * stride + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _forward_kernel(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, offsets: tl.tensor, y: tl.tensor, width: tl.tensor,
    x_stride: tl.tensor, TAPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    blocks = tl.cdiv(width, BLOCK_D)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = d < width
    first = tl.load(offsets + row)
    length = (tl.load(offsets + row + 1) - first).to(tl.int32)
    shift_in = tl.load(bias + d, mask=in_d, other=0.0).to(tl.float32)
    for tile in tl.range(0, tl.cdiv(length, BLOCK_T)):
        t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
        total = tl.zeros((BLOCK_T, BLOCK_D), tl.float32) + shift_in[None, :]
        for tap in tl.static_range(TAPS):
            w = tl.load(weight + d * TAPS + tap, mask=in_d, other=0.0).to(tl.float32)
            total += w[None, :] * _shifted(x + first * x_stride, t, tap - (TAPS - 1), length, x_stride, d, in_d)
        mask = (t < length)[:, None] & in_d[None, :]
        out = (total * tl.sigmoid(total)).to(y.dtype.element_ty)
        tl.store(y + first * width + t[:, None] * width + d[None, :], out, mask=mask)


@triton.jit
def _backward_kernel(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, offsets: tl.tensor, dy: tl.tensor, dx: tl.tensor,
    dweight: tl.tensor, dbias: tl.tensor, width: tl.tensor, x_stride: tl.tensor,
    TAPS: tl.constexpr, PADDED_TAPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    blocks = tl.cdiv(width, BLOCK_D)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = d < width
    taps = tl.arange(0, PADDED_TAPS)
    first = tl.load(offsets + row)
    length = (tl.load(offsets + row + 1) - first).to(tl.int32)
    shift_in = tl.load(bias + d, mask=in_d, other=0.0).to(tl.float32)
    sum_weight = tl.zeros((PADDED_TAPS, BLOCK_D), tl.float32)
    sum_bias = tl.zeros((BLOCK_D,), tl.float32)
    for tile in tl.range(0, tl.cdiv(length, BLOCK_T)):
        t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
        grad_x = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
        for ahead in tl.static_range(TAPS):  # token t meets tap TAPS - 1 - ahead of the sum at token t + ahead
            total = tl.zeros((BLOCK_T, BLOCK_D), tl.float32) + shift_in[None, :]
            for tap in tl.static_range(TAPS):
                w = tl.load(weight + d * TAPS + tap, mask=in_d, other=0.0).to(tl.float32)
                xs = _shifted(x + first * x_stride, t, ahead + tap - (TAPS - 1), length, x_stride, d, in_d)
                total += w[None, :] * xs
            gate = tl.sigmoid(total)
            grad = _shifted(dy + first * width, t, ahead, length, width, d, in_d) * gate * (1.0 + total * (1.0 - gate))
            w = tl.load(weight + d * TAPS + (TAPS - 1 - ahead), mask=in_d, other=0.0).to(tl.float32)
            grad_x += w[None, :] * grad
            if ahead == 0:
                sum_bias += tl.sum(grad, axis=0)
                for tap in tl.static_range(TAPS):
                    xs = _shifted(x + first * x_stride, t, tap - (TAPS - 1), length, x_stride, d, in_d)
                    sum_weight += tl.where(taps[:, None] == tap, tl.sum(grad * xs, axis=0)[None, :], 0.0)
        mask = (t < length)[:, None] & in_d[None, :]
        tl.store(dx + first * width + t[:, None] * width + d[None, :], grad_x.to(dx.dtype.element_ty), mask=mask)
    place = row * width + d
    tl.store(dweight + place[None, :] * TAPS + taps[:, None], sum_weight, mask=(taps < TAPS)[:, None] & in_d[None, :])
    tl.store(dbias + place, sum_bias, mask=in_d)


class _CausalConv(torch.autograd.Function):
    """Forward and backward launches; tensors as in :func:`causal_conv_triton`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
        x = x if x.stride(1) == 1 else x.contiguous()
        weight, bias, offsets = weight.contiguous(), bias.contiguous(), offsets.contiguous()
        width, taps = weight.shape
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        with torch.cuda.device(x.get_device()):
            _forward_kernel[((offsets.numel() - 1) * triton.cdiv(width, BLOCK_D),)](
                x, weight, bias, offsets, y, width, x.stride(0),
                TAPS=taps, BLOCK_T=BLOCK_T, BLOCK_D=BLOCK_D, num_warps=4,
            )  # fmt: skip
        ctx.save_for_backward(x, weight, bias, offsets)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, offsets = ctx.saved_tensors
        (width, taps), rows = weight.shape, offsets.numel() - 1
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dweight = torch.empty((rows, width, taps), dtype=torch.float32, device=x.device)
        dbias = torch.empty((rows, width), dtype=torch.float32, device=x.device)
        with torch.cuda.device(x.get_device()):
            _backward_kernel[(rows * triton.cdiv(width, BLOCK_D),)](
                x, weight, bias, offsets, grad.contiguous(), dx, dweight, dbias, width, x.stride(0),
                TAPS=taps, PADDED_TAPS=triton.next_power_of_2(taps), BLOCK_T=BLOCK_T, BLOCK_D=BLOCK_D, num_warps=4,
            )  # fmt: skip
        return dx, dweight.sum(0).to(weight.dtype), dbias.sum(0).to(bias.dtype), None


def causal_conv_triton(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
    """SiLU(convolution) over packed rows; shapes as in :func:`models.kernels.causal_conv.causal_conv`.

    Inputs in fp32, bf16 or fp16 (``x`` with rows of any stride: a view of a wider projection is read in place); fp32
    inside; gradients in the dtype of their inputs, equal from run to run. Not differentiable twice.

    Raises:
        TypeError: a tensor is in float64, which this path would silently round.
        ValueError: more than 8 taps.
    """
    if any(tensor.dtype == torch.float64 for tensor in (x, weight, bias)):
        raise TypeError("the Triton convolution computes in float32: cast the inputs or choose the reference path")
    if weight.shape[1] > MAX_TAPS:
        raise ValueError(f"the Triton convolution takes at most {MAX_TAPS} taps, not {weight.shape[1]}")
    return _CausalConv.apply(x, weight, bias, offsets)  # type: ignore[no-untyped-call]
