"""The Triton kernels of interval attention give the formula's numbers, in value and every gradient, dropout included.

As in test_triton_kernels.py the numeric tests run where the kernels can, on a CUDA device or in Triton's interpreter,
which the last test starts in a process of its own. There blocks have 16 places: its scans take a millisecond a pair.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from models.kernels.check import largest_error
from models.kernels.interval_attention import UNITS, interval_attention
from models.kernels.interval_attention.reference import interval_attention_reference
from tests.models.kernels.triton_build import run_in_interpreter
from tests.models.layers.test_interval_attention import example, value_and_gradients

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = 5e-6 if INTERPRETED else 1e-4
runs_kernels = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="no CUDA device; the last test runs these"
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.kernels.interval_attention import triton

    if INTERPRETED:
        monkeypatch.setattr(triton, "BLOCK", 16)


def run(inputs: list[Tensor], dtype: torch.dtype = torch.float32, **settings: Any) -> list[Tensor]:
    given = [x.to(DEVICE, dtype) if x.is_floating_point() else x.to(DEVICE) for x in inputs]
    return [x.cpu() for x in value_and_gradients(interval_attention, given, path="triton", **settings)]


def assert_equal_to_the_reference(inputs: list[Tensor], **settings: Any) -> None:
    torch.manual_seed(7)
    expected = value_and_gradients(interval_attention_reference, inputs, **settings)
    torch.manual_seed(7)
    for number, (one, other) in enumerate(zip(run(inputs, **settings), expected, strict=True)):
        assert largest_error([one], [other]) < TOLERANCE, f"output {number} (0: value, then gradients)"


@runs_kernels
@pytest.mark.parametrize(
    ("lengths", "heads", "width", "span", "unit"),
    [
        ([1, 17], 2, 8, 7, None),  # a row of one token, a block and one, two programs of one head each
        ([20, 0, 3], 1, 20, 256, "minute"),  # a row without tokens, a width that is no power of two
        ([16], 1, 16, 1, "second"),
        ([33], 1, 4, 40, "hour"),
    ],
)
def test_value_and_gradients(lengths: list[int], heads: int, width: int, span: int, unit: str | None) -> None:
    assert_equal_to_the_reference(example(lengths, heads, width, span, 0), unit=unit)


@runs_kernels
@pytest.mark.skipif(not INTERPRETED, reason="a GPU has a generator of its own")
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_dropout_is_the_references(share: float) -> None:
    assert_equal_to_the_reference(example([5, 19], 2, 8, 30, 0), unit="hour", dropout=share)


@runs_kernels
def test_dropout_drops_its_share_and_the_backward_pass_the_same() -> None:
    """The output is linear in v: its gradient is the dropped weights, if forward and backward agree."""
    inputs = [x.to(DEVICE) for x in example([30, 12], 1, 8, 16, 0)]
    inputs = [x.float() if x.is_floating_point() else x for x in inputs]
    weights = torch.randn(42, 1, 8, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    v = inputs[2].requires_grad_()

    def total(values: Tensor) -> Tensor:
        torch.manual_seed(5)
        out = interval_attention(
            *inputs[:2], values, inputs[3], 0 * inputs[4], *inputs[5:], unit="hour", dropout=0.5, path="triton"
        )
        return (out * weights).sum()

    (grad,) = torch.autograd.grad(total(v), v)
    assert total(v).item() == pytest.approx((grad * v).sum().item(), rel=1e-4)
    plain = interval_attention(*inputs[:4], 0 * inputs[4], *inputs[5:], unit="hour", path="triton")
    assert total(v).item() != pytest.approx((plain * weights).sum().item(), rel=1e-3)


@runs_kernels
def test_times_that_decrease_give_the_same_sums_another_way() -> None:
    inputs = example([20], 1, 8, 50, 0)
    inputs[5] = inputs[5][torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    assert (inputs[5].diff() < 0).any()
    assert_equal_to_the_reference(inputs, unit="minute")


@runs_kernels
@pytest.mark.parametrize("unit", UNITS)
def test_a_gap_of_exactly_a_whole_number_of_units_is_in_its_bucket(unit: str) -> None:
    size, numbers = UNITS[unit], torch.tensor([1, 7, 100, 399])
    offsets = torch.arange(0, 2 * len(numbers) * 3 + 1, 2)
    apart = torch.cat([numbers * size, numbers * size - 1, numbers * size + size - 1])
    times = torch.stack([torch.zeros_like(apart), apart], 1).flatten() + 978_300_000
    zero, table = torch.zeros(len(times), 1, 1), torch.arange(500.0).view(500, 1, 1)
    inputs = (x.to(DEVICE) for x in (zero, zero, zero, 0 * table, table, times, offsets))
    out = interval_attention(*inputs, unit=unit, path="triton")
    # half its weight is on itself, bucket 0
    assert torch.equal(out[1::2, 0, 0].cpu() * 2, torch.cat([numbers, numbers - 1, numbers]).float())


@runs_kernels
def test_more_work_than_programs_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.kernels.interval_attention import triton

    inputs = example([5, 3, 9], 2, 4, 9, 0)
    expected = run(inputs, unit="hour")
    monkeypatch.setattr(triton, "GROUPS", 1)  # one program a head
    for one, other in zip(run(inputs, unit="hour"), expected, strict=True):
        torch.testing.assert_close(one, other)


@runs_kernels
def test_views_of_a_wider_projection_are_read_in_place() -> None:
    inputs = [x.float().to(DEVICE) if x.is_floating_point() else x.to(DEVICE) for x in example([9, 18], 2, 8, 20, 0)]
    views = [*torch.cat(inputs[:3], 2).split(8, 2), *inputs[3:]]
    assert not views[0].is_contiguous()
    one, other = (interval_attention(*given, unit="hour", path="triton") for given in (views, inputs))
    assert torch.equal(one, other)


@runs_kernels
def test_nothing_of_the_pairs_is_kept() -> None:
    tokens, heads, d = 40, 2, 8
    inputs = [
        x.float().to(DEVICE) if x.is_floating_point() else x.to(DEVICE) for x in example([tokens], heads, d, 9, 0)
    ]
    leaves, kept = [x.requires_grad_() for x in inputs[:5]], []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        interval_attention(*leaves, *inputs[5:], unit="hour", dropout=0.2, path="triton")
    # q, k, v, out, logarithms, times, both tables, offsets, a seed
    assert sum(kept) == tokens * (4 * heads * d + heads + 1) + 2 * 10 * heads * d + 2 + 1


@runs_kernels
@pytest.mark.skipif(INTERPRETED, reason="one thread cannot break it")
def test_equal_bits_from_run_to_run() -> None:
    inputs = example([1 + 7 * i % 200 for i in range(300)], 2, 32, 256, 0)
    first = run(inputs, unit="hour")
    for _ in range(5):
        assert all(torch.equal(one, other) for one, other in zip(run(inputs, unit="hour"), first, strict=True))


@runs_kernels
@pytest.mark.skipif(INTERPRETED, reason="the interpreter's bfloat16 is wrong")
def test_half_types_are_rounded_at_the_borders_only() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        inputs = [x.to(dtype) if x.is_floating_point() else x for x in example([70, 33], 2, 32, 64, 0)]
        wide = [x.double() if x.is_floating_point() else x for x in inputs]
        expected = value_and_gradients(interval_attention_reference, wide, unit="hour")
        found = run(inputs, dtype, unit="hour")
        assert {x.dtype for x in found} == {dtype}
        assert largest_error([x.float() for x in found], expected) < 2e-2


def test_what_the_kernels_do_not_take_is_named() -> None:
    from models.kernels.interval_attention.triton import interval_attention_triton

    def single(*sizes: Any) -> list[Tensor]:
        return [x.float() if x.is_floating_point() else x for x in example(*sizes, 0)]

    with pytest.raises(TypeError, match="computes in float32"):
        interval_attention_triton(*example([4], 1, 8, 3, 0))
    with pytest.raises(ValueError, match="at most 128 numbers, not 130"):
        interval_attention_triton(*single([4], 1, 130, 3))
    with pytest.raises(ValueError, match="time_span of at most 16,384, not 16,385"):
        interval_attention_triton(*single([4], 1, 2, 16385))


def test_without_triton_the_import_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "models.kernels.interval_attention.triton", raising=False)
    with pytest.raises(ImportError, match="need the package 'triton'.*another kernel path"):
        importlib.import_module("models.kernels.interval_attention.triton")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this starts the others")
@pytest.mark.timeout(600)
def test_in_the_interpreter() -> None:
    run_in_interpreter(__file__, passed=17, skipped=3)
