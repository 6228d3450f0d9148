"""The HSTU block: its equation, its variants, jagged rows, and what is computed again instead of kept."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.kernels.hstu_attention import AttentionMask
from models.layers.hstu import HSTUBlockOptions, HSTULayer, HSTULayout
from models.layers.recompute import Recomputed
from tests.pipelines.estimate.live_tensors import LiveBytes

OPTIONS = HSTUBlockOptions(
    width=12, heads=2, attention_dim=5, linear_dim=7, dropout=0.0, max_length=16, time_buckets=40, norm_affine=True
)
OFFSETS = torch.tensor([0, 6, 7, 18])
RECOMPUTING = list(product((False, True), repeat=2))


def layout(**more: Any) -> HSTULayout:
    times = torch.arange(18) ** 3
    return HSTULayout(OFFSETS, timestamps=times, next_times=times.roll(-1), **more)


def layer(options: HSTUBlockOptions = OPTIONS, seed: int = 0) -> HSTULayer:
    torch.manual_seed(seed)
    made = HSTULayer(options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def states(seed: int = 1) -> Tensor:
    return torch.randn(18, 12, generator=torch.Generator().manual_seed(seed), requires_grad=True)


@pytest.mark.parametrize("scale_by_dim", [False, True])
def test_the_equation_by_hand(scale_by_dim: bool) -> None:
    block, x = layer(replace(OPTIONS, scale_by_dim=scale_by_dim, relative_bias="none")), states()
    found = block(x, layout())
    weight, bias = block.project_in.weight, block.project_in.bias
    norm, gate_norm = block.input_norm, block.attention_norm
    for row in ((0, 6), (6, 7), (7, 18)):
        own = x[slice(*row)]
        normed = functional.layer_norm(own, (12,), norm.weight, norm.bias, 1e-6)
        mixed = functional.silu(normed @ weight.T + bias)  # [L, 2 * (7 + 7 + 5 + 5)]
        outputs, gates = [], []
        for head in range(2):
            u, v, q, k = mixed[:, 24 * head : 24 * (head + 1)].split([7, 7, 5, 5], 1)
            scores = q @ k.T / (5**0.5 if scale_by_dim else 1)
            outputs.append((functional.silu(scores) / 16).tril() @ v)
            gates.append(u)
        attended = functional.layer_norm(torch.cat(outputs, 1), (14,), gate_norm.weight, gate_norm.bias, 1e-6)
        expected = own + block.project_out(attended * torch.cat(gates, 1))
        torch.testing.assert_close(found[slice(*row)], expected, atol=2e-5, rtol=1e-5)


def test_published_variants_have_the_parameters_they_should() -> None:
    authors = layer(replace(OPTIONS, norm_affine=False))
    names = {name for name, _ in authors.named_parameters()}
    projections = {f"project_{way}.{kind}" for way in ("in", "out") for kind in ("weight", "bias")}
    assert names == projections | {"bias.position", "bias.time"}
    assert authors.bias is not None and authors.bias.position.shape == (31,) and authors.bias.time.shape == (40,)
    other = layer(replace(OPTIONS, relative_bias="none"))
    norms = {f"{norm}_norm.{kind}" for norm in ("input", "attention") for kind in ("weight", "bias")}
    assert {name for name, _ in other.named_parameters()} == projections | norms


def test_every_option_makes_another_layer() -> None:
    base = layer()(states(), layout())
    for change in (
        {"scale_by_dim": True},
        {"relative_bias": "position"},
        {"relative_bias": "none"},
        {"max_length": 15},
        {"norm_eps": 0.1},
    ):
        block = HSTULayer(replace(OPTIONS, **change))
        known = layer().state_dict()
        if "max_length" in change:
            known["bias.position"] = known["bias.position"][1:-1]
        block.load_state_dict({key: known[key] for key in block.state_dict()})
        assert not torch.allclose(block(states(), layout()), base, atol=1e-4), change


def test_masks_and_the_batch_s_own_length_reach_the_attention() -> None:
    block, base = layer(), layer()(states(), layout())
    counts = torch.tensor([2, 0, 3])
    for change in ({"mask": AttentionMask(num_context=counts)}, {"mask": AttentionMask(num_candidates=counts)}):
        assert not torch.allclose(block(states(), layout(**change)), base, atol=1e-4)
    # the norm after the attention hides a factor, but for its epsilon
    blunt = layer(replace(OPTIONS, norm_eps=1e-2))
    assert not torch.allclose(blunt(states(), layout(max_length=2)), blunt(states(), layout()), atol=1e-3)
    assert torch.equal(block(states(), layout(max_length=16)), base)


def run(block: HSTULayer, x: Tensor) -> list[Tensor]:
    torch.manual_seed(7)
    out = block(x, layout())
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    grads = torch.autograd.grad((out * weights).sum(), [x, *block.parameters()])
    return [out.detach(), *grads]


@pytest.mark.parametrize(("norm", "silu"), RECOMPUTING)
def test_computing_again_changes_no_bit(norm: bool, silu: bool) -> None:
    for dropout in (0.0, 0.4):
        options = replace(OPTIONS, dropout=dropout)
        kept, again = layer(options), layer(replace(options, recompute_norm=norm, recompute_silu=silu))
        for one, other in zip(run(kept, states()), run(again, states()), strict=True):
            assert torch.equal(one, other)


def held_by_graph(options: HSTUBlockOptions, tokens: int) -> int:
    """Bytes that live between the passes because the block's output does."""
    block, x = HSTULayer(options), torch.randn(tokens, options.width, requires_grad=True)
    rows = HSTULayout(torch.arange(0, tokens + 1, 64), tokens=tokens)
    with LiveBytes((x, rows.seen, rows.offsets, *block.parameters())) as bytes_:
        out = block(x, rows)
        return bytes_.live - 4 * out.numel()


