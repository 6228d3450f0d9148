"""The diagonal scan of S5 in PyTorch alone: discretisation for all tokens at once, then a loop over time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.kernels.diagonal_scan.reference import phi
from models.kernels.time_major import time_major

BLOCK = 1 << 20  # complex states (rows x P) worked on at once


class _Recurrence(torch.autograd.Function):
    """``s_t = decay_t s_{t-1} + drive_t``, complex ``[T, P]``, over packed rows."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor, offsets: Tensor) -> Tensor:
        states = torch.empty_like(drive)
        ctx.blocks = time_major(offsets, BLOCK // drive.shape[1])
        for layout in ctx.blocks:
            block_decay, block = decay[layout.tokens], drive[layout.tokens]
            before = None
            for count, place in layout.steps():
                if before is not None:
                    block[place].addcmul_(block_decay[place], block[before][:count])
                before = place
            states[layout.tokens] = block
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        decay, states = ctx.saved_tensors
        grad_drive, grad_decay = torch.empty_like(grad), torch.zeros_like(decay)
        for layout in ctx.blocks:
            block_decay, block, block_states = (v[layout.tokens] for v in (decay.conj(), grad, states))
            of_decay = torch.zeros_like(block)
            steps = list(layout.steps())
            for (_, before), (count, place) in zip(steps[-2::-1], steps[:0:-1], strict=True):
                block[before][:count].addcmul_(block_decay[place], block[place])
                of_decay[place] = block[place] * block_states[before][:count].conj()
            grad_drive[layout.tokens], grad_decay[layout.tokens] = block, of_decay
        return grad_decay, grad_drive, None


def diagonal_scan_torch(
    bu: Tensor,
    interval: Tensor,
    lambda_re: Tensor,
    lambda_im: Tensor,
    step_scale: Tensor,
    offsets: Tensor,
) -> Tensor:
    """float32 or float64; arguments as in :func:`models.kernels.diagonal_scan.diagonal_scan`."""
    step = interval[:, None].to(bu.dtype) * step_scale  # [T, P]
    z = torch.complex(lambda_re, lambda_im) * step
    drive = step * phi(z) * torch.complex(*bu.chunk(2, dim=1))
    states: Tensor = _Recurrence.apply(torch.exp(z), drive, offsets)  # type: ignore[no-untyped-call]
    return torch.cat((states.real, states.imag), dim=1)
