"""The Triton kernels that read: routes of every token out of its streams, the sub-layer's input, and their gradients.

In registers the numbers of the gates and of the mix stand in two runs of powers of two, ``GATES`` (H_pre, then H_post
from ``SIDE`` on) and ``SIDE x SIDE`` (H_res), zero where there is no route: ``[BLOCK, SIDE, SIDE]`` is what the rounds
of Sinkhorn and Knopp work on. In memory there are the ``2n + n^2`` routes alone.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(base: tl.tensor, at: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """``[BLOCK, C]`` in float32, 0 outside the mask."""
    return tl.load(base + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _weights(projection: tl.tensor, at: tl.tensor, real: tl.tensor, c: tl.tensor, width: tl.constexpr) -> tl.tensor:
    """Rows ``at`` of the projection at columns ``c``, ``[R, BLOCK_C]``; 0 where there is none."""
    mask = real[:, None] & (c < width)[None, :]
    return tl.load(projection + at[:, None] * width + c[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _places(N: tl.constexpr, GATES: tl.constexpr, SIDE: tl.constexpr) -> tuple:
    """Which routes the numbers of both runs are, and which of them are any."""
    g, m = tl.arange(0, GATES), tl.arange(0, SIDE * SIDE)
    own = tl.where(g >= SIDE, g - SIDE, g)
    i, j = m // SIDE, m % SIDE
    return (
        tl.where(g >= SIDE, own + N, own),
        (own < N) & (g < 2 * SIDE),
        2 * N + i * N + j,
        (i < N) & (j < N),
    )


@triton.jit
def _existing(N: tl.constexpr, SIDE: tl.constexpr) -> tuple:
    """Which places of ``[1, SIDE, SIDE]`` are in H_res, and 1 for the rows (columns) that are not."""
    i = tl.arange(0, SIDE)
    both = (i < N)[None, :, None] & (i < N)[None, None, :]
    return both, tl.where(i < N, 0.0, 1.0)[None, :]


@triton.jit
def _positive(logits: tl.tensor, valid: tl.tensor) -> tl.tensor:
    """``exp`` of ``[BLOCK, SIDE, SIDE]``, each row's largest number 1: the first round takes a row's factor out."""
    highest = tl.max(tl.where(valid, logits, -3.0e38), axis=2)
    return tl.where(valid, tl.exp(tl.where(valid, logits - highest[:, :, None], 0.0)), 0.0)


@triton.jit
def _round(mix: tl.tensor, padding: tl.tensor) -> tuple:
    """Rows, then columns divided by their sums, and both sums, ``[BLOCK, SIDE]``."""
    of_rows = tl.sum(mix, axis=2) + padding
    mix = mix * (1.0 / of_rows)[:, :, None]
    of_columns = tl.sum(mix, axis=1) + padding
    return mix * (1.0 / of_columns)[:, None, :], of_rows, of_columns


@triton.jit
def _logits(
    of_gates: tl.tensor, of_mix: tl.tensor, inverse: tl.tensor, gate: tl.tensor, bias: tl.tensor, N: tl.constexpr,
    GATES: tl.constexpr, SIDE: tl.constexpr, BLOCK: tl.constexpr,
) -> tuple:  # fmt: skip
    """Logits of the gates ``[BLOCK, GATES]`` and of the mix ``[BLOCK, SIDE, SIDE]``; what scales their products."""
    at_g, real_g, at_m, real_m = _places(N, GATES, SIDE)
    pre, post, res = (tl.load(gate).to(tl.float32), tl.load(gate + 1).to(tl.float32), tl.load(gate + 2).to(tl.float32))
    by_gate = inverse[:, None] * tl.where(tl.arange(0, GATES) >= SIDE, post, pre)[None, :]
    by_mix = inverse[:, None] * res
    gates = of_gates * by_gate + tl.load(bias + at_g, mask=real_g, other=0.0).to(tl.float32)[None, :]
    mix = of_mix * by_mix + tl.load(bias + at_m, mask=real_m, other=0.0).to(tl.float32)[None, :]
    return gates, tl.reshape(mix, (BLOCK, SIDE, SIDE)), by_gate, by_mix


@triton.jit
def read_kernel(
    x: tl.tensor, projection: tl.tensor, gate: tl.tensor, bias: tl.tensor, projected: tl.tensor, inverse: tl.tensor,
    routes: tl.tensor, read: tl.tensor, tokens: tl.tensor, eps: tl.tensor, N: tl.constexpr, C: tl.constexpr,
    GATES: tl.constexpr, SIDE: tl.constexpr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """Products with the projection, routes and ``H_pre X`` of a block of tokens."""
    K: tl.constexpr = 2 * N + N * N
    WIDTH: tl.constexpr = N * C
    t = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside, g = t < tokens, tl.arange(0, GATES)
    at_g, real_g, at_m, real_m = _places(N, GATES, SIDE)
    of_gates, of_mix = tl.zeros((BLOCK, GATES), tl.float32), tl.zeros((BLOCK, SIDE * SIDE), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    for begin in tl.range(0, WIDTH, BLOCK_C):
        c = begin + tl.arange(0, BLOCK_C)
        tile = _tile(x, t[:, None] * WIDTH + c[None, :], inside[:, None] & (c < WIDTH)[None, :])
        squares += tl.sum(tile * tile, axis=1)
        of_gates += tl.dot(tile, tl.trans(_weights(projection, at_g, real_g, c, WIDTH)), input_precision="ieee")
        of_mix += tl.dot(tile, tl.trans(_weights(projection, at_m, real_m, c, WIDTH)), input_precision="ieee")
    one_over = 1.0 / tl.sqrt(squares / WIDTH + eps)
    tl.store(inverse + t, one_over, mask=inside)
    held, shown_g, shown_m = t[:, None] * K, inside[:, None] & real_g[None, :], inside[:, None] & real_m[None, :]
    tl.store(projected + held + at_g[None, :], of_gates, mask=shown_g)
    tl.store(projected + held + at_m[None, :], of_mix, mask=shown_m)
    gates, mix, _by_gate, _by_mix = _logits(of_gates, of_mix, one_over, gate, bias, N, GATES, SIDE, BLOCK)
    gates = tl.sigmoid(gates)
    tl.store(routes + held + at_g[None, :], gates * tl.where(g >= SIDE, 2.0, 1.0)[None, :], mask=shown_g)
    existing, padding = _existing(N, SIDE)
    mix = _positive(mix, existing)
    for _ in tl.range(0, ROUNDS):
        mix, _of_rows, _of_columns = _round(mix, padding)
    tl.store(routes + held + at_m[None, :], tl.reshape(mix, (BLOCK, SIDE * SIDE)), mask=shown_m)
    for begin in tl.range(0, C, BLOCK_C):
        c = begin + tl.arange(0, BLOCK_C)
        mask, total = inside[:, None] & (c < C)[None, :], tl.zeros((BLOCK, BLOCK_C), tl.float32)
        for n in tl.range(0, N):  # a second look at the streams, which the first has brought near
            tile = _tile(x, t[:, None] * WIDTH + n * C + c[None, :], mask)
            total += tl.sum(tl.where(g[None, :] == n, gates, 0.0), axis=1)[:, None] * tile
        tl.store(read + t[:, None] * C + c[None, :], total.to(read.dtype.element_ty), mask=mask)


@triton.jit
def _before_rounds(
    positive: tl.tensor, given: tl.tensor, padding: tl.tensor, sums: tl.tensor, ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr, SIDE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The gradient before the rounds from that behind them.

    What was divided by waits in ``sums`` ``[2 ROUNDS, BLOCK, SIDE]`` of this block; the mix is multiplied back by it.
    Held in registers it would fill them all (255 a thread), and the code would be 330 KB.
    """
    own = sums + tl.arange(0, BLOCK)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    mix = positive
    for step in tl.range(0, ROUNDS):
        mix, of_rows, of_columns = _round(mix, padding)
        tl.store(own + 2 * step * BLOCK * SIDE, of_rows)
        tl.store(own + (2 * step + 1) * BLOCK * SIDE, of_columns)
    tl.debug_barrier()  # what one thread has stored another may read
    for back in tl.range(0, ROUNDS):
        step = ROUNDS - 1 - back
        of_columns = tl.load(own + (2 * step + 1) * BLOCK * SIDE)
        given = (given - tl.sum(given * mix, axis=1)[:, None, :]) * (1.0 / of_columns)[:, None, :]
        mix = mix * of_columns[:, None, :]
        of_rows = tl.load(own + 2 * step * BLOCK * SIDE)
        given = (given - tl.sum(given * mix, axis=2)[:, :, None]) * (1.0 / of_rows)[:, :, None]
        mix = mix * of_rows[:, :, None]
    return given


