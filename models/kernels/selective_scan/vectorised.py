"""The selective scan in PyTorch alone: a loop over time, vectorised over rows, channels and states, backward by hand.

For machines without numba or Triton. No ``[T, D, N]`` tensor is kept: the state before every 16th step is, and the
backward pass recomputes the states between two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.kernels.time_major import TimeMajor, time_major

CHUNK = 16  # steps between kept states
BLOCK = 1 << 19  # states (rows x D x N) worked on at once: what is recomputed for one chunk stays below 64 MB


def _step(h: Tensor, delta: Tensor, driven: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    decay = torch.exp(delta[:, :, None] * a)  # [n, D, N]
    return torch.addcmul(decay * h[: len(delta)], driven[:, :, None], b[:, None, :]), decay


def _forward_block(layout: TimeMajor, a: Tensor, inputs: Sequence[Tensor], out: Tensor) -> list[Tensor]:
    """Writes the outputs of one block's tokens; returns the state before each chunk."""
    delta, driven, b, c = (v[layout.tokens] for v in inputs)
    y = torch.empty_like(delta)
    h, kept = a.new_zeros(layout.active[0], *a.shape), []
    for step, (count, place) in enumerate(layout.steps()):
        if step % CHUNK == 0:
            kept.append(h[:count])
        h, _ = _step(h, delta[place], driven[place], a, b[place])
        y[place] = torch.bmm(h, c[place][:, :, None]).squeeze(2)
    out[layout.tokens] = y
    return kept


def _backward_block(
    layout: TimeMajor, kept: list[Tensor], grad: Tensor, a: Tensor, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> Tensor:
    """Writes the gradients of one block's tokens to ``outputs``; returns that of ``a``."""
    grad, delta, driven, b, c = (v[layout.tokens] for v in (grad, *inputs))
    grads = tuple(torch.empty_like(v) for v in (delta, driven, b, c))
    grad_a = torch.zeros_like(a)
    steps = list(layout.steps())
    carry = a.new_zeros(layout.active[0], *a.shape)
    for chunk in range(len(kept) - 1, -1, -1):
        some = steps[chunk * CHUNK : (chunk + 1) * CHUNK]
        states, decays = [kept[chunk]], []
        for _, place in some:
            h, decay = _step(states[-1], delta[place], driven[place], a, b[place])
            states.append(h)
            decays.append(decay)
        for i in range(len(some) - 1, -1, -1):
            count, place = some[i]
            above = grad[place]  # [n, D]
            grads[3][place] = torch.bmm(above[:, None, :], states[i + 1]).squeeze(1)
            g = torch.addcmul(carry[:count], above[:, :, None], c[place][:, None, :])  # of this step's state
            grads[2][place] = torch.bmm(driven[place][:, None, :], g).squeeze(1)
            grads[1][place] = torch.bmm(g, b[place][:, :, None]).squeeze(2)
            carry[:count] = g.mul_(decays[i])
            exponent = g * states[i][:count]  # of delta a
            grads[0][place] = (exponent * a).sum(2)
            grad_a += (exponent * delta[place][:, :, None]).sum(0)
    for whole, part in zip(outputs, grads, strict=True):
        whole[layout.tokens] = part
    return grad_a


class _Scan(torch.autograd.Function):
    """``h = exp(delta a) h + driven b^T; y = h c`` in any float dtype."""

    @staticmethod
    def forward(ctx: Any, delta: Tensor, driven: Tensor, a: Tensor, b: Tensor, c: Tensor, offsets: Tensor) -> Tensor:
        blocks = time_major(offsets, BLOCK // a.numel())
        out = torch.empty_like(delta)
        ctx.kept = [_forward_block(block, a, (delta, driven, b, c), out) for block in blocks]
        ctx.blocks = blocks
        ctx.save_for_backward(delta, driven, a, b, c)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        delta, driven, a, b, c = ctx.saved_tensors
        outputs = tuple(torch.empty_like(v) for v in (delta, driven, b, c))
        grad_a = torch.zeros_like(a)
        for layout, kept in zip(ctx.blocks, ctx.kept, strict=True):
            grad_a += _backward_block(layout, kept, grad, a, (delta, driven, b, c), outputs)
        grad_delta, grad_driven, grad_b, grad_c = outputs
        return grad_delta, grad_driven, grad_a, grad_b, grad_c, None


def selective_scan_torch(
    x: Tensor,
    dt: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    z: Tensor,
    offsets: Tensor,
) -> Tensor:
    """float32 or float64; arguments as in :func:`models.kernels.selective_scan.selective_scan`."""
    delta = functional.softplus(dt + dt_bias)
    scanned: Tensor = _Scan.apply(delta, delta * x, a, b, c, offsets)  # type: ignore[no-untyped-call]
    return (scanned + skip * x) * functional.silu(z)
