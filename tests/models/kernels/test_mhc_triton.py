"""The Triton kernels of the hyper-connections give the equations' numbers, in value and every gradient.

As in test_triton_kernels.py the numeric tests run where the kernels can, on a CUDA device or in Triton's interpreter,
which the last test starts in a process of its own.
"""

from __future__ import annotations

import importlib
import os
import sys

import pytest
import torch
from torch import Tensor

from models.kernels import mhc_read, mhc_write
from models.kernels.check import largest_error
from tests.models.kernels.test_mhc_streams import example, sub_layer
from tests.models.kernels.triton_build import run_in_interpreter

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = 5e-6 if INTERPRETED else 1e-4
runs_kernels = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="no CUDA device; the last test runs these"
)


def on_device(inputs: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [x.to(DEVICE, dtype) for x in inputs]


@runs_kernels
@pytest.mark.parametrize(
    ("tokens", "n", "width", "norm", "rounds"),
    [
        (33, 4, 20, True, 20),  # a block and one token, a width that is no power of two
        (5, 2, 8, False, 1),
        (7, 3, 70, True, 5),  # streams that are no power of two, columns over two blocks
        (17, 6, 16, False, 3),
    ],
)
def test_value_and_gradients(tokens: int, n: int, width: int, norm: bool, rounds: int) -> None:
    inputs = example(tokens, n, width)
    found = sub_layer(on_device(inputs), "triton", norm, rounds)
    for number, (one, other) in enumerate(zip(found, sub_layer(inputs, "reference", norm, rounds), strict=True)):
        assert largest_error([one.cpu()], [other]) < TOLERANCE, f"output {number} (read, routes, written, gradients)"


@runs_kernels
def test_more_blocks_than_groups_share_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.kernels.mhc_streams import triton

    inputs = example(70, 2, 8)
    expected = sub_layer(on_device(inputs), "triton", False, 2)
    monkeypatch.setattr(triton, "GROUPS", 2)
    for one, other in zip(sub_layer(on_device(inputs), "triton", False, 2), expected, strict=True):
        torch.testing.assert_close(one, other)


@runs_kernels
def test_far_logits_stay_finite_and_nan_is_not_swallowed() -> None:
    streams, projection, gate, bias = on_device(example(20, 4, 16)[:4])
    bias[8:] += 300.0  # exp alone would overflow
    _, routes, _ = mhc_read(streams, projection, gate, bias, iterations=20, path="triton")
    mix = routes[:, 8:].view(20, 4, 4)
    assert (mix.sum(1) - 1).abs().max() < 1e-5 and (mix.sum(2) - 1).abs().max() < 1e-3
    streams[3, 1, 2] = torch.nan
    read, _, _ = mhc_read(streams, projection, gate, bias, iterations=20, path="triton")
    assert read[3].isnan().any() and not read[:3].isnan().any() and not read[4:].isnan().any()


@runs_kernels
def test_gradients_that_are_not_asked_for_may_be_missing() -> None:
    streams, projection, gate, bias = (x.requires_grad_() for x in on_device(example(20, 4, 16)[:4]))
    read, routes, held = mhc_read(streams, projection, gate, bias, iterations=20, path="triton")
    only_read = torch.autograd.grad(read.sum(), [streams, projection], retain_graph=True)
    only_mix = torch.autograd.grad((routes[:, 8:] ** 2).sum(), [streams, projection], retain_graph=True)
    both = torch.autograd.grad(read.sum() + (routes[:, 8:] ** 2).sum() + held.sum(), [streams, projection])
    assert torch.allclose(only_read[0] + only_mix[0] + 1, both[0], atol=1e-5)
    assert torch.allclose(only_read[1] + only_mix[1], both[1], atol=1e-4)


@runs_kernels
def test_a_batch_without_tokens() -> None:
    found = sub_layer(on_device(example(0, 4, 16)), "triton", True)
    assert [len(x) for x in found[:4]] == [0, 0, 0, 0]
    assert all(not x.any() for x in found[4:])


@runs_kernels
def test_little_is_kept_for_the_backward_pass() -> None:
    tokens, n, width = 64, 4, 64
    inputs = [x.requires_grad_() for x in on_device(example(tokens, n, width))]
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        read, routes, held = mhc_read(*inputs[:4], iterations=2, path="triton")
        mhc_write(held, routes, read + 1, norm=(inputs[5], inputs[6], 1e-8), path="triton")
    assert sum(kept.values()) <= tokens * (n * width + width + 2 * 24 + 1) + 24 * n * width + 24 + 3 + width


@runs_kernels
def test_half_streams_are_rounded_at_the_borders_only() -> None:
    """fp16, which the interpreter computes right: what is mixed differs from the reference by its own eleven bits."""
    inputs = [x.half() for x in on_device(example(20, 4, 16))]
    held = [x.double().cpu() for x in inputs]
    read, routes, streams = mhc_read(*inputs[:4], iterations=20, path="triton")
    assert {x.dtype for x in (read, routes, streams)} == {torch.float16}
    expected = mhc_read(*held[:4], iterations=20, path="reference")
    assert largest_error([read.double().cpu(), routes.double().cpu()], list(expected[:2])) < 2**-10
    out = mhc_write(streams, routes, read, norm=(inputs[5], inputs[6], 1e-8), path="triton")
    wide = [x.double().cpu() for x in (streams, routes, read)]
    written = mhc_write(*wide, norm=(held[5], held[6], 1e-8), path="reference")
    assert out.dtype == torch.float16 and largest_error([out.double().cpu()], [written]) < 2**-10


@runs_kernels
@pytest.mark.skipif(INTERPRETED, reason="one thread cannot break it")
def test_equal_bits_from_run_to_run() -> None:
    inputs = on_device(example(5000, 4, 64))
    first = sub_layer(inputs, "triton", True)
    for _ in range(5):
        assert all(torch.equal(one, other) for one, other in zip(sub_layer(inputs, "triton", True), first, strict=True))


def test_what_the_kernels_do_not_take_is_named() -> None:
    from models.kernels.mhc_streams.triton import mhc_read_triton, mhc_write_triton

    inputs = example(3, 4, 8)
    with pytest.raises(TypeError, match="compute in float32"):
        mhc_read_triton(*inputs[:4], iterations=2)
    with pytest.raises(ValueError, match="at most 8 streams, not 9.*RECPOD_KERNELS=mhc_streams=torch"):
        mhc_read_triton(*(x.float() for x in example(3, 9, 8)[:4]), iterations=2)
    with pytest.raises(ValueError, match="at most 8 streams, not 9"):
        mhc_write_triton(torch.ones(2, 9, 4), torch.ones(2, 99), torch.ones(2, 4))


def test_without_triton_the_import_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "models.kernels.mhc_streams.triton", raising=False)
    with pytest.raises(ImportError, match="need the package 'triton'.*another kernel path"):
        importlib.import_module("models.kernels.mhc_streams.triton")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this starts the others")
@pytest.mark.timeout(600)
def test_in_the_interpreter() -> None:
    run_in_interpreter(__file__, passed=12, skipped=2)
