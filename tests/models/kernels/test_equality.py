"""Every path gives the numbers of the recurrence, in value and gradient, on rows of any length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.kernels import causal_conv, diagonal_scan, selective_scan
from models.kernels.check import example, largest_error, value_and_gradients
from models.kernels.paths import PATHS

LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=6)
FAST = ("numba", "torch")
OPS = {"selective_scan": selective_scan, "diagonal_scan": diagonal_scan, "causal_conv": causal_conv}


def double(inputs: list[Tensor]) -> list[Tensor]:
    return [v.double() if v.is_floating_point() else v for v in inputs]


def path_of(op: str, name: str):
    return next(path for path in PATHS[op] if path.name == name)


def assert_equals_reference(op: str, name: str, inputs: list[Tensor], tolerance: float = 1e-5) -> None:
    expected = value_and_gradients(op, path_of(op, "reference"), double(inputs))
    assert largest_error(value_and_gradients(op, path_of(op, name), inputs), expected) < tolerance


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("op", OPS)
@settings(max_examples=15, deadline=None)
@given(
    lengths=LENGTHS,
    width=st.sampled_from([1, 5, 16, 24]),
    states=st.sampled_from([1, 4, 16, 32]),
    seed=st.integers(0, 99),
)
def test_random_rows(op: str, name: str, lengths: list[int], width: int, states: int, seed: int) -> None:
    taps = min(states, 6) if op == "causal_conv" else states
    inputs = example(op, lengths, width, taps, seed)
    expected = value_and_gradients(op, path_of(op, "reference"), double(inputs))
    for one, other in zip(value_and_gradients(op, path_of(op, name), inputs), expected, strict=True):
        # of numbers around 1: a gradient may be a sum that happens to cancel to almost nothing
        assert (one - other).abs().max() <= 5e-5 * other.abs().max().clamp_min(1.0)


@pytest.mark.parametrize("op", OPS)
def test_gradients_against_finite_differences_in_float64(op: str) -> None:
    *inputs, offsets = double(example(op, (3, 1, 18), width=2, states=2))
    leaves = [v.requires_grad_(not (op == "diagonal_scan" and place == 1)) for place, v in enumerate(inputs)]
    for name in ("torch", "reference"):
        assert torch.autograd.gradcheck(lambda *v, name=name: OPS[op](*v, offsets, path=name), leaves)


def rows_of(offsets: Tensor) -> list[range]:
    return [range(start, stop) for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


@pytest.mark.parametrize("name", [*FAST, "reference"])
def test_selective_scan_against_a_recurrence_by_hand(name: str) -> None:
    inputs = example("selective_scan", (4, 1, 3), width=3, states=2)
    x, dt, bias, a, b, c, skip, z = (v.double().numpy() for v in inputs[:-1])
    expected = np.zeros_like(x)
    for row in rows_of(inputs[-1]):
        h = np.zeros_like(a)
        for t in row:
            for d in range(3):
                delta = np.log1p(np.exp(dt[t, d] + bias[d]))
                for n in range(2):
                    h[d, n] = np.exp(delta * a[d, n]) * h[d, n] + delta * b[t, n] * x[t, d]
                total = sum(c[t, n] * h[d, n] for n in range(2)) + skip[d] * x[t, d]
                expected[t, d] = total * z[t, d] / (1 + np.exp(-z[t, d]))
    np.testing.assert_allclose(selective_scan(*inputs, path=name).numpy(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*FAST, "reference"])
def test_diagonal_scan_against_a_recurrence_by_hand(name: str) -> None:
    inputs = example("diagonal_scan", (4, 1, 3), width=3)
    bu, interval, re, im, scale = (v.double().numpy() for v in inputs[:-1])
    poles = re + 1j * im
    expected = np.zeros((8, 3), complex)
    for row in rows_of(inputs[-1]):
        state = np.zeros(3, complex)
        for t in row:
            decay = np.exp(poles * interval[t] * scale)
            state = decay * state + (decay - 1) / poles * (bu[t, :3] + 1j * bu[t, 3:])
            expected[t] = state
    out = diagonal_scan(*inputs, path=name).numpy()
    np.testing.assert_allclose(out, np.hstack((expected.real, expected.imag)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [*FAST, "reference"])
def test_causal_conv_against_sums_by_hand(name: str) -> None:
    inputs = example("causal_conv", (4, 1, 3), width=3, states=3)
    x, weight, bias = (v.double().numpy() for v in inputs[:-1])
    expected = np.zeros_like(x)
    for row in rows_of(inputs[-1]):
        for t in row:
            total = bias.copy()
            for k in range(3):
                if t - 2 + k >= row.start:
                    total += weight[:, k] * x[t - 2 + k]
            expected[t] = total / (1 + np.exp(-total))
    np.testing.assert_allclose(causal_conv(*inputs, path=name).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("op", OPS)
def test_rows_do_not_see_each_other_nor_the_future(op: str, name: str) -> None:
    inputs = example(op, (5, 4, 3))
    changed = [v.clone() for v in inputs]
    changed[0][7:9] += 1.0  # the last two tokens of the second row
    before, after = OPS[op](*inputs, path=name), OPS[op](*changed, path=name)
    same = [*range(7), *range(9, 12)]
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[7:9], after[7:9])


@pytest.mark.parametrize("op", OPS)
def test_bit_identical_from_run_to_run_and_for_any_number_of_threads(op: str) -> None:
    inputs = example(op, [1 + 7 * i % 90 for i in range(80)], width=40, states=8)
    numba, threads = path_of(op, "numba"), torch.get_num_threads()
    first = value_and_gradients(op, numba, inputs)
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            again = value_and_gradients(op, numba, inputs)
            assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", FAST)
def test_views_of_wider_tensors_give_the_same_as_copies(name: str) -> None:
    x, dt, bias, a, b, c, skip, z, offsets = example("selective_scan", (9, 2), width=16, states=4)
    xz, bc = torch.cat((x, z), 1), torch.cat((b, c), 1)
    views = (*xz.chunk(2, 1), *bc.chunk(2, 1))
    from_views = selective_scan(views[0], dt, bias, a, views[2], views[3], skip, views[1], offsets, path=name)
    torch.testing.assert_close(from_views, selective_scan(x, dt, bias, a, b, c, skip, z, offsets, path=name))
    from_view, whole = (causal_conv(values, a, bias, offsets, path=name) for values in (views[0], x))
    torch.testing.assert_close(from_view, whole)


@pytest.mark.parametrize("name", FAST)
def test_selective_scan_far_decay_forgets_and_stays_finite(name: str) -> None:
    inputs = example("selective_scan", (40, 7))
    inputs[1] = inputs[1] + 500.0  # delta about 500: every decay underflows
    found = value_and_gradients("selective_scan", path_of("selective_scan", name), inputs)
    assert all(torch.isfinite(v).all() for v in found)
    assert_equals_reference("selective_scan", name, inputs)
    inputs[1] = inputs[1] - 1000.0  # delta 0: nothing enters
    x, skip, z = inputs[0], inputs[6], inputs[7]
    out = selective_scan(*inputs, path=name)
    torch.testing.assert_close(out, skip * x * torch.nn.functional.silu(z))


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("op", OPS)
def test_nan_is_not_swallowed(op: str, name: str) -> None:
    for place in range(len(example(op, (3,))) - 1):
        inputs = example(op, (6, 2))
        inputs[place].view(-1)[0] = torch.nan
        assert OPS[op](*inputs, path=name).isnan().any(), place


@pytest.mark.parametrize("name", FAST)
def test_diagonal_scan_zero_interval_keeps_the_state(name: str) -> None:
    bu, interval, *rest = example("diagonal_scan", (6,))
    interval[:] = torch.tensor([0.0, 1.0, 0.0, 0.0, 2.0, 0.0])
    out = diagonal_scan(bu, interval, *rest, path=name)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert torch.equal(out[2], out[1]) and torch.equal(out[3], out[1]) and torch.equal(out[5], out[4])


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-7, 1e-3, 0.1, 0.5, 30.0])
def test_diagonal_scan_keeps_precision_for_steps_of_any_size(name: str, size: float) -> None:
    bu, interval, re, im, scale, offsets = example("diagonal_scan", (20, 1))
    assert_equals_reference("diagonal_scan", name, [bu, interval * size, re, im, scale, offsets], 1e-4)
    still = [bu, interval, re * size, im * size, scale, offsets]  # poles at and near 0
    assert_equals_reference("diagonal_scan", name, still, 1e-4)


def test_diagonal_scan_refuses_an_interval_that_wants_a_gradient() -> None:
    inputs = example("diagonal_scan", (2,))
    inputs[1].requires_grad_()
    with pytest.raises(ValueError, match="interval"):
        diagonal_scan(*inputs)


def test_nothing_is_kept_for_a_backward_pass_that_will_not_come() -> None:
    inputs = example("selective_scan", (50,))
    inputs[0].requires_grad_()
    with torch.no_grad():
        assert selective_scan(*inputs).grad_fn is None
    assert selective_scan(*inputs).requires_grad


@pytest.mark.parametrize("op", OPS)
def test_shapes_and_borders_that_do_not_belong_together_are_named(op: str) -> None:
    inputs = example(op, (5, 3))
    with pytest.raises(ValueError, match=r"offsets must run from 0 to the number of tokens, 8"):
        OPS[op](*inputs[:-1], torch.tensor([0, 5, 9]), path="numba")
    with pytest.raises(ValueError, match=f"{op}: .* has shape"):
        OPS[op](inputs[0], inputs[1][:-1], *inputs[2:])
