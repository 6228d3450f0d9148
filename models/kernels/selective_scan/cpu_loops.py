"""The loops of the selective scan that numba compiles: (row, 16 channels, 32 tokens, 4 states), innermost the tokens.

All arrays are flat. ``a2`` is ``[N, D]`` in powers of two, ``exp(delta a) = 2^(delta a2)``; N is a multiple of 4 and D
of 16 (the caller pads). A block of 4 states and 16 channels keeps its carries in registers over the tokens of a chunk.
"""

# mypy: ignore-errors
# ruff: noqa: ANN, C901
from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from models.kernels.compiled import compiled
from models.kernels.simd import (
    LANES,
    add_sums,
    dot4,
    exp2_4,
    fma,
    fma4,
    load,
    load4,
    mul4,
    scale4,
    scale_add4,
    sigmoid,
    softplus,
    splat,
    splat4,
    store,
    store4,
)  # fmt: skip

CHUNK = 32  # tokens between kept states: a chunk's scratch (26 KB in the backward pass) fits the L1 cache
STATES = 4  # states worked on at once
LN_2 = 0.6931471805599453
_SIZE, _WIDE = CHUNK * LANES, STATES * LANES
# places in the scratch of a chunk, each [CHUNK, LANES]
_DELTA, _DRIVE, _SUM, _FROM_B, _FROM_A = range(0, 5 * _SIZE, _SIZE)

_F, _I = "float32[::1]", "int64[::1]"
_INPUTS = f"{_F},int64,{_F},int64,{_F},int64,{_F},{_F},{_F},{_F},{_F},{_I},{_I},int64,int64,int64,int64"


@register_jitable
def _forward_block(scratch, state, a2, b, c, start, count, n, N, D, d):
    a = load4(a2, n * D + d, D)
    h = load4(state, n * LANES, LANES)
    for i in range(count):
        t = (start + i) * N + n
        decay = exp2_4(scale4(load(scratch, _DELTA + i * LANES), a))
        h = fma4(decay, h, scale4(load(scratch, _DRIVE + i * LANES), splat4(b, t)))
        store(scratch, _SUM + i * LANES, dot4(h, splat4(c, t), load(scratch, _SUM + i * LANES)))
    store4(state, n * LANES, LANES, h)


@compiled(f"void({_INPUTS},{_F},{_F},{_F},boolean)")
def forward(
    x, x_row, dt, dt_row, z, z_row, dt_bias, a2, b, c, skip, offsets, chunks, first, last, N, D,
    out, summed, kept, keep,
):  # fmt: skip
    """Rows ``first .. last - 1``: ``out`` and, to ``keep``, the sum before the gate and the state before each chunk."""
    scratch = np.empty(3 * _SIZE, np.float32)
    state = np.empty(N * LANES, np.float32)
    for row in range(first, last):
        for d in range(0, D, LANES):
            bias, through = load(dt_bias, d), load(skip, d)
            state[:] = 0
            chunk = chunks[row]
            for start in range(offsets[row], offsets[row + 1], CHUNK):
                count = min(CHUNK, offsets[row + 1] - start)
                for i in range(count):
                    delta = softplus(load(dt, (start + i) * dt_row + d) + bias)
                    value = load(x, (start + i) * x_row + d)
                    store(scratch, _DELTA + i * LANES, delta)
                    store(scratch, _DRIVE + i * LANES, delta * value)
                    store(scratch, _SUM + i * LANES, through * value)
                for n in range(0, N, STATES):
                    if keep:
                        h = load4(state, n * LANES, LANES)
                        store4(kept, (chunk * D + d) * N + n * LANES, LANES, h)
                    _forward_block(scratch, state, a2, b, c, start, count, n, N, D, d)
                for i in range(count):
                    gate, total = load(z, (start + i) * z_row + d), load(scratch, _SUM + i * LANES)
                    if keep:
                        store(summed, (start + i) * D + d, total)
                    store(out, (start + i) * D + d, total * gate * sigmoid(gate))
                chunk += 1


@register_jitable
def _again_block(scratch, decays, states, h, a, b, start, count, n, N):
    """The forward pass of a chunk once more: decays and the states before each token, to the cache."""
    for i in range(count):
        decay = exp2_4(scale4(load(scratch, _DELTA + i * LANES), a))
        store4(states, i * _WIDE, LANES, h)
        store4(decays, i * _WIDE, LANES, decay)
        h = fma4(decay, h, scale4(load(scratch, _DRIVE + i * LANES), splat4(b, (start + i) * N + n)))
    return h


