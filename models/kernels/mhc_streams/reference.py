"""Hyper-connections as the equations read, plain autograd in the dtype of the inputs: the truth for the fast paths."""

from __future__ import annotations

import torch
from torch import Tensor

from models.kernels.mhc_streams.vectorised import Norm
from models.kernels.mhc_streams.whole import read_and_write


def mhc_read_reference(
    streams: Tensor, projection: Tensor, gate: Tensor, bias: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as in :func:`models.kernels.mhc_streams.mhc_read`."""
    tokens, n, width = streams.shape
    flat = streams.reshape(tokens, n * width)
    mean_square = (flat * flat).mean(1, keepdim=True)
    normed = flat / torch.sqrt(mean_square + torch.finfo(flat.dtype).eps)
    logits = normed @ projection.t()
    pre, post, res = logits[:, :n], logits[:, n : 2 * n], logits[:, 2 * n :]
    b_pre, b_post, b_res = bias[:n], bias[n : 2 * n], bias[2 * n :]
    read = torch.sigmoid(gate[0] * pre + b_pre)  # [T, n]
    write = 2 * torch.sigmoid(gate[1] * post + b_post)
    mix = torch.exp(gate[2] * res + b_res).view(tokens, n, n)
    for _ in range(iterations):
        mix = mix / mix.sum(2, keepdim=True)
        mix = mix / mix.sum(1, keepdim=True)
    routes = torch.cat([read, write, mix.flatten(1)], 1)
    return (read[:, :, None] * streams).sum(1), routes, streams


def mhc_write_reference(streams: Tensor, routes: Tensor, output: Tensor, norm: Norm | None = None) -> Tensor:
    """Arguments as in :func:`models.kernels.mhc_streams.mhc_write`."""
    tokens, n, _ = streams.shape
    write, mix = routes[:, n : 2 * n], routes[:, 2 * n :].reshape(tokens, n, n)
    written = mix @ streams + write[:, :, None] * output[:, None, :]
    if norm is None:
        return written
    weight, bias, eps = norm
    away = written - written.mean(-1, keepdim=True)
    return away / torch.sqrt((away * away).mean(-1, keepdim=True) + eps) * weight + bias


def mhc_streams_reference(*inputs: Tensor) -> Tensor:
    """Arguments as in :func:`models.kernels.mhc_streams.whole.read_and_write`, behind the two functions."""
    return read_and_write(mhc_read_reference, mhc_write_reference, *inputs)
