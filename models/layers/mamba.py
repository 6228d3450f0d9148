"""Mamba-1 (S6): a state-space layer whose step, input and output projections depend on the token.

Source: Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752.
Parameters have the names and shapes of ``mamba_ssm.Mamba``, so a state_dict of one loads into the other.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.kernels.causal_conv import causal_conv
from models.kernels.selective_scan import selective_scan


class Mamba(nn.Module):
    """The block of ``mamba_ssm.Mamba(d_model, d_state, d_conv, expand)`` on packed rows.

    Args:
        d_model: features in and out.
        d_state: ``N``, states of each inner channel.
        d_conv: taps of the causal convolution.
        expand: inner width as a multiple of ``d_model``.
        dt_min: smallest initial step.
        dt_max: largest initial step.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ) -> None:
        super().__init__()
        inner, rank = expand * d_model, math.ceil(d_model / 16)
        self.d_state, self.dt_rank = d_state, rank
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        self.A_log.no_weight_decay = True  # type: ignore[attr-defined]
        self._init_step(dt_min, dt_max)

    def _init_step(self, dt_min: float, dt_max: float) -> None:
        """softplus(dt_proj.bias) log-uniform in [dt_min, dt_max]; the weight keeps a rank-sized input's variance."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        step = torch.exp(torch.rand(self.dt_proj.bias.shape) * math.log(dt_max / dt_min) + math.log(dt_min)).clamp(
            min=1e-4
        )
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """``x`` ``[T, d_model]`` over packed rows to ``[T, d_model]``."""
        weight_x, weight_z = self.in_proj.weight.chunk(2)  # two products: no [T, 2E] gradient to put together
        xs, z = functional.linear(x, weight_x), functional.linear(x, weight_z)  # [T, E] each
        conv_bias = cast("Tensor", self.conv1d.bias)
        xs = causal_conv(xs, self.conv1d.weight.squeeze(1), conv_bias, offsets)
        step, b, c = self.x_proj(xs).split([self.dt_rank, self.d_state, self.d_state], dim=1)
        dt = functional.linear(step, self.dt_proj.weight)  # [T, E]; bias and softplus happen inside the scan
        a = -torch.exp(self.A_log)  # [E, N]
        y = selective_scan(xs, dt, self.dt_proj.bias, a, b, c, self.D, z, offsets)
        return self.out_proj(y)
