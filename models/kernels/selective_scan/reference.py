"""The selective scan as its equations read: a loop over time on a padded view. The truth the fast paths are held to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.batch import Jagged


def selective_scan_reference(
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
    """Mamba-1's scan over packed rows; shapes and equations as in :func:`models.kernels.selective_scan.selective_scan`.

    Plain autograd in the dtype of its inputs (float64 works), memory ``[tokens, D, N]``: for tests, not for training.
    """
    delta = functional.softplus(dt + dt_bias)
    padded_delta, padded_x, padded_b, padded_c = (Jagged(v, offsets).to_padded() for v in (delta, x, b, c))
    h = x.new_zeros(padded_x.shape[0], x.shape[1], a.shape[1])  # [U, D, N]
    outputs = []
    for t in range(padded_x.shape[1]):
        decay = torch.exp(padded_delta[:, t, :, None] * a)  # [U, D, N]
        h = decay * h + (padded_delta[:, t] * padded_x[:, t])[:, :, None] * padded_b[:, t, None, :]
        outputs.append((h * padded_c[:, t, None, :]).sum(-1))  # [U, D]
    scanned = Jagged.from_padded(torch.stack(outputs, dim=1), offsets).values
    return (scanned + skip * x) * functional.silu(z)
