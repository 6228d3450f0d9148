"""The parts of the attention models: dropout, positions, feed-forward, attention against torch's own."""

from __future__ import annotations

import pytest
import torch

from models.layers.attention import SelfAttention
from models.layers.dropout import Dropout
from models.layers.feed_forward import FeedForward
from models.layers.position import LearnedPositions


def test_dropout_drops_its_share_scales_the_rest_and_repeats() -> None:
    layer, x = Dropout(0.2), torch.ones(300, 101, requires_grad=True)
    torch.manual_seed(1)
    first = layer(x)
    assert (first == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(first.unique(), torch.tensor([0.0, 1.25]))
    first.sum().backward()
    assert torch.equal(x.grad, first.detach())
    second = layer(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert layer.eval()(x) is x
    for share in (0.01, 0.5, 0.99):
        assert (Dropout(share)(torch.ones(200_000)) == 0).float().mean().item() == pytest.approx(share, abs=0.005)


def test_positions_are_counted_from_the_end_that_was_asked_for() -> None:
    offsets = torch.tensor([0, 3, 3, 4])
    newest, oldest = LearnedPositions(3, 2, "newest"), LearnedPositions(3, 2, "oldest")
    assert newest.places(offsets, 4).tolist() == [2, 1, 0, 0]
    assert oldest.places(offsets, 4).tolist() == [0, 1, 2, 0]
    with pytest.raises(ValueError, match=r"a row has 4 items.*learned positions for 3.*loader\.max_length"):
        newest.places(torch.tensor([0, 4]), 4)


def test_attention_equals_torchs_multi_head_attention_with_its_weights() -> None:
    torch.manual_seed(0)
    own, theirs = SelfAttention(12, 3, 0.0), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    own.load_state_dict(theirs.state_dict())
    x, other, offsets = torch.randn(9, 12), torch.randn(9, 12), torch.tensor([0, 5, 9])
    found = own(x, other, offsets)
    for first, end in ((0, 5), (5, 9)):
        mask = torch.ones(end - first, end - first, dtype=torch.bool).triu(1)
        q, c = x[None, first:end], other[None, first:end]
        assert torch.allclose(found[first:end], theirs(q, c, c, attn_mask=mask)[0][0], atol=1e-6)


def test_attention_drops_weights_in_training_only() -> None:
    torch.manual_seed(0)
    layer, x, offsets = SelfAttention(12, 3, 0.5), torch.randn(9, 12), torch.tensor([0, 5, 9])
    assert not torch.equal(layer(x, x, offsets), layer(x, x, offsets))
    layer.eval()
    assert torch.equal(layer(x, x, offsets), layer(x, x, offsets))


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "swiglu"])
def test_feed_forward_is_two_products_around_its_activation(activation: str) -> None:
    torch.manual_seed(0)
    layer, x = FeedForward(6, 10, activation, 0.0), torch.randn(4, 6)
    inner = x @ layer.inward.weight.T + layer.inward.bias
    acts = {"relu": lambda z: z.clamp(min=0), "gelu": torch.nn.functional.gelu, "silu": lambda z: z * z.sigmoid()}
    if activation == "swiglu":
        assert layer.gate is not None
        inner = inner * inner.sigmoid() * (x @ layer.gate.weight.T + layer.gate.bias)
    else:
        inner = acts[activation](inner)
    expected = inner @ layer.outward.weight.T + layer.outward.bias
    assert torch.allclose(layer(x), expected, atol=1e-6)
