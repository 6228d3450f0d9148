"""The Triton kernels that write: ``H_res X + H_post^T F``, a LayerNorm over every stream if asked, and gradients.

A program holds all streams of a few tokens in registers: each number is read once and written once.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _streams(x: tl.tensor, t: tl.tensor, c: tl.tensor, mask: tl.tensor, N: tl.constexpr, C: tl.constexpr) -> tuple:
    """All streams of a block of tokens in float32, ``[BLOCK, BLOCK_C]`` each."""
    found = ()
    for n in tl.static_range(N):
        at = t[:, None] * (N * C) + n * C + c[None, :]
        found = found + (tl.load(x + at, mask=mask, other=0.0).to(tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    return found


@triton.jit
def _route(routes: tl.tensor, t: tl.tensor, inside: tl.tensor, K: tl.constexpr, place: tl.constexpr) -> tl.tensor:
    """One number of each token's routes, ``[BLOCK, 1]``."""
    return tl.load(routes + t * K + place, mask=inside, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _mixed(
    streams: tl.tuple, output: tl.tensor, routes: tl.tensor, t: tl.tensor, inside: tl.tensor, N: tl.constexpr,
    n: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Stream ``n`` as it is written, before any norm."""
    K: tl.constexpr = 2 * N + N * N
    total = _route(routes, t, inside, K, N + n) * output
    for j in tl.static_range(N):
        total += _route(routes, t, inside, K, 2 * N + n * N + j) * streams[j]
    return total


@triton.jit
def _normed(mixed: tl.tensor, mask: tl.tensor, eps: tl.tensor, C: tl.constexpr) -> tuple:
    """A LayerNorm without weight and bias, and one over the standard deviation."""
    away = tl.where(mask, mixed - (tl.sum(mixed, axis=1) / C)[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(away * away, axis=1) / C + eps)
    return away * inverse[:, None], inverse


@triton.jit
def write_kernel(
    x: tl.tensor, routes: tl.tensor, f: tl.tensor, weight: tl.tensor, bias: tl.tensor, out: tl.tensor,
    tokens: tl.tensor, eps: tl.tensor, N: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
    NORM: tl.constexpr,
) -> None:  # fmt: skip
    """The streams behind the sub-layer, of a block of tokens."""
    t, c = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64), tl.arange(0, BLOCK_C)
    inside, real = t < tokens, c < C
    mask = inside[:, None] & real[None, :]
    streams = _streams(x, t, c, mask, N, C)
    output = tl.load(f + t[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORM:
        factor, shift = tl.load(weight + c, mask=real, other=0.0), tl.load(bias + c, mask=real, other=0.0)
    for n in tl.static_range(N):
        total = _mixed(streams, output, routes, t, inside, N, n)
        if NORM:
            total = _normed(total, mask, eps, C)[0] * factor.to(tl.float32)[None, :] + shift.to(tl.float32)[None, :]
        at = t[:, None] * (N * C) + n * C + c[None, :]
        tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def write_gradient_kernel(
    x: tl.tensor, routes: tl.tensor, f: tl.tensor, weight: tl.tensor, grad: tl.tensor, grad_x: tl.tensor,
    grad_routes: tl.tensor, grad_f: tl.tensor, parts: tl.tensor, tokens: tl.tensor, eps: tl.tensor, N: tl.constexpr,
    C: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, NORM: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of streams, routes and output.

    ``parts`` ``[blocks, 2, C]`` takes what this block gives to the norm's weight and bias. The streams before the norm
    are mixed again: nothing of them was kept.
    """
    K: tl.constexpr = 2 * N + N * N
    t, c = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64), tl.arange(0, BLOCK_C)
    inside, real = t < tokens, c < C
    mask = inside[:, None] & real[None, :]
    streams = _streams(x, t, c, mask, N, C)
    output = tl.load(f + t[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    outer = _streams(grad, t, c, mask, N, C)
    if NORM:
        factor = tl.load(weight + c, mask=real, other=0.0).to(tl.float32)
        of_weight, of_bias = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
        before = ()
        for n in tl.static_range(N):
            normed, inverse = _normed(_mixed(streams, output, routes, t, inside, N, n), mask, eps, C)
            of_weight += tl.sum(outer[n] * normed, axis=0)
            of_bias += tl.sum(outer[n], axis=0)
            inner = outer[n] * factor[None, :]
            level, lean = tl.sum(inner, axis=1) / C, tl.sum(inner * normed, axis=1) / C
            inner = (inner - level[:, None] - normed * lean[:, None]) * inverse[:, None]
            before = before + (tl.where(mask, inner, 0.0),)  # type: ignore[assignment]  # noqa: RUF005
        outer = before
        part = parts + tl.program_id(0).to(tl.int64) * 2 * C
        tl.store(part + c, of_weight, mask=real)
        tl.store(part + C + c, of_bias, mask=real)
    total = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    own = grad_routes + t * K
    for i in tl.static_range(N):
        total += _route(routes, t, inside, K, N + i) * outer[i]
        tl.store(
            own + i, tl.zeros((BLOCK,), grad_routes.dtype.element_ty), mask=inside
        )  # H_pre is not used for writing
        tl.store(own + N + i, tl.sum(outer[i] * output, axis=1).to(own.dtype.element_ty), mask=inside)
        for j in tl.static_range(N):
            tl.store(
                own + 2 * N + i * N + j, tl.sum(outer[i] * streams[j], axis=1).to(own.dtype.element_ty), mask=inside
            )
    tl.store(grad_f + t[:, None] * C + c[None, :], total.to(grad_f.dtype.element_ty), mask=mask)
    for j in tl.static_range(N):
        total = tl.zeros((BLOCK, BLOCK_C), tl.float32)
        for i in tl.static_range(N):
            total += _route(routes, t, inside, K, 2 * N + i * N + j) * outer[i]
        at = t[:, None] * (N * C) + j * C + c[None, :]
        tl.store(grad_x + at, total.to(grad_x.dtype.element_ty), mask=mask)
