"""The diagonal complex scan of S5 as its equations read: a loop over time on a padded view. The truth."""

from __future__ import annotations

import torch
from torch import Tensor

from models.batch import Jagged

SERIES_RADIUS = 0.5  # below it (exp(z) - 1) / z and its derivative cancel; the series is exact to float64 there
SERIES_TERMS = 15


def phi(z: Tensor) -> Tensor:
    """Complex ``expm1(z) / z``, 1 at ``z = 0``, accurate and differentiable near it."""
    small = z.abs() < SERIES_RADIUS
    near = torch.where(small, z, torch.zeros_like(z))
    series = torch.ones_like(z)
    for term in range(SERIES_TERMS, 1, -1):  # 1 + z/2 (1 + z/3 (1 + ...))
        series = 1 + near / term * series
    far = torch.where(small, torch.ones_like(z), z)
    return torch.where(small, series, (torch.exp(far) - 1) / far)


def diagonal_scan_reference(
    bu: Tensor,
    interval: Tensor,
    lambda_re: Tensor,
    lambda_im: Tensor,
    step_scale: Tensor,
    offsets: Tensor,
) -> Tensor:
    """S5's scan over packed rows; shapes and equations as in :func:`models.kernels.diagonal_scan.diagonal_scan`.

    Plain autograd in the dtype of its inputs (float64 works).
    """
    step = interval[:, None].to(bu.dtype) * step_scale  # [T, P]
    z = torch.complex(lambda_re, lambda_im) * step  # [T, P]
    decay, drive = torch.exp(z), step * phi(z) * torch.complex(*bu.chunk(2, dim=1))
    padded_decay, padded_drive = (Jagged(v, offsets).to_padded() for v in (decay, drive))
    state = torch.zeros_like(padded_drive[:, 0])  # [U, P] complex
    states = []
    for t in range(padded_drive.shape[1]):
        state = padded_decay[:, t] * state + padded_drive[:, t]
        states.append(state)
    packed = Jagged.from_padded(torch.stack(states, dim=1), offsets).values
    return torch.cat((packed.real, packed.imag), dim=1)
