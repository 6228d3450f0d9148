"""Learning rates by hand, weight decay where it belongs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.errors import ConfigError
from pipelines.training.optimizers import OptimizerOptions, build_optimizer, learning_rate

ROOT = Path(__file__).resolve().parents[3]


def test_warm_up_then_linear_then_floor() -> None:
    options = OptimizerOptions(lr=1.0, schedule="linear", warmup_steps=4, final_lr_ratio=0.1)
    rates = [learning_rate(options, step, 14) for step in (0, 1, 3, 4, 9, 14, 99)]
    assert rates == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.55, 0.1, 0.1])


def test_cosine_is_half_way_at_half_time() -> None:
    options = OptimizerOptions(lr=2.0, schedule="cosine")
    assert [learning_rate(options, step, 10) for step in (0, 5, 10)] == pytest.approx([2.0, 1.0, 0.0])


def test_constant_stays() -> None:
    assert learning_rate(OptimizerOptions(lr=0.5), 10**6, 10) == 0.5


def test_exponential_counts_whole_epochs_after_the_warm_ups() -> None:
    options = OptimizerOptions(lr=1.0, schedule="exponential", warmup_steps=6, decay_rate=0.25, decay_epochs=2)
    rates = [learning_rate(options, step, 1000, epoch_steps=4) for step in (0, 5, 6, 7, 8, 11, 12, 16, 20)]
    assert rates == pytest.approx([1 / 6, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.125, 0.0625])


class WithItems(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.item_embedding, self.other = nn.Embedding(4, 3, padding_idx=0), nn.Linear(3, 3)

    def forward(self) -> torch.Tensor:
        return self.other(self.item_embedding.weight[1:3]).pow(2).sum()


def test_item_l2_is_a_term_of_the_loss() -> None:
    """Adam's own penalty on the one table is the gradient of ``item_l2 * sum of squares``, on rows of no batch too."""

    def weights(l2: float, in_loss: float) -> torch.Tensor:
        torch.manual_seed(0)
        module = WithItems()
        optimizer = build_optimizer(module, OptimizerOptions(lr=0.1, item_l2=l2))
        for _ in range(4):
            optimizer.zero_grad()
            (module() + in_loss * module.item_embedding.weight.pow(2).sum()).backward()
            optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    torch.testing.assert_close(weights(0.3, 0.0), weights(0.0, 0.3))
    assert not torch.allclose(weights(0.3, 0.0), weights(0.0, 0.0))
    with pytest.raises(ConfigError, match="no item table"):
        build_optimizer(nn.Linear(2, 2), OptimizerOptions(item_l2=1.0))


def test_only_matrices_decay() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    module.special = nn.Parameter(torch.ones(2, 2))
    module.special.no_weight_decay = True  # type: ignore[union-attr]
    groups = build_optimizer(module, OptimizerOptions(weight_decay=0.3)).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.3, 1), (0.0, 4)]


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        ({"name": "adm"}, "did you mean 'adam'"),
        ({"schedule": "cosin"}, "'cosine'"),
        ({"lr": 0}, "positive"),
        ({"item_l2": 1, "name": "adamw"}, "only adam adds a penalty"),
        ({"decay_rate": 0}, "optimizer.decay_rate"),
        ({"decay_epochs": 0}, "optimizer.decay_epochs"),
    ],
)
def test_bad_options_are_one_line(bad: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        OptimizerOptions(**bad)  # type: ignore[arg-type]


UNCOMPILED = """
import sys
import torch
from torch import nn
from pipelines.training.optimizers import OptimizerOptions, build_optimizer

def five_steps(make):
    torch.manual_seed(0)
    module = nn.Linear(5, 3)
    optimizer = make(module)
    for _ in range(5):
        optimizer.zero_grad()
        module(torch.ones(2, 5)).pow(2).sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    return module.weight.detach()

options = OptimizerOptions(name="adamw", lr=0.1, weight_decay=0.1)
ours = five_steps(lambda module: build_optimizer(module, options))
assert "torch._dynamo" not in sys.modules, "the compiler was imported"
groups = lambda m: [{"params": [m.weight]}, {"params": [m.bias], "weight_decay": 0.0}]
assert torch.equal(ours, five_steps(lambda m: torch.optim.AdamW(groups(m), lr=0.1, weight_decay=0.1, fused=True)))
print("equal")
"""


def test_steps_are_torchs_own_without_its_compiler() -> None:
    """Importing the compiler takes longer than all else before the first step."""
    result = subprocess.run([sys.executable, "-c", UNCOMPILED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout == "equal\n", result.stderr
