"""Hyper-connections compiled for the CPU by numba: the streams are read once a direction and half, in tiles.

What a sub-layer of T tokens moves, in units of the streams ``[T, n, C]``: reading takes 1 1/4 (streams in, input of the
sub-layer out), writing 2 1/4; backward 3 1/4 and 3 1/4. Nothing but the streams, 48 numbers a token of products and
the sub-layer's own input and output is kept. Equal numbers for any number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.kernels.compiled import flat, round_up, run_tasks
from models.kernels.mhc_streams import cpu_read, cpu_write
from models.kernels.mhc_streams.vectorised import Norm
from models.kernels.mhc_streams.whole import read_and_write
from models.kernels.simd import LANES

GROUPS = 16  # runs of tokens dealt to threads; each has partial sums of its own
_EPS = torch.finfo(torch.float32).eps  # of torch's rms_norm


def _borders(count: int) -> list[tuple[int, int]]:
    """At most GROUPS runs of ``count`` things, a function of their number alone."""
    edges = np.unique(np.arange(GROUPS + 1) * count // GROUPS)
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _columns(tensor: Tensor, columns: int) -> Tensor:
    """``tensor`` contiguous with zeros up to ``columns`` in its last dimension; itself where it is that already."""
    missing = columns - tensor.shape[-1]
    return (functional.pad(tensor, (0, missing)) if missing else tensor).contiguous()


def _rows(tensor: Tensor, first: int) -> Tensor:
    """The rows from ``first`` on, filled up with zeros to a tile of sixteen."""
    rest = tensor[first:]
    return functional.pad(rest, (0, 0) * (rest.dim() - 1) + (0, LANES - rest.shape[0])).contiguous()


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, streams: Tensor, projection: Tensor, gate: Tensor, bias: Tensor, rounds: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, n, width = streams.shape
        C, K = round_up(width, LANES), round_up(2 * n + n * n, LANES)
        ctx.sizes, ctx.set_materialize_grads = (n, C, K, n * width), False
        x = _columns(streams, C)
        weight = _columns(projection.view(-1, n, width), C).view(-1, n * C)  # [2n + n^2, n C]
        table = _columns(weight.t(), K)  # [n C, K]
        scale, shift = _columns(_of_routes(gate, n), K), _columns(bias, K)
        projected, inverse = torch.empty(tokens, K), torch.empty(tokens)
        routes, read = torch.empty(tokens, K), torch.empty(tokens, C)
        constants = (flat(table), flat(scale), flat(shift), *ctx.sizes, _EPS, rounds)
        _run_read(x, constants, (projected, inverse, routes, read))
        ctx.save_for_backward(x, weight, scale, shift, projected, inverse)
        ctx.rounds, ctx.width = rounds, width
        return read[:, :width], routes[:, : 2 * n + n * n], streams

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_read: Tensor | None, grad_routes: Tensor | None, held: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight, scale, shift, projected, inverse = ctx.saved_tensors
        (n, C, K, _), tokens, used = ctx.sizes, x.shape[0], weight.shape[0]
        grad_read = x.new_zeros(tokens, C) if grad_read is None else _columns(grad_read, C)
        grad_routes = x.new_zeros(tokens, K) if grad_routes is None else _padded_routes(grad_routes, K)
        back = None if held is None else _columns(held, C)
        grad_x = torch.empty_like(x)
        constants = (flat(weight), flat(scale), flat(shift), *ctx.sizes, ctx.rounds)
        arrays = x, projected, inverse, grad_read, grad_routes, x if back is None else back
        grad_weight, sums = _run_read_backward(arrays, back is not None, constants, grad_x)
        by_route = sums[0, :used]
        gates = torch.stack([part.sum() for part in by_route.split([n, n, n * n])])  # type: ignore[no-untyped-call]
        cut = grad_weight[:used].view(used, n, C)[:, :, : ctx.width].flatten(1)
        return grad_x[..., : ctx.width], cut, gates, sums[1, :used], None


def _of_routes(gate: Tensor, n: int) -> Tensor:
    """a_pre, a_post and a_res, ``[3]``, once for each of their routes, ``[2n + n^2]``."""
    return torch.cat([gate[place].expand(count) for place, count in enumerate((n, n, n * n))])


def _padded_routes(routes: Tensor, K: int) -> Tensor:
    """``[T, K]``; what a function here has made is the front of such a tensor and is taken without a copy."""
    tokens, held = routes.shape[0], routes.untyped_storage().nbytes() // routes.element_size()
    if routes.stride() == (K, 1) and held >= routes.storage_offset() + tokens * K:
        return routes.detach().as_strided((tokens, K), (K, 1))
    return _columns(routes, K)


def _run_read(x: Tensor, constants: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    tokens = x.shape[0]
    tiles, sizes, rest = tokens // LANES, constants[:-2], constants[-2:]
    groups, results, source = _borders(tiles), [flat(one) for one in outputs], flat(x)

    def run(number: int) -> None:
        cpu_read.forward(source, *sizes, *rest, *groups[number], *results)

    run_tasks(run, len(groups))
    if tokens % LANES:
        last = [one.new_empty(LANES, *one.shape[1:]) for one in outputs]
        cpu_read.forward(flat(_rows(x, tiles * LANES)), *sizes, *rest, 0, 1, *(flat(one) for one in last))
        for one, few in zip(outputs, last, strict=True):
            one[tiles * LANES :] = few[: tokens % LANES]


def _run_read_backward(
    arrays: tuple[Tensor, ...], has_held: bool, constants: tuple[Any, ...], grad_x: Tensor
) -> tuple[Tensor, Tensor]:
    """Fills ``grad_x``; gives the gradients of the projection ``[K, n C]`` and of scales and biases ``[2, K]``."""
    tokens, (n, C, K) = grad_x.shape[0], constants[3:6]
    tiles = tokens // LANES
    groups = _borders(tiles)
    parts, sums = torch.empty(len(groups) + 1, K, n * C), torch.empty(len(groups) + 1, 2, K, LANES)
    partial, totals = flat(parts), flat(sums)

    def call(tensors: tuple[Tensor, ...], out: Tensor, first: int, last: int, group: int) -> None:
        x, projected, inverse, grad_read, grad_routes, held = (flat(one) for one in tensors)
        ends = (grad_read, grad_routes, held, int(has_held), flat(out), partial, totals, group)
        cpu_read.backward(x, projected, inverse, *constants, first, last, *ends)

    run_tasks(lambda number: call(arrays, grad_x, *groups[number], number), len(groups))
    used = len(groups)
    if tokens % LANES:
        few = torch.empty(LANES, n, C)
        call(tuple(_rows(one, tiles * LANES) for one in arrays), few, 0, 1, used)
        grad_x[tiles * LANES :] = few[: tokens % LANES]
        used += 1
    return parts[:used].sum(0), sums[:used].sum((0, 3))


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        streams: Tensor,
        routes: Tensor,
        output: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        tokens, n, width = streams.shape
        C, K = round_up(width, LANES), round_up(2 * n + n * n, LANES)
        x, routes, f = _columns(streams, C), _padded_routes(routes, K), _columns(output, C)
        norm = weight is not None and bias is not None
        none = x.new_empty(0)
        weight, bias = (
            (_columns(weight, C), _columns(bias, C)) if weight is not None and bias is not None else (none,) * 2
        )
        out = torch.empty_like(x)
        groups, arrays, result = _borders(tokens), (flat(x), flat(routes), flat(f)), flat(out)
        ctx.sizes = n, C, K, width
        ends = int(norm), flat(weight), flat(bias), eps

        def run(number: int) -> None:
            cpu_write.forward(*arrays, *ctx.sizes, *groups[number], *ends, result)

        run_tasks(run, len(groups))
        ctx.save_for_backward(x, routes, f, weight)
        ctx.norm, ctx.eps = norm, eps
        return out[..., :width]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, routes, f, weight = ctx.saved_tensors
        n, C, _, width = ctx.sizes
        groups = _borders(x.shape[0])
        grad_x, grad_f, grad_routes = torch.empty_like(x), torch.empty_like(f), torch.empty_like(routes)
        parts = torch.empty(len(groups), 2, C)
        arrays = flat(x), flat(routes), flat(f), flat(_columns(grad, C))
        results = [flat(one) for one in (grad_x, grad_f, grad_routes, parts)]
        ends = int(ctx.norm), flat(weight), ctx.eps

        def run(number: int) -> None:
            cpu_write.backward(*arrays, *ctx.sizes, *groups[number], *ends, *results, number)

        run_tasks(run, len(groups))
        of_norm = parts.sum(0)[:, :width] if ctx.norm else (None, None)
        return grad_x[..., :width], grad_routes[:, : 2 * n + n * n], grad_f[:, :width], of_norm[0], of_norm[1], None


def mhc_read_numba(
    streams: Tensor, projection: Tensor, gate: Tensor, bias: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """float32 only; arguments as in :func:`models.kernels.mhc_streams.mhc_read`."""
    return _Read.apply(streams, projection, gate, bias, iterations)  # type: ignore[no-untyped-call]


def mhc_write_numba(streams: Tensor, routes: Tensor, output: Tensor, norm: Norm | None = None) -> Tensor:
    """float32 only; arguments as in :func:`models.kernels.mhc_streams.mhc_write`."""
    weight, bias, eps = norm or (None, None, 0.0)
    return _Write.apply(streams, routes, output, weight, bias, eps)  # type: ignore[no-untyped-call]


def mhc_streams_numba(*inputs: Tensor) -> Tensor:
    """Arguments as in :func:`models.kernels.mhc_streams.whole.read_and_write`, behind the two functions."""
    return read_and_write(mhc_read_numba, mhc_write_numba, *inputs)
