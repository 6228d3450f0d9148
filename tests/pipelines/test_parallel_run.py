"""Recipes whose blocks lie in two and four real processes: the losses, metrics and checkpoints of one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.training.checkpoint import checkpoint_path, checkpoint_steps, load_checkpoint
from pipelines.training.distributed import World
from tests.pipelines.recipe_runs import close, evaluated, ran, write_recipes
from tests.pipelines.training.gang import run_gang

pytest.importorskip("megatron.core", reason="extra hstu is not installed: entrypoints/setup.sh --hstu")
# Megatron-Core takes 10 s to import, longer where cores are shared.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TENSOR, SEQUENCE, CLIPPED = "parallel.tensor=2", "parallel.sequence=true", "training.grad_clip=0.5"
SOFTMAX = "model.loss={name: softmax, precision: float32}"  # draws nothing: any number of shares has the same loss
DROPOUT, ONE_EPOCH = "model.dropout=0.3", "training.epochs=1"


def warm_up() -> None:
    """What the processes fork with."""
    from pipelines.training.dense.megatron_linears import _layers

    _layers()


# --- what the processes do ---


def tensor(world: World, folder: Path) -> Any:
    return ran(world, folder, "tensor", TENSOR)


def sequence(world: World, folder: Path) -> Any:
    return ran(world, folder, "sequence", TENSOR, SEQUENCE, CLIPPED)


def ranking(world: World, folder: Path) -> Any:
    return ran(world, folder, "ranks", TENSOR, SEQUENCE, recipe="ranking")


def in_two_parts(world: World, folder: Path) -> Any:
    """With dropout: both must draw alike where they hold the same, and come back to it in the middle of an epoch."""
    whole = ran(world, folder, "whole", TENSOR, DROPOUT)
    ran(world, folder, "parts", TENSOR, DROPOUT, "training.max_steps=4")
    return [whole, ran(world, folder, "parts", TENSOR, DROPOUT)]


def one_window_a_batch(world: World, folder: Path) -> Any:
    return ran(world, folder, "few", TENSOR, SOFTMAX, "loader.rows_per_batch=1", "training.max_steps=20")


def from_one(world: World, folder: Path) -> Any:
    """The second epoch of a run whose first was one process'."""
    return ran(world, folder, "from-one", TENSOR, SEQUENCE)


def two_by_two(world: World, folder: Path) -> Any:
    """Two groups of two: some batches have a row for one group alone."""
    few = ("loader.rows_per_batch=1", "training.max_steps=20")
    return [
        ran(world, folder, "four", TENSOR, SOFTMAX, CLIPPED),
        ran(world, folder, "few-of-four", TENSOR, SOFTMAX, *few),
    ]


