"""Hyper-connections on the GPU: Triton kernels that read the streams and write them back, deterministic, fp32 inside.

What a sub-layer of T tokens moves, in units of the streams ``[T, n, C]`` (4 n C bytes a token in fp32, 1 KB at n = 4, C
= 64), routes and products of ``2n + n^2`` numbers a token apart (0.1 at those sizes, each time):

* reading takes 1 + 1/n, what it must: streams in, the sub-layer's input out; a second look at them hits the cache.
* reading backward takes 4 + 1/n, where 3 + 1/n is the least: the projection's gradient, a product over all tokens,
  looks at the streams once more, so that its sums stay in registers and need no atomics. What the rounds of Sinkhorn
  and Knopp divided by is laid down and read again, ``2 n`` numbers a round (0.6 each way at twenty rounds, in the cache
  at best).
* writing takes 2 + 1/n and backward 3 + 2/n, what they must, with a LayerNorm or without.

The rounds themselves, 80 passes over n^2 numbers a token on the torch path, stay in registers. Kept for the backward
pass: the streams, ``2 (2n + n^2) + 1`` numbers a token, and the sub-layer's output. Partial sums are added up in a
fixed order: equal bits from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

try:
    import triton
except ImportError as error:
    raise ImportError(
        "the Triton kernels need the package 'triton' (comes with PyTorch's CUDA builds on Linux): "
        "install it or choose another kernel path"
    ) from error

from models.kernels.mhc_streams import triton_read, triton_write
from models.kernels.mhc_streams.vectorised import Norm
from models.kernels.mhc_streams.whole import read_and_write

MAX_STREAMS = 8  # n^2 numbers of a token, and one over each sum that divided them, stay in registers
GROUPS = 64  # parts of the projection's gradient
BLOCK_T = 32  # tokens a program
WARPS = 4
_EPS = torch.finfo(torch.float32).eps  # of torch's rms_norm


def _read_sizes(n: int, width: int, rounds: int) -> dict[str, int]:
    """Constants of the kernels that read; products want sides of at least 16."""
    side = max(4, triton.next_power_of_2(n))
    columns = min(64, max(16, triton.next_power_of_2(width)))
    sizes = {"N": n, "C": width, "GATES": 16, "SIDE": side, "ROUNDS": rounds}
    return {**sizes, "BLOCK": BLOCK_T if side == 4 else 16, "BLOCK_C": columns}


def _write_sizes(n: int, width: int) -> dict[str, int]:
    """Constants of the kernels that write: a stream of a block has 1,024 numbers, or one token's."""
    columns = triton.next_power_of_2(width)
    return {"N": n, "C": width, "BLOCK": max(1, 1024 // columns), "BLOCK_C": columns}


class _Read(torch.autograd.Function):
    """Launches of the kernels that read; tensors as in :func:`mhc_read_triton`."""

    @staticmethod
    def forward(
        ctx: Any, streams: Tensor, projection: Tensor, gate: Tensor, bias: Tensor, rounds: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, n, width = streams.shape
        x, *parameters = (v.contiguous() for v in (streams, projection, gate, bias))
        projected, routes = (x.new_empty(tokens, 2 * n + n * n, dtype=torch.float32) for _ in range(2))
        inverse, read = x.new_empty(tokens, dtype=torch.float32), x.new_empty(tokens, width)
        ctx.sizes, ctx.set_materialize_grads = _read_sizes(n, width, rounds), False
        with torch.cuda.device(x.get_device()):
            triton_read.read_kernel[(triton.cdiv(tokens, ctx.sizes["BLOCK"]),)](
                x, *parameters, projected, inverse, routes, read, tokens, _EPS, **ctx.sizes, num_warps=WARPS
            )
        ctx.save_for_backward(x, *parameters, projected, inverse)
        return read, routes, streams

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_read: Tensor | None, grad_routes: Tensor | None, held: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, projection, gate, bias, projected, inverse = ctx.saved_tensors
        sizes, (tokens, n, width) = ctx.sizes, x.shape
        grad_read = x.new_zeros(tokens, width) if grad_read is None else grad_read.contiguous()
        grad_routes = torch.zeros_like(projected) if grad_routes is None else grad_routes.contiguous()
        back = x if held is None else held.contiguous()
        grad_x, given = torch.empty_like(x), torch.empty_like(projected)
        blocks = triton.cdiv(tokens, sizes["BLOCK"])
        groups, runs = min(GROUPS, blocks), triton.cdiv(n * width, sizes["BLOCK_C"])
        of_routes = projected.new_empty(blocks, 2, projected.shape[1])
        parts = projected.new_empty(groups, *projection.shape)
        sums = projected.new_empty(blocks, 2 * sizes["ROUNDS"], sizes["BLOCK"], sizes["SIDE"])
        own = {key: value for key, value in sizes.items() if key != "ROUNDS"}
        with torch.cuda.device(x.get_device()):
            triton_read.read_gradient_kernel[(blocks,)](
                x, projection, gate, bias, projected, inverse, grad_read, grad_routes, back, grad_x, given,
                of_routes, sums, tokens, **sizes, HELD=held is not None, num_warps=WARPS,
            )  # fmt: skip
            triton_read.projection_gradient_kernel[(groups, runs)](x, given, parts, tokens, **own, num_warps=WARPS)
        of_bias, by_route = of_routes.sum(0)
        of_gate = torch.stack([part.sum() for part in by_route.split([n, n, n * n])])
        of_projection = parts.sum(0).to(projection.dtype)
        return grad_x, of_projection, of_gate.to(gate.dtype), of_bias.to(bias.dtype), None


class _Write(torch.autograd.Function):
    """Launches of the kernels that write; tensors as in :func:`mhc_write_triton`."""

    @staticmethod
    def forward(
        ctx: Any, streams: Tensor, routes: Tensor, f: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        tokens, n, width = streams.shape
        x, routes, f = (v.contiguous() for v in (streams, routes, f))
        ctx.sizes, ctx.eps = {**_write_sizes(n, width), "NORM": weight is not None}, float(eps)
        factor, shift = (x if v is None else v.contiguous() for v in (weight, bias))  # without a norm nobody reads them
        out = torch.empty_like(x)
        with torch.cuda.device(x.get_device()):
            triton_write.write_kernel[(triton.cdiv(tokens, ctx.sizes["BLOCK"]),)](
                x, routes, f, factor, shift, out, tokens, ctx.eps, **ctx.sizes, num_warps=WARPS
            )
        ctx.save_for_backward(x, routes, f, None if weight is None else factor)
        ctx.kind = None if bias is None else bias.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, routes, f, weight = ctx.saved_tensors
        grad_x, grad_routes, grad_f = (torch.empty_like(v) for v in (x, routes, f))
        blocks = triton.cdiv(x.shape[0], ctx.sizes["BLOCK"])
        parts = x.new_empty(blocks if weight is not None else 1, 2, x.shape[2], dtype=torch.float32)
        with torch.cuda.device(x.get_device()):
            triton_write.write_gradient_kernel[(blocks,)](
                x, routes, f, x if weight is None else weight, grad.contiguous(), grad_x, grad_routes, grad_f, parts,
                x.shape[0], ctx.eps, **ctx.sizes, num_warps=WARPS,
            )  # fmt: skip
        if weight is None:
            return grad_x, grad_routes, grad_f, None, None, None
        of_weight, of_bias = parts.sum(0)
        return grad_x, grad_routes, grad_f, of_weight.to(weight.dtype), of_bias.to(ctx.kind), None


def _refuse(streams: Tensor, *rest: Tensor) -> None:
    """What the kernels would compute wrongly, or not at all."""
    if any(tensor.dtype == torch.float64 for tensor in (streams, *rest)):
        raise TypeError("the Triton hyper-connections compute in float32: cast the inputs or choose the reference path")
    if streams.shape[1] > MAX_STREAMS:
        raise ValueError(
            f"the Triton hyper-connections take at most {MAX_STREAMS} streams, not {streams.shape[1]}: "
            "choose another kernel path (RECPOD_KERNELS=mhc_streams=torch)"
        )


def mhc_read_triton(
    streams: Tensor, projection: Tensor, gate: Tensor, bias: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as in :func:`models.kernels.mhc_streams.mhc_read`.

    Inputs in fp32, bf16 or fp16; what is read comes in the dtype of the streams, routes in fp32, gradients in the dtype
    of their inputs, equal from run to run. Not differentiable twice.

    Raises:
        TypeError: a tensor is in float64, which this path would silently round.
        ValueError: more than 8 streams.
    """
    _refuse(streams, projection, gate, bias)
    return _Read.apply(streams, projection, gate, bias, iterations)  # type: ignore[no-untyped-call]


def mhc_write_triton(streams: Tensor, routes: Tensor, output: Tensor, norm: Norm | None = None) -> Tensor:
    """Arguments as in :func:`models.kernels.mhc_streams.mhc_write`.

    Inputs in fp32, bf16 or fp16; the streams come back in their dtype, gradients in the dtype of their inputs, equal
    from run to run. Not differentiable twice.

    Raises:
        TypeError: a tensor is in float64, which this path would silently round.
        ValueError: more than 8 streams.
    """
    weight, bias, eps = norm or (None, None, 0.0)
    _refuse(streams, routes, output, *(v for v in (weight, bias) if v is not None))
    return _Write.apply(streams, routes, output, weight, bias, eps)  # type: ignore[no-untyped-call]


def mhc_streams_triton(*inputs: Tensor) -> Tensor:
    """Arguments as in :func:`models.kernels.mhc_streams.whole.read_and_write`, behind the two functions."""
    return read_and_write(mhc_read_triton, mhc_write_triton, *inputs)