def test_computing_again_keeps_one_norm_and_one_projection_less() -> None:
    tokens = 2048
    options = replace(OPTIONS, relative_bias="none", dropout=0.0)
    norm, silu = 4 * tokens * 12, 4 * tokens * 48
    everything = held_by_graph(options, tokens)
    for again_norm, again_silu in RECOMPUTING:
        held = held_by_graph(replace(options, recompute_norm=again_norm, recompute_silu=again_silu), tokens)
        assert everything - held == norm * again_norm + silu * again_silu


def test_the_remade_output_is_let_go() -> None:
    x = torch.randn(64, 4, requires_grad=True)
    made = 0

    def function(values: Tensor) -> Tensor:
        nonlocal made
        made += 1
        return functional.silu(values)

    kept = Recomputed(function, x)
    with kept:
        out = (kept.output * kept.output[:, :1]).sum() + kept.output.exp().sum()
    out.backward()
    assert made == 2  # forward, and once for all three users
    assert x.grad is not None
    again = x.detach().requires_grad_()
    value = functional.silu(again)
    ((value * value[:, :1]).sum() + value.exp().sum()).backward()
    assert torch.equal(x.grad, again.grad)


def test_half_products_keep_their_dtype_when_computed_again() -> None:
    block, plain = (layer(replace(OPTIONS, recompute_norm=flag, recompute_silu=flag)) for flag in (True, False))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = run(block, states()), run(plain, states())
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_projections_of_another_make_take_their_place() -> None:
    """One of two tensor-parallel parts: half the heads in, a partial sum out."""
    whole = layer(replace(OPTIONS, relative_bias="none"))
    half = HSTULayer(replace(OPTIONS, relative_bias="none", heads=1))
    project_in, project_out = nn.Linear(12, 24), nn.Linear(7, 12, bias=False)
    with torch.no_grad():
        project_in.weight.copy_(whole.project_in.weight[:24])
        project_in.bias.copy_(whole.project_in.bias[:24])
    part = HSTULayer(replace(OPTIONS, relative_bias="none"), project_in, project_out)
    part.input_norm.load_state_dict(whole.input_norm.state_dict())
    part.attention_norm = nn.LayerNorm(7)
    assert part(states(), layout()).shape == (18, 12)
    assert {name for name, _ in half.named_parameters()} == {name for name, _ in whole.named_parameters()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 0}, "heads: 0 is less than 1"),
        ({"attention_dim": 0}, "attention_dim: 0"),
        ({"dropout": 1.0}, "dropout: 1.0"),
        ({"relative_bias": "off"}, "relative_bias: 'off' is not one of none, position, position_time"),
    ],
)
def test_options_that_make_no_sense_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(OPTIONS, **change)
