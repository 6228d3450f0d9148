"""HSTU blocks whose heads lie in two real processes: the same numbers as in one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.layers.hstu import HSTUBlockOptions, HSTULayer, HSTULayout
from pipelines.errors import ConfigError
from pipelines.training.dense.options import ParallelOptions, check_heads, check_processes
from pipelines.training.distributed import World
from tests.pipelines.training.gang import run_gang

pytest.importorskip("megatron.core", reason="extra hstu is not installed: entrypoints/setup.sh --hstu")
# Megatron-Core takes 10 s to import, longer where cores are shared.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

OPTIONS = HSTUBlockOptions(
    width=16,
    heads=4,
    attention_dim=4,
    linear_dim=6,
    dropout=0.0,
    norm_affine=True,
    scale_by_dim=True,
    max_length=12,
    time_buckets=32,
)
LENGTHS = (5, 1, 9, 4)  # 19 tokens: two processes cannot have equally many
STEPS = 20


def warm_up() -> None:
    """What the processes fork with."""
    from pipelines.training.dense.megatron_linears import _layers

    _layers()


def whole_blocks(options: HSTUBlockOptions) -> nn.ModuleList:
    torch.manual_seed(0)
    blocks = nn.ModuleList(HSTULayer(options) for _ in range(2))
    for parameter in blocks.parameters():
        nn.init.normal_(parameter, std=0.3)
    return blocks


def task() -> tuple[Tensor, HSTULayout, Tensor]:
    """Tokens, who sees whom and when, and what the states should be."""
    generator = torch.Generator().manual_seed(1)
    offsets = torch.tensor((0, *LENGTHS)).cumsum(0)
    tokens = int(offsets[-1])
    times = torch.randint(0, 10**6, (tokens,), generator=generator).cumsum(0)
    x, wanted = (torch.randn(tokens, OPTIONS.width, generator=generator) for _ in range(2))
    return x, HSTULayout(offsets, timestamps=times, next_times=times + 7), wanted


def train(blocks: nn.Module, forward: Any) -> dict[str, Any]:
    """The losses, states and gradients of 20 steps of Adam."""
    x, layout, wanted = task()
    x.requires_grad_()
    optimizer = torch.optim.Adam(blocks.parameters(), lr=1e-2)
    losses, first = [], {}
    for step in range(STEPS):
        optimizer.zero_grad()
        states = forward(x, layout)
        loss = (states - wanted).square().mean()
        loss.backward()
        if step == 0:
            first = {"states": states.detach(), "x": x.grad.clone()}  # type: ignore[union-attr]
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, **first, "weights": {k: v for k, v in blocks.state_dict().items() if v is not None}}


def one_process(options: HSTUBlockOptions = OPTIONS) -> dict[str, Any]:
    blocks = whole_blocks(options)

    def forward(x: Tensor, layout: HSTULayout) -> Tensor:
        for block in blocks:
            x = block(x, layout)
        return x

    return train(blocks, forward)


# --- what the processes do ---


def spread(world: World, sequence: bool, options: HSTUBlockOptions = OPTIONS) -> dict[str, Any]:
    from pipelines.training.dense.parallel_hstu import ParallelBlocks, process_mesh

    parallel = ParallelOptions(tensor=2, sequence=sequence)
    mesh = process_mesh(parallel, "cpu")
    blocks = ParallelBlocks(whole_blocks(options), parallel, mesh["tensor"])
    return train(blocks, blocks)


def tensor_parallel(world: World, folder: Path) -> dict[str, Any]:
    return spread(world, sequence=False)


def sequence_parallel(world: World, folder: Path) -> dict[str, Any]:
    return spread(world, sequence=True)


def recomputed(world: World, folder: Path) -> dict[str, Any]:
    return spread(world, True, replace(OPTIONS, recompute_norm=True, recompute_silu=True))


def heads_that_do_not_divide(world: World, folder: Path) -> str:
    from pipelines.training.dense.parallel_hstu import ParallelBlocks, process_mesh

    parallel = ParallelOptions(tensor=2)
    try:
        ParallelBlocks(whole_blocks(replace(OPTIONS, heads=3)), parallel, process_mesh(parallel, "cpu")["tensor"])
    except ConfigError as error:
        return str(error)
    return "nothing was said"


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    names = ("tensor_parallel", "sequence_parallel", "recomputed", "heads_that_do_not_divide")
    return run_gang(__name__, {2: names}, tmp_path_factory.mktemp("parallel"))


@pytest.mark.parametrize("name", ["tensor_parallel", "sequence_parallel", "recomputed"])
def test_two_processes_compute_what_one_does(answers: dict[str, list[Any]], name: str) -> None:
    expected = one_process()
    assert expected["losses"][-1] < 0.5 * expected["losses"][0]
    for own in answers[name]:
        torch.testing.assert_close(own["states"], expected["states"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(own["x"], expected["x"], rtol=1e-5, atol=1e-5)
        assert own["losses"] == pytest.approx(expected["losses"], rel=1e-5)


@pytest.mark.parametrize("name", ["tensor_parallel", "sequence_parallel"])
def test_after_twenty_steps_the_parts_are_those_of_the_whole(answers: dict[str, list[Any]], name: str) -> None:
    whole = one_process()["weights"]
    parts = [own["weights"] for own in answers[name]]
    for layer in "01":
        for module, dim in (("project_in", 0), ("project_out", 1)):
            joined = torch.cat([part[f"blocks.{layer}.{module}.linear.weight"] for part in parts], dim)
            torch.testing.assert_close(joined, whole[f"{layer}.{module}.weight"], rtol=1e-4, atol=1e-5)
        joined = torch.cat([part[f"blocks.{layer}.attention_norm.weight"] for part in parts])
        torch.testing.assert_close(joined, whole[f"{layer}.attention_norm.weight"], rtol=1e-4, atol=1e-5)
        for same in ("input_norm.weight", "bias.position", "bias.time"):
            ours = [part[f"blocks.{layer}.{same}"] for part in parts]
            assert torch.equal(*ours), "replicas that drift apart"
            torch.testing.assert_close(ours[0], whole[f"{layer}.{same}"], rtol=1e-4, atol=1e-5)


def test_each_process_holds_half_of_the_projections(answers: dict[str, list[Any]]) -> None:
    for own in answers["tensor_parallel"]:
        columns = OPTIONS.heads * OPTIONS.head_width
        assert own["weights"]["blocks.0.project_in.linear.weight"].shape == (columns // 2, OPTIONS.width)
        assert own["weights"]["blocks.0.project_out.linear.weight"].shape == (OPTIONS.width, 12)


def test_heads_that_do_not_divide_are_said_by_every_process(answers: dict[str, list[Any]]) -> None:
    said = "parallel.tensor: 2 does not divide the 3 heads of the model. choose a divisor of model.heads."
    assert answers["heads_that_do_not_divide"] == [said, said]


@pytest.mark.parametrize(
    ("options", "facts", "message"),
    [
        ({"tensor": 2}, {"heads": 3}, "parallel.tensor: 2 does not divide the 3 heads"),
        ({"tensor": 2}, {"processes": 3}, "parallel.tensor: 3 processes cannot make groups of 2"),
        ({"tensor": 2}, {"processes": 1}, "parallel.tensor: 1 process cannot make groups of 2"),
        ({"tensor": 2}, {"heads": None}, "parallel.tensor: hstu has no tensor parallel form"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_is_built(
    options: dict[str, int], facts: dict[str, Any], message: str
) -> None:
    def check(made: ParallelOptions, processes: int = 4, heads: int | None = 4) -> None:
        check_heads(made, heads=heads, model="hstu")
        check_processes(made, processes)

    with pytest.raises(ConfigError, match=message):
        check(ParallelOptions(**options), **facts)
    check(ParallelOptions(tensor=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor": 0}, "parallel.tensor: 0 is less than 1"),
        ({"sequence": True}, "parallel.sequence: tokens are spread"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParallelOptions(**options)
