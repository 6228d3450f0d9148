"""Hyper-connections: every path gives the numbers of the equations, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.kernels import mhc_read, mhc_write
from models.kernels.check import largest_error
from models.kernels.mhc_streams.vectorised import sinkhorn


def example(tokens: int, n: int, width: int, seed: int = 0) -> list[Tensor]:
    """Streams, projection, gate, bias, the sub-layer's matrix, weight and bias of the norm; float64."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    routes = 2 * n + n * n
    projection = normal(routes, n * width) / (n * width) ** 0.5
    gate = torch.rand(3, generator=random, dtype=torch.float64)
    inner = normal(width, width) / width**0.5
    return [normal(tokens, n, width), projection, gate, normal(routes), inner, 1 + 0.1 * normal(width), normal(width)]


def sub_layer(inputs: list[Tensor], path: str, norm: bool, iterations: int = 20) -> list[Tensor]:
    """What is read, routes, what is written, and all gradients through reading, F and writing."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    read, routes, held = mhc_read(*leaves[:4], iterations=iterations, path=path)
    layer_norm = (leaves[5], leaves[6], 1e-8) if norm else None
    out = mhc_write(held, routes, torch.tanh(read @ leaves[4]), norm=layer_norm, path=path)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    grads = torch.autograd.grad((out * weights).sum(), leaves if norm else leaves[:5])
    return [read.detach(), routes.detach(), out.detach(), *grads]


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 70),
    n=st.integers(2, 6),
    width=st.sampled_from([3, 16, 25, 64]),
    norm=st.booleans(),
    rounds=st.sampled_from([1, 5, 20]),
    seed=st.integers(0, 99),
)
def test_every_path_computes_the_equations(tokens: int, n: int, width: int, norm: bool, rounds: int, seed: int) -> None:
    inputs = example(tokens, n, width, seed)
    expected = sub_layer(inputs, "reference", norm, rounds)
    assert largest_error(sub_layer(inputs, "torch", norm, rounds), expected) < 1e-9
    single = [x.float() for x in inputs]
    pairs = zip(
        sub_layer(single, "numba", norm, rounds), sub_layer(single, "torch", norm, rounds), expected, strict=True
    )
    for compiled, plain, exact in pairs:
        # The norm of three nearly equal numbers loses digits on every path: no more here than in PyTorch's.
        allowed = 1e-5 * exact.abs().max().clamp_min(1.0) + 4 * (plain - exact).abs().max()
        assert (compiled - exact).abs().max() <= allowed


@pytest.mark.parametrize("norm", [False, True])
def test_equal_bits_for_any_number_of_threads(norm: bool) -> None:
    inputs, threads = [x.float() for x in example(700, 4, 32)], torch.get_num_threads()
    first = sub_layer(inputs, "numba", norm)
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            again = sub_layer(inputs, "numba", norm)
            assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("path", ["numba", "torch", "reference"])
def test_gradients_that_are_not_asked_for_may_be_missing(path: str) -> None:
    """Streams used apart from the pair, and a sub-layer that ends in what it read: parts of the gradient are None."""
    streams, projection, gate, bias = (x.float().requires_grad_() for x in example(20, 4, 16)[:4])
    read, routes, held = mhc_read(streams, projection, gate, bias, iterations=20, path=path)
    only_read = torch.autograd.grad(read.sum(), [streams, projection], retain_graph=True)
    only_mix = torch.autograd.grad((routes[:, 8:] ** 2).sum(), [streams, projection], retain_graph=True)
    both = torch.autograd.grad(read.sum() + (routes[:, 8:] ** 2).sum() + held.sum(), [streams, projection])
    assert torch.allclose(only_read[0] + only_mix[0] + 1, both[0], atol=1e-5)
    assert torch.allclose(only_read[1] + only_mix[1], both[1], atol=1e-4)


@pytest.mark.parametrize("path", ["numba", "torch"])
def test_far_logits_stay_finite_and_nan_is_not_swallowed(path: str) -> None:
    streams, projection, gate, bias = (x.float() for x in example(20, 4, 16)[:4])
    bias[8:] += 300.0  # exp alone would overflow
    _, routes, _ = mhc_read(streams, projection, gate, bias, iterations=20, path=path)
    mix = routes[:, 8:].view(20, 4, 4)
    assert (mix.sum(1) - 1).abs().max() < 1e-5 and (mix.sum(2) - 1).abs().max() < 1e-3
    streams[3, 1, 2] = torch.nan
    read, _, _ = mhc_read(streams, projection, gate, bias, iterations=20, path=path)
    assert read[3].isnan().any() and not read[:3].isnan().any() and not read[4:].isnan().any()


def test_little_is_kept_for_the_backward_pass() -> None:
    """Of a sub-layer: the streams once, its input and output, and routes; no mixed streams, no Sinkhorn rounds."""
    tokens, n, width = 1600, 4, 64
    inputs = [x.float().requires_grad_() for x in example(tokens, n, width)]
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        read, routes, held = mhc_read(*inputs[:4], iterations=20, path="numba")
        mhc_write(held, routes, read + 1, norm=(inputs[5], inputs[6], 1e-8), path="numba")
    assert sum(kept.values()) <= tokens * (n * width + 2 * width + 2 * 32 + 1) + 3 * 32 * n * width


def test_mistakes_are_named() -> None:
    streams, projection, gate, bias = example(5, 4, 8)[:4]
    with pytest.raises(ValueError, match="mhc_streams: projection has shape"):
        mhc_read(streams, projection[:-1], gate, bias, iterations=20)
    with pytest.raises(ValueError, match="mhc_streams: output has shape"):
        mhc_write(streams, torch.ones(5, 24), torch.ones(4, 8))


def test_fewer_rounds_are_less_doubly_stochastic() -> None:
    positive = torch.rand(4, 4, 50, dtype=torch.float64).exp()
    errors = [(sinkhorn(positive, rounds).sum(1) - 1).abs().max().item() for rounds in (1, 3, 20)]
    assert errors[0] > 10 * errors[1] > 1000 * errors[2]


def test_gradients_of_the_rounds_are_those_of_plain_autograd() -> None:
    def plain(positive: Tensor) -> Tensor:
        for _ in range(20):
            positive = positive / positive.sum(1, keepdim=True)
            positive = positive / positive.sum(0, keepdim=True)
        return positive

    torch.manual_seed(0)
    positive = torch.randn(4, 4, 30, dtype=torch.float64).exp().requires_grad_()
    weights = torch.randn(4, 4, 30, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad((function(positive) * weights).sum(), positive)[0]
        for function in (lambda x: sinkhorn(x, 20), plain)
    )
    assert (found - expected).abs().max() < 1e-12
    assert torch.autograd.gradcheck(lambda x: sinkhorn(x, 3), positive[..., :4].detach().requires_grad_())
