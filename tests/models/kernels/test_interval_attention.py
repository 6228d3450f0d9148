"""Interval attention: every path gives the numbers of the formula with a vector for each pair, dropout included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.kernels.interval_attention import UNITS, interval_attention, interval_buckets
from models.kernels.interval_attention.intervals import whole_units
from tests.models.layers.test_interval_attention import example, value_and_gradients

LENGTHS = st.lists(st.integers(0, 70), min_size=1, max_size=5).filter(any)
ANY_UNIT = st.sampled_from([None, *UNITS])


def single(inputs: list[Tensor]) -> list[Tensor]:
    return [x.float() if x.is_floating_point() else x for x in inputs]


def close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> bool:
    pairs = zip(found, expected, strict=True)
    return all((one - other).abs().max() <= tolerance * other.abs().max().clamp_min(1.0) for one, other in pairs)


@settings(max_examples=30, deadline=None)
@given(
    lengths=LENGTHS,
    heads=st.integers(1, 3),
    span=st.sampled_from([1, 7, 100, 256]),
    unit=ANY_UNIT,
    seed=st.integers(0, 99),
)
def test_the_compiled_path_is_the_reference(
    lengths: list[int], heads: int, span: int, unit: str | None, seed: int
) -> None:
    inputs = example(lengths, heads, 5 if seed % 2 else 16, span, seed)
    expected = value_and_gradients(interval_attention, inputs, unit=unit, path="reference")
    compiled, plain = (
        value_and_gradients(interval_attention, single(inputs), unit=unit, path=path) for path in ("numba", "torch")
    )
    for found, other, exact in zip(compiled, plain, expected, strict=True):
        # A table's gradient adds thousands of pairs that nearly cancel: there as many digits as PyTorch keeps.
        allowed = 1e-5 * exact.abs().max().clamp_min(1.0) + 2 * (other - exact).abs().max()
        assert (found - exact).abs().max() <= allowed


@settings(max_examples=15, deadline=None)
@given(lengths=LENGTHS, heads=st.integers(1, 3), seed=st.integers(0, 2**40), share=st.sampled_from([0.1, 0.5, 0.9]))
def test_dropout_of_the_compiled_path_is_the_references(
    lengths: list[int], heads: int, seed: int, share: float
) -> None:
    inputs = example(lengths, heads, 16, 32, 0)

    def dropped(given: list[Tensor], path: str) -> list[Tensor]:
        torch.manual_seed(seed)
        return value_and_gradients(interval_attention, given, unit="minute", path=path, dropout=share)

    assert close(dropped(single(inputs), "numba"), dropped(inputs, "reference"), 2e-5)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6), unit=ANY_UNIT, seed=st.integers(0, 999))
def test_times_of_packed_tokens_give_the_buckets_of_padded_rows(
    lengths: list[int], unit: str | None, seed: int
) -> None:
    times, offsets = example(lengths, 1, 1, 1, seed)[5:]
    units, length = whole_units(times, offsets, unit)
    for first, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        own = units[first:end]
        found = ((own[:, None] - own[None]).abs() // length).clamp_max(50)
        assert torch.equal(found, interval_buckets(times[None, first:end], 50, unit)[0])


@pytest.mark.parametrize("unit", UNITS)
def test_a_gap_of_exactly_a_whole_number_of_units_is_in_its_bucket(unit: str) -> None:
    """The compiled path multiplies by 1 / unit: nothing may be lost to rounding on either side of a border."""
    size, numbers = UNITS[unit], torch.arange(1, 400)
    offsets = torch.tensor([0, 2])
    rv = torch.arange(500.0).view(500, 1, 1)
    zero = torch.zeros(2, 1, 1)
    for away, expected in ((0, numbers), (-1, numbers - 1), (size - 1, numbers)):
        for number, bucket in zip(numbers[::7].tolist(), expected[::7].tolist(), strict=True):
            times = torch.tensor([0, number * size + away]) + 978_300_000
            out = interval_attention(
                zero, zero, zero, torch.zeros(500, 1, 1), rv, times, offsets, unit=unit, path="numba"
            )
            assert out[1].item() == pytest.approx(bucket / 2)  # half its weight is on itself, bucket 0


def test_equal_bits_for_any_number_of_threads() -> None:
    inputs, threads = single(example([7 * i % 90 for i in range(60)], 2, 16, 64, 0)), torch.get_num_threads()
    first = value_and_gradients(interval_attention, inputs, unit="hour", path="numba")
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            again = value_and_gradients(interval_attention, inputs, unit="hour", path="numba")
            assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_only_inputs_are_kept_for_the_backward_pass() -> None:
    inputs = single(example([100] * 8, 2, 16, 64, 0))
    kept: list[int] = []
    leaves = [x.requires_grad_() for x in inputs[:5]]

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        interval_attention(*leaves, *inputs[5:], unit="hour", dropout=0.2, path="numba")
    assert sum(kept) <= 3 * 800 * 32 + 2 * 80 * 32 + 800  # q, k, v, both tables in rows of 16, times


def test_mistakes_are_named() -> None:
    inputs = example([5, 3], 2, 4, 8, 0)
    with pytest.raises(ValueError, match="interval_attention: timestamps has shape"):
        interval_attention(*inputs[:5], inputs[5][:-1], inputs[6], unit=None)
    with pytest.raises(ValueError, match=r"dropout 1.0 is not in \[0, 1\)"):
        interval_attention(*inputs, unit=None, dropout=1.0)
    with pytest.raises(ValueError, match="offsets must run from 0"):
        interval_attention(*single(inputs)[:6], torch.tensor([0, 9]), unit=None, path="numba")