TWO = ("tensor", "sequence", "ranking", "in_two_parts", "one_window_a_batch", "from_one")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    write_recipes(folder)
    ran(None, folder, "from-one", ONE_EPOCH)
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, list[Any]]:
    return run_gang(__name__, {2: TWO, 4: ("two_by_two",)}, folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same recipes in one process."""
    folder = tmp_path_factory.mktemp("alone")
    write_recipes(folder)

    def run(name: str, *sets: str, recipe: str = "tiny") -> Any:
        return ran(None, folder, name, *sets, recipe=recipe)

    run.folder = folder  # type: ignore[attr-defined]
    return run


@pytest.mark.parametrize(
    ("name", "sets", "recipe"), [("tensor", (), "tiny"), ("sequence", (CLIPPED,), "tiny"), ("ranking", (), "ranking")]
)
def test_a_run_of_two_has_the_losses_and_metrics_of_one(
    answers: dict[str, list[Any]], alone: Any, name: str, sets: tuple[str, ...], recipe: str
) -> None:
    expected = alone(name, *sets, recipe=recipe)
    for own in answers[name]:
        assert isinstance(own, dict), own
        assert close(own["losses"], expected["losses"]) and own["losses"][-1] < own["losses"][0]
        assert close(own["norms"], expected["norms"], 1e-4)
        assert own["test"] == pytest.approx(expected["test"], rel=1e-3) and own["page"]
        assert own["training"]["targets"] == expected["training"]["targets"]


def test_two_groups_of_two_have_the_losses_of_one(answers: dict[str, list[Any]], alone: Any) -> None:
    expected = [alone("four", SOFTMAX, CLIPPED)]
    expected.append(alone("few", SOFTMAX, "loader.rows_per_batch=1", "training.max_steps=20"))
    for own in answers["two_by_two"]:
        for found, wanted in zip(own, expected, strict=True):
            assert isinstance(found, dict), found
            assert close(found["losses"], wanted["losses"])
            assert found["test"] == pytest.approx(wanted["test"], rel=1e-3)
    for found in answers["one_window_a_batch"]:
        assert close(found["losses"], expected[1]["losses"])


def test_a_run_with_dropout_goes_on_bit_by_bit(answers: dict[str, list[Any]]) -> None:
    first, second = answers["in_two_parts"]
    assert isinstance(first[0], dict), first
    assert first == second, "both processes of a block say the same"
    assert first[1]["losses"] == first[0]["losses"] and len(first[0]["losses"]) == 6
    assert not close(first[0]["losses"], answers["tensor"][0]["losses"], 1e-3), "dropout does something"


def test_checkpoints_are_those_of_one_process(answers: dict[str, list[Any]], alone: Any, folder: Path) -> None:
    alone("plain")
    made = []
    for place, name in ((folder, "tensor"), (alone.folder, "plain")):
        checkpoints = place / "runs" / name / "checkpoints"
        made.append(load_checkpoint(checkpoint_path(checkpoints, checkpoint_steps(checkpoints)[-1])))
    spread, plain = made
    assert list(spread["model"]) == list(plain["model"]) and len(spread["rng"]) == 1
    for name, weight in plain["model"].items():
        torch.testing.assert_close(spread["model"][name], weight, rtol=1e-3, atol=1e-4, msg=name)
    for number, moments in plain["optimizer"]["state"].items():
        for key, value in moments.items():
            torch.testing.assert_close(spread["optimizer"]["state"][number][key], value, rtol=1e-2, atol=1e-5)


def test_one_goes_on_from_two_and_two_from_one(answers: dict[str, list[Any]], alone: Any, folder: Path) -> None:
    expected = alone("through")
    for own in answers["from_one"]:
        assert isinstance(own, dict), own
        assert close(own["losses"], expected["losses"])
    shutil.copytree(folder / "runs" / "tensor", folder / "runs" / "longer")
    longer, first = ran(None, folder, "longer", "training.epochs=3"), answers["tensor"][0]["losses"]
    assert longer["losses"][: len(first)] == first and len(longer["losses"]) == len(first) * 3 // 2
    assert close(longer["losses"], alone("longer", "training.epochs=3")["losses"])


def test_one_process_evaluates_what_two_have_trained(answers: dict[str, list[Any]], folder: Path) -> None:
    found = ran(None, folder, "sequence", TENSOR, SEQUENCE, CLIPPED, stage=evaluated)
    assert found["test"] == answers["sequence"][0]["test"]


def test_columns_of_two_processes_are_dropped_independently() -> None:
    from pipelines.training.dense.parallel_hstu import OwnDropout

    kept, after = [], []
    for rank in range(2):
        torch.manual_seed(0)
        kept.append(OwnDropout(0.25, rank)(torch.ones(20_000)) > 0)
        after.append(torch.rand(()))
    assert after[0] == after[1], "the generator that both share goes on alike"
    both = (kept[0] & kept[1]).double().mean().item()
    assert [part.double().mean().item() for part in kept] == pytest.approx([0.75, 0.75], abs=0.02)
    assert both == pytest.approx(0.75**2, abs=0.02)
