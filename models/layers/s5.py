"""S5: a linear state-space layer with a diagonal complex state and a step of its own for every token.

Source: Smith, Warrington, Linderman 2023, "Simplified State Space Layers for Sequence Modeling", arXiv 2208.04933. The
equations' names are kept: Lambda, B~, C~, D, log_step.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.kernels.diagonal_scan import diagonal_scan


def hippo_legs_eigen(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues ``[P]`` and eigenvectors ``[P, P]`` of the normal part of HiPPO-LegS (its DPLR form).

    The state matrix A[n, k] = -sqrt(2n+1) sqrt(2k+1) below the diagonal and -(n+1) on it is a normal matrix minus a
    rank-one term p p^T with p[n] = sqrt(n + 1/2); the normal part is -1/2 I plus a skew-symmetric matrix.
    """
    n = np.arange(size, dtype=np.float64)
    root = np.sqrt(2 * n + 1)
    hippo = -(np.tril(np.outer(root, root), -1) + np.diag(n + 1))
    normal = hippo + np.outer(np.sqrt(n + 0.5), np.sqrt(n + 0.5))
    imaginary, vectors = np.linalg.eigh(normal * -1j)
    return np.mean(np.diag(normal)) + 1j * imaginary, vectors


class S5(nn.Module):
    """``x_i = A_i x_{i-1} + Bbar_i u_i``, ``y_i = Re(C~ x_i) + D u_i`` with ``A_i = exp(Lambda D_i exp(log_step))``.

    ``Bbar_i = Lambda^-1 (A_i - 1) B~`` is applied as a diagonal factor to ``B~ u_i``: nothing of size [T, P, H] exists.
    The real part of Lambda is ``-exp(log_decay)``: with intervals of months a positive one would overflow in one step.

    Args:
        width: ``H``, features in and out.
        state: ``P``, complex states.
        dt_min: smallest initial step.
        dt_max: largest initial step.
    """

    def __init__(self, width: int, state: int, dt_min: float = 0.001, dt_max: float = 0.1) -> None:
        super().__init__()
        eigenvalues, vectors = hippo_legs_eigen(state)
        # B and C start as dense random matrices seen in the eigenbasis, variance 1 / fan-in.
        b = vectors.conj().T @ (torch.randn(state, width).double().numpy() / math.sqrt(width))
        c = (torch.randn(width, state).double().numpy() / math.sqrt(state)) @ vectors
        self.log_decay = nn.Parameter(torch.tensor(np.log(-eigenvalues.real), dtype=torch.float32))  # [P]
        self.frequency = nn.Parameter(torch.tensor(eigenvalues.imag, dtype=torch.float32))  # [P]
        self.b = nn.Parameter(torch.tensor(np.concatenate([b.real, b.imag]), dtype=torch.float32))  # [2P, H]
        self.c = nn.Parameter(torch.tensor(np.concatenate([c.real, c.imag], axis=1), dtype=torch.float32))  # [H, 2P]
        self.d = nn.Parameter(torch.randn(width))  # [H]
        self.log_step = nn.Parameter(torch.empty(state).uniform_(math.log(dt_min), math.log(dt_max)))  # [P]
        for parameter in (self.b, self.c):
            parameter.no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, u: Tensor, interval: Tensor, offsets: Tensor) -> Tensor:
        """``u`` ``[T, H]`` and ``interval`` ``[T]`` (>= 0) over packed rows to ``[T, H]``."""
        bu = functional.linear(u, self.b)  # [T, 2P]
        decay = -torch.exp(self.log_decay)
        states = diagonal_scan(bu, interval, decay, self.frequency, torch.exp(self.log_step), offsets)  # [T, 2P]
        real, imaginary = self.c.chunk(2, dim=1)
        return functional.linear(states, torch.cat([real, -imaginary], dim=1)) + self.d * u
