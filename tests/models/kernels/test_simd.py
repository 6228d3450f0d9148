"""The compiled elementary functions against NumPy in float64, over the whole range of their arguments."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from models.kernels import simd

load, store = simd.load, simd.store
exp2, sigmoid, softplus = simd.exp2, simd.sigmoid, simd.softplus
exp_and_expm1, sine_and_cosine_less_one = simd.exp_and_expm1, simd.sine_and_cosine_less_one


@numba.njit("void(float32[::1], float32[:, ::1])")
def _evaluate(x, out):
    size = len(x)
    flat = out.reshape(-1)
    for i in range(0, size, 16):
        value = load(x, i)
        store(flat, i, exp2(value))
        store(flat, size + i, sigmoid(value))
        store(flat, 2 * size + i, softplus(value))
        first, second = exp_and_expm1(value)
        store(flat, 3 * size + i, first)
        store(flat, 4 * size + i, second)
        first, second = sine_and_cosine_less_one(value)
        store(flat, 5 * size + i, first)
        store(flat, 6 * size + i, second)


def evaluate(x: NDArray[np.float32]) -> NDArray[np.float32]:
    out = np.empty((7, len(x)), np.float32)
    _evaluate(np.ascontiguousarray(x), out)
    return out


def test_relative_accuracy() -> None:
    small = np.logspace(-8, 0, 4000, dtype=np.float32)
    x = np.concatenate((np.linspace(-80, 80, 24000, dtype=np.float32), small, -small))
    found, wide = evaluate(x), x.astype(np.float64)
    for row, expected, tolerance in (
        (0, np.exp2(wide), 2.5e-7),
        (1, 1 / (1 + np.exp(-wide)), 1e-5),  # of exp(80): the rounding of its argument
        (2, np.logaddexp(0, wide), 1e-5),
        (3, np.exp(wide), 1e-5),
        (4, np.expm1(wide), 1e-5),
    ):
        np.testing.assert_allclose(found[row], expected, rtol=tolerance)
    near = np.abs(wide) < 1
    for row, expected in ((1, 1 / (1 + np.exp(-wide))), (2, np.logaddexp(0, wide)), (4, np.expm1(wide))):
        np.testing.assert_allclose(found[row, near], expected[near], rtol=1e-6)


def test_sine_and_cosine() -> None:
    x = np.linspace(-3000, 3000, 48000, dtype=np.float32)
    found, wide = evaluate(x), x.astype(np.float64)
    np.testing.assert_allclose(found[5], np.sin(wide), atol=1e-6)
    np.testing.assert_allclose(found[6], np.cos(wide) - 1, atol=1e-6)
    x = np.logspace(-8, -1, 1600, dtype=np.float32)
    found, wide = evaluate(x), x.astype(np.float64)
    np.testing.assert_allclose(found[5], np.sin(wide), rtol=5e-7)
    np.testing.assert_allclose(found[6], -2 * np.sin(wide / 2) ** 2, rtol=5e-7)


@pytest.mark.parametrize(("value", "expected"), [(-1e30, (0, 0, 0)), (-np.inf, (0, 0, 0)), (1e30, (2.0**127, 1, 1e30))])
def test_far_arguments(value: float, expected: tuple[float, ...]) -> None:
    found = evaluate(np.full(16, value, np.float32))[:, 0]
    np.testing.assert_allclose(found[:3], expected, rtol=1e-6, atol=1e-37)
    assert abs(evaluate(np.full(16, 1e30, np.float32))[5, 0]) <= 1


def test_nan_stays() -> None:
    assert np.isnan(evaluate(np.full(16, np.nan, np.float32))).all()
