"""Hyper-connections with PyTorch alone, in whole-tensor operations; Sinkhorn keeps none of its intermediates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.kernels.mhc_streams.whole import read_and_write

Norm = tuple[Tensor, Tensor, float]
"""Weight ``[C]``, bias ``[C]`` and epsilon of a LayerNorm."""


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


def mhc_read_torch(
    streams: Tensor, projection: Tensor, gate: Tensor, bias: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as in :func:`models.kernels.mhc_streams.mhc_read`; any float type and device."""
    n, flat = streams.shape[1], streams.flatten(1)
    projected = functional.linear(functional.rms_norm(flat, flat.shape[1:]), projection)  # [T, 2n + n^2]
    gates = gate.repeat_interleave(torch.tensor([n, n, n * n], device=flat.device))
    # [2n + n^2, T] in this order in memory: Sinkhorn's sums then add whole vectors, 7 times as fast.
    logits = (projected * gates + bias).t().contiguous()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    mix = logits[2 * n :].reshape(n, n, -1)
    mix = torch.exp(mix - mix.detach().amax((0, 1), keepdim=True))  # one factor for all leaves the result as it is
    mix = sinkhorn(mix, iterations)
    read, write = torch.sigmoid(logits[:n]), 2 * torch.sigmoid(logits[n : 2 * n])
    routes = torch.cat([read, write, mix.flatten(0, 1)]).t().contiguous().to(flat)
    return torch.einsum("tn,tnc->tc", routes[:, :n], streams), routes, streams


def mhc_write_torch(streams: Tensor, routes: Tensor, output: Tensor, norm: Norm | None = None) -> Tensor:
    """Arguments as in :func:`models.kernels.mhc_streams.mhc_write`; any float type and device."""
    n = streams.shape[1]
    mix = routes[:, 2 * n :].reshape(-1, n, n)
    written = torch.bmm(mix, streams) + routes[:, n : 2 * n, None] * output[:, None, :]
    return written if norm is None else functional.layer_norm(written, streams.shape[2:], *norm)


def mhc_streams_torch(*inputs: Tensor) -> Tensor:
    """Arguments as in :func:`models.kernels.mhc_streams.whole.read_and_write`, behind the two functions."""
    return read_and_write(mhc_read_torch, mhc_write_torch, *inputs)
