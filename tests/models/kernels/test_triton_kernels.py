"""The Triton kernels give the numbers of the recurrence, in value and gradient.

The numeric tests run where the kernels can: on a CUDA device as compiled, or in Triton's interpreter on the CPU. Triton
decides which when it is first imported, so `test_triton_interpreter.py` runs this file in a process of its own.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from models.kernels.check import example, largest_error

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = 1e-5 if INTERPRETED else 1e-4  # the GPU's exp is an approximation to a few units in the last place
OPS = ("selective_scan", "diagonal_scan", "causal_conv")
CASES = [  # operation, lengths of the rows, width, states or taps
    ("selective_scan", (1, 9, 17), 20, 32),  # rows of one token, a chunk and one, two chunks and one; D over two blocks
    ("selective_scan", (3, 8, 20), 33, 16),
    ("selective_scan", (1, 1, 30), 70, 4),
    ("selective_scan", (10,), 3, 5),  # states that are not a power of two
    ("selective_scan", (2, 9), 1, 1),
    ("diagonal_scan", (1, 9, 17), 12, 0),
    ("diagonal_scan", (3, 8, 20), 5, 0),
    ("diagonal_scan", (2, 9), 1, 0),
    ("causal_conv", (1, 2, 37), 40, 4),  # rows shorter than the taps, a row over three tiles
    ("causal_conv", (16, 5), 5, 3),
    ("causal_conv", (7,), 1, 1),
]
runs_kernels = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="no CUDA device; test_triton_interpreter.py runs these"
)


def kernel(op: str, path: str = "triton") -> Callable[..., Tensor]:
    return getattr(importlib.import_module(f"models.kernels.{op}.{path}"), f"{op}_{path}")


def run(function: Callable[..., Tensor], inputs: Sequence[Tensor], interval: bool) -> list[Tensor]:
    """Output, then the gradients of a weighted sum of it, for every floating input but the interval."""
    leaves = [v.detach().clone().requires_grad_(v.is_floating_point()) for v in inputs]
    if interval:
        leaves[1].requires_grad_(False)
    out = function(*leaves)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out).to(out)
    grads = torch.autograd.grad((out * weights).sum(), [leaf for leaf in leaves if leaf.requires_grad])
    return [v.detach().cpu() for v in (out, *grads)]


def expected(op: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    doubles = [v.double() if v.is_floating_point() else v for v in inputs]
    return run(kernel(op, "reference"), doubles, op == "diagonal_scan")


@runs_kernels
@pytest.mark.parametrize(("op", "lengths", "width", "states"), CASES)
def test_value_and_gradients(op: str, lengths: tuple[int, ...], width: int, states: int) -> None:
    inputs = example(op, lengths, width, states)
    found = run(kernel(op), [v.to(DEVICE) for v in inputs], op == "diagonal_scan")
    for number, (one, other) in enumerate(zip(found, expected(op, inputs), strict=True)):
        assert largest_error([one], [other]) < TOLERANCE, f"output {number} (0: value, then gradients)"


@runs_kernels
@pytest.mark.parametrize("op", OPS)
def test_empty_rows_change_nothing(op: str) -> None:
    *inputs, offsets = (v.to(DEVICE) for v in example(op, (4, 9), 6, 4))
    gaps = offsets[[0, 0, 1, 1, 2, 2]]  # rows of 0, 4, 0, 9 and 0 tokens
    with_gaps = run(kernel(op), [*inputs, gaps], op == "diagonal_scan")
    without = run(kernel(op), [*inputs, offsets], op == "diagonal_scan")
    assert all(torch.equal(one, other) for one, other in zip(with_gaps, without, strict=True))


@runs_kernels
@pytest.mark.parametrize("op", OPS)
def test_views_of_a_wider_tensor_are_read_in_place(op: str) -> None:
    inputs = [v.to(DEVICE) for v in example(op, (9, 3), 12, 4)]
    wider = [torch.cat([v, v + 1], dim=1)[:, : v.shape[1]] if v.dim() == 2 else v for v in inputs]
    assert wider[0].stride(0) == 2 * inputs[0].shape[1]
    assert torch.equal(kernel(op)(*wider), kernel(op)(*inputs))


@runs_kernels
@pytest.mark.parametrize("op", OPS)
def test_bfloat16_is_rounded_at_the_borders_only(op: str) -> None:
    inputs = [v.to(torch.bfloat16) if v.is_floating_point() else v for v in example(op, (3, 14), 12, 4)]
    found = run(kernel(op), [v.to(DEVICE) for v in inputs], op == "diagonal_scan")
    assert {v.dtype for v in found} == {torch.bfloat16}
    # eight bits each for the output and the weights of its sum; sums kept in bfloat16 would be off by several percent
    assert largest_error([v.float() for v in found], expected(op, inputs)) < 2**-7


@runs_kernels
def test_parameters_may_be_wider_than_activations() -> None:
    inputs = example("selective_scan", (3, 14), 12, 4)
    mixed = [v.to(torch.bfloat16) if place in (0, 1, 4, 5, 7) else v for place, v in enumerate(inputs)]
    found = run(kernel("selective_scan"), [v.to(DEVICE) for v in mixed], False)
    assert [v.dtype == torch.bfloat16 for v in found] == [True, True, True, False, False, True, True, False, True]
    assert largest_error([v.float() for v in found], expected("selective_scan", mixed)) < 2**-7


@runs_kernels
def test_small_steps_keep_their_digits() -> None:
    x, dt, bias, a, b, c, skip, z, offsets = (v.to(DEVICE) for v in example("selective_scan", (12,), 8, 4))
    inputs = [
        x,
        dt - 15,
        bias,
        a,
        b,
        c,
        torch.zeros_like(skip),
        z,
        offsets,
    ]  # softplus near 1e-7: log(1 + e) rounds it off
    found = run(kernel("selective_scan"), inputs, False)
    wanted = expected("selective_scan", [v.cpu() for v in inputs])
    assert largest_error(found[:1], wanted[:1]) < TOLERANCE


@runs_kernels
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e6])
def test_intervals_from_zero_to_weeks(scale: float) -> None:
    bu, interval, *rest = example("diagonal_scan", (5, 9), 8)
    inputs = [bu, interval.round(decimals=1) * scale, *rest]
    found = run(kernel("diagonal_scan"), [v.to(DEVICE) for v in inputs], True)
    wanted = expected("diagonal_scan", inputs)
    for one, other in zip(found, wanted, strict=True):  # of numbers around 1: past 1e5 the step's gradient is 1e-14
        assert (one - other).abs().max() < TOLERANCE * other.abs().max().clamp_min(0.1)


@runs_kernels
def test_no_state_of_every_token_is_kept() -> None:
    tokens, width, states = 64, 16, 16
    leaves = [v.to(DEVICE) for v in example("selective_scan", (tokens,), width, states)]
    for leaf in leaves[:-1]:
        leaf.requires_grad_()
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kernel("selective_scan")(*leaves)
    assert max(kept) <= (tokens // 8 + 1) * width * states  # a state a chunk of 8 tokens, and one for the row


@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="the interpreter has one thread")
@pytest.mark.parametrize("op", OPS)
def test_gradients_are_equal_from_run_to_run(op: str) -> None:
    inputs = [v.to(DEVICE) for v in example(op, (200,) * 64, 128, 4)]
    first, second = (run(kernel(op), inputs, op == "diagonal_scan") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_float64_is_refused(op: str) -> None:
    inputs = [v.double() if v.is_floating_point() else v for v in example(op, (3,), 4, 2)]
    with pytest.raises(TypeError, match="float32"):
        kernel(op)(*inputs)


def test_sizes_beyond_the_registers_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 8 taps, not 9"):
        kernel("causal_conv")(*example("causal_conv", (3,), 4, 9))
    with pytest.raises(ValueError, match="at most 128 states a channel, not 129"):
        kernel("selective_scan")(*example("selective_scan", (3,), 4, 129))


@pytest.mark.parametrize("op", OPS)
def test_without_triton_the_import_says_what_to_do(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, f"models.kernels.{op}.triton", raising=False)
    with pytest.raises(ImportError, match="need the package 'triton'.*another kernel path"):
        importlib.import_module(f"models.kernels.{op}.triton")
