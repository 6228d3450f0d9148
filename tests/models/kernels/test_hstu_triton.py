"""The Triton kernels of HSTU's attention give the equations' numbers, in value and gradient.

As in test_triton_kernels.py the numeric tests run where the kernels can, on a CUDA device or in Triton's interpreter,
which the last test starts in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from models.kernels.check import example, largest_error
from models.kernels.hstu_attention.mask import AttentionMask
from models.kernels.hstu_attention.reference import hstu_attention_reference
from tests.models.kernels.triton_build import run_in_interpreter

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = 2e-6 if INTERPRETED else 1e-4
runs_kernels = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="no CUDA device; the last test runs these"
)
CASES: tuple[tuple[tuple[int, ...], int, int, dict[str, Any]], ...] = (
    ((1, 33, 64), 20, 2, {}),  # a row of one token, a block and one, two whole blocks; a width that is no power of two
    ((70,), 16, 1, {"causal": False}),
    ((40, 9), 16, 1, {"num_context": (5, 0), "num_candidates": (0, 3)}),
    ((75,), 8, 1, {"num_context": (3,), "num_candidates": (40,), "target_group_size": 4}),
    ((50,), 8, 1, {"num_candidates": (45,), "target_group_size": 44}),  # places of a block that jump back by a group
)


def triton_path() -> Any:
    from models.kernels.hstu_attention.triton import hstu_attention_triton

    return hstu_attention_triton


def run(function: Any, inputs: Sequence[Tensor], **settings: Any) -> list[Tensor]:
    leaves = [v.detach().clone().requires_grad_(v.is_floating_point()) for v in inputs]
    out = function(*leaves, **{"scale": 0.7, "max_length": 9, **settings})
    weights = torch.linspace(-1, 1, out.numel()).view_as(out).to(out)
    grads = torch.autograd.grad((out * weights).sum(), leaves[:5], allow_unused=True, materialize_grads=True)
    return [v.detach().cpu() for v in (out, *grads)]


def masked(lengths: tuple[int, ...], width: int, heads: int, mask: dict[str, Any]) -> list[Tensor]:
    inputs = example("hstu_attention", lengths, width, heads)
    made = AttentionMask(**{key: torch.tensor(v) if isinstance(v, tuple) else v for key, v in mask.items()})
    inputs[6] = made.seen(inputs[5], sum(lengths))
    return inputs


def assert_equal_to_the_reference(inputs: list[Tensor]) -> None:
    doubles = [v.double() if v.is_floating_point() else v for v in inputs]
    found = run(triton_path(), [v.to(DEVICE) for v in inputs])
    for number, (one, other) in enumerate(zip(found, run(hstu_attention_reference, doubles), strict=True)):
        if other.numel():
            assert largest_error([one], [other]) < TOLERANCE, f"output {number} (0: value, then gradients)"


@runs_kernels
@pytest.mark.parametrize(("lengths", "width", "heads", "mask"), CASES)
def test_value_and_gradients(lengths: tuple[int, ...], width: int, heads: int, mask: dict[str, Any]) -> None:
    assert_equal_to_the_reference(masked(lengths, width, heads, mask))


@runs_kernels
@pytest.mark.parametrize(("places", "buckets"), [(0, 0), (1, 0), (2, 64), (40, 3), (0, 1)])
def test_tables_of_any_length_or_none(places: int, buckets: int) -> None:
    inputs = masked((37, 5), 8, 1, {})
    inputs[3] = torch.randn(2 * places - 1 if places else 0, generator=torch.Generator().manual_seed(0))
    inputs[4] = inputs[4][:buckets]
    assert_equal_to_the_reference(inputs)


@runs_kernels
def test_seconds_at_the_borders_fall_into_the_reference_s_buckets() -> None:
    from models.kernels.hstu_attention.bias import bucket_borders

    near = torch.tensor([border + step for border in bucket_borders(60) for step in (-1, 0, 1)])
    inputs = masked((len(near),), 4, 1, {"causal": False})
    inputs[7], inputs[8] = torch.zeros_like(near), near
    inputs[4] = torch.linspace(-3, 3, 128)
    assert_equal_to_the_reference(inputs)


@runs_kernels
def test_more_blocks_than_groups_share_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.kernels.hstu_attention import triton

    monkeypatch.setattr(triton, "GROUPS", 2)
    assert_equal_to_the_reference(masked((40, 3, 35), 8, 2, {}))


@runs_kernels
def test_views_of_a_wider_projection_and_rows_without_tokens() -> None:
    inputs = [v.to(DEVICE) for v in masked((9, 36), 8, 2, {})]
    wide = torch.cat(inputs[:3], 2)
    views = [*wide.split(8, 2), *inputs[3:]]
    assert not views[0].is_contiguous()
    assert torch.equal(triton_path()(*views), triton_path()(*inputs))
    gaps = [*inputs[:5], inputs[5][[0, 0, 1, 1, 2, 2]], *inputs[6:]]
    for one, other in zip(run(triton_path(), gaps), run(triton_path(), inputs), strict=True):
        torch.testing.assert_close(one, other)  # tables are summed in other groups


@runs_kernels
@pytest.mark.skipif(INTERPRETED, reason="one thread cannot break it")
def test_equal_bits_from_run_to_run() -> None:
    inputs = [v.to(DEVICE) for v in example("hstu_attention", [1 + 7 * i % 90 for i in range(80)], 64, 2)]
    first = run(triton_path(), inputs)
    for _ in range(5):
        assert all(torch.equal(one, other) for one, other in zip(run(triton_path(), inputs), first, strict=True))


@runs_kernels
@pytest.mark.skipif(INTERPRETED, reason="the interpreter's bfloat16 is wrong")
def test_half_types_are_rounded_at_the_borders_only() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        inputs = [v.to(dtype) if v.is_floating_point() else v for v in masked((70, 33), 64, 2, {})]
        expected = run(hstu_attention_reference, [v.double() if v.is_floating_point() else v for v in inputs])
        found = run(triton_path(), [v.to(DEVICE) for v in inputs])
        assert {v.dtype for v in found} == {dtype}
        assert largest_error([v.float() for v in found], expected) < 2e-2


def test_what_the_kernels_do_not_take_is_named() -> None:
    inputs = masked((4,), 8, 1, {})
    with pytest.raises(TypeError, match="computes in float32"):
        triton_path()(*[v.double() if v.is_floating_point() else v for v in inputs])
    with pytest.raises(ValueError, match="at most 128 numbers, not 130"):
        triton_path()(*masked((4,), 130, 1, {}))


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this starts the others")
@pytest.mark.timeout(600)
def test_in_the_interpreter() -> None:
    run_in_interpreter(__file__, passed=14, skipped=3)
