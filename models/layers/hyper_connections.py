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
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_STAY = 4.0  # b_res on the diagonal: a stream starts out keeping 95% of itself (n = 4)


@dataclass(frozen=True)
class Routes:
    """How one sub-layer reads and writes the streams, token by token.

    Attributes:
        read: H_pre, ``[T, n]``.
        write: H_post, ``[T, n]``.
        mix: H_res, ``[T, n, n]``.
    """

    read: Tensor
    write: Tensor
    mix: Tensor


class _Sinkhorn(torch.autograd.Function):
    """Keeps the result and the sums divided by: the steps between are multiplied back, not kept (50 MB each way)."""

    @staticmethod
    def forward(ctx: Any, positive: Tensor, iterations: int) -> Tensor:
        result = positive.clone(memory_format=torch.contiguous_format)
        sums = result.new_empty(2 * iterations, result.shape[0], result.shape[2])
        for block, of_block in zip(_in_cache(result), _in_cache(sums), strict=True):
            for step in range(2 * iterations):
                torch.sum(block, 1 - step % 2, out=of_block[step])
                block.div_(of_block[step].unsqueeze(1 - step % 2))
        ctx.save_for_backward(result, sums)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        result, sums = ctx.saved_tensors
        grad = grad.clone(memory_format=torch.contiguous_format)
        for block, of_block, own in zip(_in_cache(result), _in_cache(sums), _in_cache(grad), strict=True):
            values = block.clone()
            for step in reversed(range(len(sums))):
                dim = 1 - step % 2
                own.sub_((own * values).sum(dim, keepdim=True)).div_(of_block[step].unsqueeze(dim))
                values.mul_(of_block[step].unsqueeze(dim))
        return grad, None


def _in_cache(tensor: Tensor) -> tuple[Tensor, ...]:
    """Views of 4,096 tokens each: 80 passes over 16 numbers a token then stay in the cache."""
    return tensor.split(4096, dim=-1)  # type: ignore[no-untyped-call]


def sinkhorn(positive: Tensor, iterations: int) -> Tensor:
    """``[n, n, T]`` positive numbers to doubly stochastic ``[n, n, T]``: rows, then columns, ``iterations`` times."""
    return _Sinkhorn.apply(positive, iterations)  # type: ignore[no-untyped-call]


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

    def routes(self, streams: Tensor) -> Routes:
        """The three mappings for ``streams`` ``[T, n, C]``."""
        n = self.streams
        flat = streams.flatten(1)
        projected = functional.linear(functional.rms_norm(flat, flat.shape[1:]), self.projection)  # [T, 2n + n^2]
        gates = self.gate.repeat_interleave(torch.tensor([n, n, n * n], device=flat.device))
        # [2n + n^2, T] in this order in memory: Sinkhorn's sums then add whole vectors, 7 times as fast.
        logits = (projected * gates + self.bias).t().contiguous()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        mix = logits[2 * n :].reshape(n, n, -1)
        mix = torch.exp(mix - mix.detach().amax((0, 1), keepdim=True))  # one factor for all leaves the result as it is
        mix = sinkhorn(mix, self.iterations)
        read, write = torch.sigmoid(logits[:n]), 2 * torch.sigmoid(logits[n : 2 * n])
        return Routes(read.t().to(flat), write.t().to(flat), mix.permute(2, 0, 1).contiguous().to(flat))

    def read(self, streams: Tensor) -> tuple[Tensor, Routes]:
        """The sub-layer's input ``[T, C]``, and the routes for :meth:`write`."""
        routes = self.routes(streams)
        return torch.einsum("tn,tnc->tc", routes.read, streams), routes

    @staticmethod
    def write(streams: Tensor, routes: Routes, output: Tensor) -> Tensor:
        """The streams after the sub-layer, ``[T, n, C]``, from its ``output`` ``[T, C]``."""
        return torch.bmm(routes.mix, streams) + routes.write[:, :, None] * output[:, None, :]


def split_streams(x: Tensor, streams: int) -> Tensor:
    """``streams`` copies of ``x`` ``[T, C]``, ``[T, n, C]``."""
    return x[:, None, :].repeat(1, streams, 1)


def merge_streams(streams: Tensor) -> Tensor:
    """The mean of the streams, ``[T, C]``."""
    return streams.mean(1)
