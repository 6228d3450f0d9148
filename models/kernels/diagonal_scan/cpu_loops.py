"""The loops of the diagonal scan that numba compiles. All arrays are flat; P is a multiple of 16."""

# mypy: ignore-errors
# ruff: noqa: ANN
from __future__ import annotations

from numba.extending import register_jitable

from models.kernels.compiled import compiled
from models.kernels.simd import (
    LANES,
    choose_below,
    exp_and_expm1,
    fma,
    load,
    sine_and_cosine_less_one,
    splat,
    store,
)  # fmt: skip

_F = "float32[::1]"
_INPUTS = f"{_F},int64,{_F},{_F},int64[::1],int64,int64,int64"
# rows of the table of constants, each [P]; INVERSE is 1 / Lambda, or 0 with STILL = 1 where Lambda is 0
_RE, _IM, _SCALE, _INVERSE_RE, _INVERSE_IM, _STILL = range(6)


@register_jitable
def _times(a_re, a_im, b_re, b_im):
    return a_re * b_re - a_im * b_im, fma(a_re, b_im, a_im * b_re)


@register_jitable
def _conjugate_times(a_re, a_im, b_re, b_im):
    return fma(a_re, b_re, a_im * b_im), a_re * b_im - a_im * b_re


@register_jitable
def _discretise(table, P, p, step):
    """A = exp(Lambda step) and w = (A - 1) / Lambda, the latter without cancellation."""
    growth, growth_less_one = exp_and_expm1(load(table, _RE * P + p) * step)
    sine, cosine_less_one = sine_and_cosine_less_one(load(table, _IM * P + p) * step)
    a_im = growth * sine
    less_one = fma(growth, cosine_less_one, growth_less_one)  # Re A - 1
    w_re, w_im = _times(less_one, a_im, load(table, _INVERSE_RE * P + p), load(table, _INVERSE_IM * P + p))
    return fma(growth, cosine_less_one, growth), a_im, fma(load(table, _STILL * P + p), step, w_re), w_im


@register_jitable
def _input_slope(table, P, p, step, a_re, a_im, w_re, w_im):
    """Dw / dLambda = (step A - w) / Lambda, by its series step^2 sum_k z^k / (k! (k + 2)) where |z| < 1/2."""
    z_re, z_im = load(table, _RE * P + p) * step, load(table, _IM * P + p) * step
    s_re, s_im = splat(1.0 / 403200.0), splat(0.0)
    s_re, s_im = fma(s_re, z_re, splat(1.0 / 45360.0)), s_re * z_im
    for term in (5760.0, 840.0, 144.0, 30.0, 8.0, 3.0, 2.0):
        new_re = fma(s_re, z_re, splat(1.0 / term)) - s_im * z_im
        s_im = fma(s_re, z_im, s_im * z_re)
        s_re = new_re
    far_re, far_im = _times(
        fma(step, a_re, splat(0.0) - w_re),
        fma(step, a_im, splat(0.0) - w_im),
        load(table, _INVERSE_RE * P + p),
        load(table, _INVERSE_IM * P + p),
    )
    size, limit, square = fma(z_re, z_re, z_im * z_im), splat(0.25), step * step
    return choose_below(size, limit, square * s_re, far_re), choose_below(size, limit, square * s_im, far_im)


@compiled(f"void({_INPUTS},int64,{_F})")
def forward(bu, bu_row, interval, table, offsets, first, last, P, start_im, out):
    """Rows ``first .. last - 1``; imaginary parts stand ``start_im`` after the real ones."""
    for row in range(first, last):
        for p in range(0, P, LANES):
            x_re, x_im = splat(0.0), splat(0.0)
            for t in range(offsets[row], offsets[row + 1]):
                step = splat(interval[t]) * load(table, _SCALE * P + p)
                a_re, a_im, w_re, w_im = _discretise(table, P, p, step)
                v_re, v_im = _times(w_re, w_im, load(bu, t * bu_row + p), load(bu, t * bu_row + start_im + p))
                x_re, x_im = _times(a_re, a_im, x_re, x_im)
                x_re, x_im = x_re + v_re, x_im + v_im
                store(out, t * 2 * P + p, x_re)
                store(out, t * 2 * P + P + p, x_im)


@compiled(f"void({_INPUTS},int64,{_F},{_F},{_F},{_F},int64)")
def backward(bu, bu_row, interval, table, offsets, first, last, P, start_im, grad, states, grad_bu, parts, group):
    """Gradients of rows ``first .. last - 1``; ``parts`` is ``[G, 3, P]``: Re Lambda, Im Lambda, step_scale."""
    for row in range(first, last):
        for p in range(0, P, LANES):
            place = group * 3 * P + p
            sum_re, sum_im, sum_scale = load(parts, place), load(parts, place + P), load(parts, place + 2 * P)
            g_re, g_im = splat(0.0), splat(0.0)
            for t in range(offsets[row + 1] - 1, offsets[row] - 1, -1):
                step = splat(interval[t]) * load(table, _SCALE * P + p)
                a_re, a_im, w_re, w_im = _discretise(table, P, p, step)
                g_re, g_im = g_re + load(grad, t * 2 * P + p), g_im + load(grad, t * 2 * P + P + p)
                v_re, v_im = _conjugate_times(w_re, w_im, g_re, g_im)
                store(grad_bu, t * 2 * P + p, v_re)
                store(grad_bu, t * 2 * P + P + p, v_im)
                # of w, and through it
                w_re_slope, w_im_slope = _input_slope(table, P, p, step, a_re, a_im, w_re, w_im)
                of_w_re, of_w_im = _conjugate_times(
                    load(bu, t * bu_row + p), load(bu, t * bu_row + start_im + p), g_re, g_im
                )
                v_re, v_im = _conjugate_times(w_re_slope, w_im_slope, of_w_re, of_w_im)
                sum_re, sum_im = sum_re + v_re, sum_im + v_im
                of_step, _ = _conjugate_times(a_re, a_im, of_w_re, of_w_im)
                g_re, g_im = _conjugate_times(a_re, a_im, g_re, g_im)  # of the state before
                if t > offsets[row]:  # of A: through exp(Lambda step), Lambda step being z
                    before = (t - 1) * 2 * P + p
                    z_re, z_im = _conjugate_times(load(states, before), load(states, before + P), g_re, g_im)
                    sum_re, sum_im = fma(step, z_re, sum_re), fma(step, z_im, sum_im)
                    of_step = fma(load(table, _RE * P + p), z_re, of_step)
                    of_step = fma(load(table, _IM * P + p), z_im, of_step)
                sum_scale = fma(of_step, splat(interval[t]), sum_scale)
            store(parts, place, sum_re)
            store(parts, place + P, sum_im)
            store(parts, place + 2 * P, sum_scale)