@register_jitable
def _backward_block(scratch, decays, states, carry, h, a, part, b, c, grad_b, grad_c, start, count, n, N):
    """Back through a chunk: ``h`` are the states after its last token; returns ``part`` with this chunk's share."""
    g = load4(carry, n * LANES, LANES)
    for i in range(count - 1, -1, -1):
        t, at = (start + i) * N + n, i * LANES
        above, driven = load(scratch, _SUM + at), load(scratch, _DRIVE + at)
        add_sums(grad_c, t, scale4(above, h))
        g = scale_add4(above, splat4(c, t), g)  # of this token's state
        add_sums(grad_b, t, scale4(driven, g))
        store(scratch, _FROM_B + at, dot4(g, splat4(b, t), load(scratch, _FROM_B + at)))
        h = load4(states, i * _WIDE, LANES)
        g = mul4(g, load4(decays, i * _WIDE, LANES))  # of the state before
        exponent = mul4(g, h)  # of delta a
        part = scale_add4(load(scratch, _DELTA + at), exponent, part)
        store(scratch, _FROM_A + at, dot4(exponent, a, load(scratch, _FROM_A + at)))
    store4(carry, n * LANES, LANES, g)
    return part


@compiled(f"void({_INPUTS},{','.join([_F] * 11)},int64)")
def backward(
    x, x_row, dt, dt_row, z, z_row, dt_bias, a2, b, c, skip, offsets, chunks, first, last, N, D,
    grad, summed, kept, grad_x, grad_dt, grad_z, grad_b, grad_c, part_a, part_skip, part_bias, group,
):  # fmt: skip
    """Gradients of rows ``first .. last - 1``; those of parameters are added to this ``group``'s part of the sums."""
    scratch = np.empty(5 * _SIZE, np.float32)
    decays, states = np.empty(STATES * _SIZE, np.float32), np.empty(STATES * _SIZE, np.float32)
    carry = np.empty(N * LANES, np.float32)  # gradient of the state, on its way back
    for row in range(first, last):
        for d in range(0, D, LANES):
            bias, through = load(dt_bias, d), load(skip, d)
            sum_skip, sum_bias = load(part_skip, group * D + d), load(part_bias, group * D + d)
            carry[:] = 0
            for chunk in range(chunks[row + 1] - 1, chunks[row] - 1, -1):
                start = offsets[row] + (chunk - chunks[row]) * CHUNK
                count = min(CHUNK, offsets[row + 1] - start)
                for i in range(count):
                    t = start + i
                    value, gate, g = load(x, t * x_row + d), load(z, t * z_row + d), load(grad, t * D + d)
                    open_ = sigmoid(gate)
                    slope = open_ * fma(gate, splat(1.0) - open_, splat(1.0))  # derivative of SiLU
                    store(grad_z, t * D + d, g * load(summed, t * D + d) * slope)
                    g = g * gate * open_
                    delta = softplus(load(dt, t * dt_row + d) + bias)
                    store(scratch, _DELTA + i * LANES, delta)
                    store(scratch, _DRIVE + i * LANES, delta * value)
                    store(scratch, _SUM + i * LANES, g)
                    store(scratch, _FROM_B + i * LANES, splat(0.0))
                    store(scratch, _FROM_A + i * LANES, splat(0.0))
                    sum_skip = fma(g, value, sum_skip)
                for n in range(0, N, STATES):
                    a = load4(a2, n * D + d, D)
                    h = load4(kept, (chunk * D + d) * N + n * LANES, LANES)
                    h = _again_block(scratch, decays, states, h, a, b, start, count, n, N)
                    place = (group * N + n) * D + d
                    part = load4(part_a, place, D)
                    part = _backward_block(
                        scratch, decays, states, carry, h, a, part, b, c, grad_b, grad_c, start, count, n, N
                    )
                    store4(part_a, place, D, part)
                for i in range(count):
                    t = start + i
                    value, from_b = load(x, t * x_row + d), load(scratch, _FROM_B + i * LANES)
                    delta, g = load(scratch, _DELTA + i * LANES), load(scratch, _SUM + i * LANES)
                    store(grad_x, t * D + d, fma(delta, from_b, through * g))
                    g = fma(value, from_b, load(scratch, _FROM_A + i * LANES) * splat(LN_2))
                    g = g * sigmoid(load(dt, t * dt_row + d) + bias)
                    store(grad_dt, t * D + d, g)
                    sum_bias = sum_bias + g
            store(part_skip, group * D + d, sum_skip)
            store(part_bias, group * D + d, sum_bias)
