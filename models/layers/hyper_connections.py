"""mHC: manifold-constrained hyper-connections, several residual streams whose mixing is doubly stochastic.

Source: Xie et al. 2025, "mHC: Manifold-Constrained Hyper-Connections", arXiv 2512.24880. With x~ = RMSNorm(vec X):

    H_pre = sigmoid(a_pre x~ W_pre + b_pre)            [n]
    H_post = 2 sigmoid(a_post x~ W_post + b_post)      [n]
    H_res = SinkhornKnopp(exp(a_res mat(x~ W_res) + b_res))   [n, n], rows and columns sum to 1
    X' = H_res X + H_post^T F(H_pre X)

The streams live through the whole depth: they are copies of the input before the first block and are averaged after the
last. At the start H_pre sums to 1, H_post is 1 and H_res near the identity, so the model begins as a residual network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.kernels.mhc_streams import mhc_read, mhc_write

_STAY = 4.0  # b_res on the diagonal: a stream starts out keeping 95% of itself (n = 4)


@dataclass(frozen=True)
class Routes:
    """How one sub-layer reads and writes the streams, token by token.

    Attributes:
        streams: ``X``, ``[T, n, C]``.
        mappings: H_pre, H_post and H_res row by row, ``[T, 2n + n^2]``.
    """

    streams: Tensor
    mappings: Tensor

    @property
    def read(self) -> Tensor:
        """H_pre, ``[T, n]``."""
        return self.mappings[:, : self.streams.shape[1]]

    @property
    def write(self) -> Tensor:
        """H_post, ``[T, n]``."""
        n = self.streams.shape[1]
        return self.mappings[:, n : 2 * n]

    @property
    def mix(self) -> Tensor:
        """H_res, ``[T, n, n]``."""
        n = self.streams.shape[1]
        return self.mappings[:, 2 * n :].reshape(-1, n, n)


class HyperConnection(nn.Module):
    """Reads one input for a sub-layer out of the streams and writes its output back.

    Args:
        width: ``C``.
        streams: ``n``, at least 2.
        iterations: of Sinkhorn and Knopp.
        init_gate: a_pre, a_post and a_res at the start.
    """

    def __init__(self, width: int, streams: int, iterations: int, init_gate: float) -> None:
        super().__init__()
        n = streams
        self.streams, self.iterations = n, iterations
        self.projection = nn.Parameter(torch.randn(2 * n + n * n, n * width) / math.sqrt(n * width))
        self.gate = nn.Parameter(torch.full((3,), init_gate))  # a_pre, a_post, a_res
        read = torch.full((n,), -math.log(n - 1))  # sigmoid gives 1 / n
        stay = (_STAY * torch.eye(n)).flatten()
        self.bias = nn.Parameter(torch.cat([read, torch.zeros(n), stay]))  # b_pre, b_post, b_res
        self.projection.no_weight_decay = True  # type: ignore[attr-defined]

    def read(self, streams: Tensor) -> tuple[Tensor, Routes]:
        """The sub-layer's input ``[T, C]`` from ``streams`` ``[T, n, C]``, and the routes for :meth:`write`."""
        read, mappings, held = mhc_read(streams, self.projection, self.gate, self.bias, iterations=self.iterations)
        return read, Routes(held, mappings)

    @staticmethod
    def write(routes: Routes, output: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """The streams after the sub-layer, ``[T, n, C]``, from its ``output`` ``[T, C]``, each through ``norm``."""
        given = None if norm is None else (norm.weight, norm.bias, norm.eps)
        return mhc_write(routes.streams, routes.mappings, output, norm=given)


def split_streams(x: Tensor, streams: int) -> Tensor:
    """``streams`` copies of ``x`` ``[T, C]``, ``[T, n, C]``."""
    return x[:, None, :].repeat(1, streams, 1)


def merge_streams(streams: Tensor) -> Tensor:
    """The mean of the streams, ``[T, C]``."""
    return streams.mean(1)
