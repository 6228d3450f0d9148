"""torch.compile for the layers that work on each token by itself: equal numbers, equal names, clear refusals."""

from __future__ import annotations

import shutil

import pytest
import torch

from models.batch import SequenceBatch
from models.hstu import HSTU, HSTUOptions
from models.layers.feed_forward import FeedForward
from models.sasrec import SASRec, SASRecOptions
from pipelines.errors import ConfigError, MachineError
from pipelines.training.compiled import compile_layers


def batch(lengths: list[int]) -> SequenceBatch:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    items, times = torch.randint(1, 21, (int(offsets[-1]),)), torch.arange(int(offsets[-1]))
    return SequenceBatch(offsets, items, times, items.roll(1), times[offsets[1:] - 1] + 1, torch.arange(len(lengths)))


def trained(compiled: bool, batches: list[SequenceBatch], backend: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses, and gradients summed over the batches."""
    torch.manual_seed(1)
    task = SASRec(20, SASRecOptions(hidden=16, max_length=10, dropout=0.0)).double().train()
    if compiled:
        assert compile_layers(task, backend) == 2
    losses = []
    for given in batches:
        total = task.loss(given).sum
        total.backward()
        losses.append(total.item())
    assert list(task.state_dict()) == list(SASRec(20, SASRecOptions(hidden=16, max_length=10)).state_dict())
    return losses, {name: p.grad for name, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param("inductor", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")),
    ],
)
def test_compiled_layers_compute_the_same_for_batches_of_any_size(backend: str) -> None:
    torch.manual_seed(0)
    batches = [batch([3, 5]), batch([7]), batch([1, 2, 9])]
    losses, gradients = trained(False, batches, backend)
    again, compiled = trained(True, batches, backend)
    assert again == pytest.approx(losses, rel=1e-12)
    assert set(compiled) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-9, atol=1e-12)


def test_dropout_in_a_compiled_layer_draws_anew_at_each_step_and_keeps_its_mask_for_the_gradient() -> None:
    torch.manual_seed(0)
    task = SASRec(20, SASRecOptions(hidden=16, max_length=10, dropout=0.5)).train()
    layer = next(module for module in task.modules() if isinstance(module, FeedForward))
    compile_layers(task, "aot_eager")
    torch.nn.init.constant_(layer.outward.bias, 3.0)  # what is kept is never zero
    x = torch.randn(40, 16, requires_grad=True)
    first, second = layer(x), layer(x)
    assert not torch.equal(first == 0, second == 0)
    assert 0.3 < float((first == 0).float().mean()) < 0.7
    # the output's bias reaches every place that was kept, scaled, and no other
    (gradient,) = torch.autograd.grad(first.sum(), layer.outward.bias)
    torch.testing.assert_close(gradient, 2.0 * (first != 0).float().sum(0))


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="HSTU has no feed-forward layer"):
        compile_layers(HSTU(20, HSTUOptions(hidden=16, max_length=10)))


def test_a_machine_without_a_compiler_is_refused_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MachineError, match="C\\+\\+ compiler"):
        compile_layers(SASRec(20, SASRecOptions(hidden=16, max_length=10)))