@triton.jit
def _pre_gradient(
    x: tl.tensor, grad_read: tl.tensor, t: tl.tensor, inside: tl.tensor, g: tl.tensor, N: tl.constexpr, C: tl.constexpr,
    GATES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Gradients of H_pre where its numbers stand, ``[BLOCK, GATES]``, from what was read."""
    found = tl.zeros((BLOCK, GATES), tl.float32)
    for n in tl.range(0, N):
        total = tl.zeros((BLOCK,), tl.float32)
        for begin in tl.range(0, C, BLOCK_C):
            c = begin + tl.arange(0, BLOCK_C)
            mask = inside[:, None] & (c < C)[None, :]
            tile = _tile(x, t[:, None] * (N * C) + n * C + c[None, :], mask)
            outer = _tile(grad_read, t[:, None] * C + c[None, :], mask)
            total += tl.sum(tile * outer, axis=1)
        found += tl.where(g[None, :] == n, total[:, None], 0.0)
    return found


@triton.jit
def read_gradient_kernel(
    x: tl.tensor, projection: tl.tensor, gate: tl.tensor, bias: tl.tensor, projected: tl.tensor, inverse: tl.tensor,
    grad_read: tl.tensor, grad_routes: tl.tensor, grad_held: tl.tensor, grad_x: tl.tensor, given: tl.tensor,
    parts: tl.tensor, sums: tl.tensor, tokens: tl.tensor, N: tl.constexpr, C: tl.constexpr, GATES: tl.constexpr,
    SIDE: tl.constexpr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, HELD: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of the streams and of the products (``given``).

    ``parts`` ``[blocks, 2, K]``: what this block gives to the biases, and by route to the gates.
    """
    K: tl.constexpr = 2 * N + N * N
    WIDTH: tl.constexpr = N * C
    KEPT: tl.constexpr = 2 * ROUNDS * BLOCK * SIDE
    t = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside, g = t < tokens, tl.arange(0, GATES)
    at_g, real_g, at_m, real_m = _places(N, GATES, SIDE)
    held, shown_g, shown_m = t[:, None] * K, inside[:, None] & real_g[None, :], inside[:, None] & real_m[None, :]
    of_gates = tl.load(projected + held + at_g[None, :], mask=shown_g, other=0.0)
    of_mix = tl.load(projected + held + at_m[None, :], mask=shown_m, other=0.0)
    one_over = tl.load(inverse + t, mask=inside, other=0.0)
    gates, mix, by_gate, by_mix = _logits(of_gates, of_mix, one_over, gate, bias, N, GATES, SIDE, BLOCK)
    gates = tl.sigmoid(gates)
    outer = tl.load(grad_routes + held + at_g[None, :], mask=shown_g, other=0.0).to(tl.float32)
    outer = outer * tl.where(g >= SIDE, 2.0, 1.0)[None, :]
    outer += _pre_gradient(x, grad_read, t, inside, g, N, C, GATES, BLOCK, BLOCK_C)
    to_gates = outer * gates * (1.0 - gates)
    existing, padding = _existing(N, SIDE)
    positive = _positive(mix, existing)
    behind = tl.load(grad_routes + held + at_m[None, :], mask=shown_m, other=0.0).to(tl.float32)
    behind, scratch = tl.reshape(behind, (BLOCK, SIDE, SIDE)), sums + tl.program_id(0).to(tl.int64) * KEPT
    before = _before_rounds(positive, behind, padding, scratch, ROUNDS, BLOCK, SIDE) * positive
    to_mix = tl.where(shown_m, tl.reshape(before, (BLOCK, SIDE * SIDE)), 0.0)
    part = parts + tl.program_id(0).to(tl.int64) * 2 * K
    tl.store(part + at_g, tl.sum(to_gates, axis=0), mask=real_g)
    tl.store(part + at_m, tl.sum(to_mix, axis=0), mask=real_m)
    tl.store(part + K + at_g, tl.sum(to_gates * of_gates * one_over[:, None], axis=0), mask=real_g)
    tl.store(part + K + at_m, tl.sum(to_mix * of_mix * one_over[:, None], axis=0), mask=real_m)
    to_gates, to_mix = to_gates * by_gate, to_mix * by_mix
    tl.store(given + held + at_g[None, :], to_gates, mask=shown_g)
    tl.store(given + held + at_m[None, :], to_mix, mask=shown_m)
    along = tl.sum(to_gates * of_gates, axis=1) + tl.sum(to_mix * of_mix, axis=1)
    along = along * one_over * one_over / WIDTH  # the norm's own share: no further look at the streams
    for n in tl.range(0, N):
        pre = tl.sum(tl.where(g[None, :] == n, gates, 0.0), axis=1)
        for begin in tl.range(0, C, BLOCK_C):
            own = begin + tl.arange(0, BLOCK_C)
            c = n * C + own
            at, mask = t[:, None] * WIDTH + c[None, :], inside[:, None] & (own < C)[None, :]
            tile, read = _tile(x, at, mask), _tile(grad_read, t[:, None] * C + own[None, :], mask)
            total = pre[:, None] * read - along[:, None] * tile
            if HELD:
                total += _tile(grad_held, at, mask)
            total += tl.dot(to_gates, _weights(projection, at_g, real_g, c, WIDTH), input_precision="ieee")
            total += tl.dot(to_mix, _weights(projection, at_m, real_m, c, WIDTH), input_precision="ieee")
            tl.store(grad_x + at, total.to(grad_x.dtype.element_ty), mask=mask)


@triton.jit
def projection_gradient_kernel(
    x: tl.tensor, given: tl.tensor, parts: tl.tensor, tokens: tl.tensor, N: tl.constexpr, C: tl.constexpr,
    GATES: tl.constexpr, SIDE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """``given^T X`` over every so many blocks of tokens, for a run of columns: one part of the projection's."""
    K: tl.constexpr = 2 * N + N * N
    WIDTH: tl.constexpr = N * C
    group, c = tl.program_id(0), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    at_g, real_g, at_m, real_m = _places(N, GATES, SIDE)
    of_gates, of_mix = tl.zeros((GATES, BLOCK_C), tl.float32), tl.zeros((SIDE * SIDE, BLOCK_C), tl.float32)
    for begin in tl.range(group * BLOCK, tokens, tl.num_programs(0) * BLOCK):
        t = (begin + tl.arange(0, BLOCK)).to(tl.int64)
        inside = t < tokens
        tile = _tile(x, t[:, None] * WIDTH + c[None, :], inside[:, None] & (c < WIDTH)[None, :])
        turned = given + t[None, :] * K
        to_gates = tl.load(turned + at_g[:, None], mask=inside[None, :] & real_g[:, None], other=0.0)
        to_mix = tl.load(turned + at_m[:, None], mask=inside[None, :] & real_m[:, None], other=0.0)
        of_gates += tl.dot(to_gates, tile, input_precision="ieee")
        of_mix += tl.dot(to_mix, tile, input_precision="ieee")
    part, inside = parts + group.to(tl.int64) * K * WIDTH + c[None, :], (c < WIDTH)[None, :]
    tl.store(part + at_g[:, None] * WIDTH, of_gates, mask=inside & real_g[:, None])
    tl.store(part + at_m[:, None] * WIDTH, of_mix, mask=inside & real_m[:, None])
