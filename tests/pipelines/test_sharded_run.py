"""Recipes whose item table is spread over two real processes: trained, resumed, evaluated and reported as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.losses import Drawn
from pipelines.training.checkpoint import load_checkpoint
from pipelines.training.distributed import World
from pipelines.training.sparse import paged_items, torchrec_table
from tests.pipelines.recipe_runs import ITEMS, close, evaluated, ran, write_recipes
from tests.pipelines.training.gang import run_gang

pytest.importorskip("torchrec", reason="extra hstu is not installed: entrypoints/setup.sh --hstu")
# TorchRec takes 10 s to import, longer where cores are shared.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROWS, TABLE, MANAGED = "embedding.sharding=row_wise", "embedding.sharding=table_wise", "embedding.capacity=12"
EPOCHS = 2


def warm_up() -> None:
    """What the processes fork with."""
    import torchrec.distributed.planner  # noqa: F401

    from pipelines.training.dense.megatron_linears import _layers

    _layers()


def every_item(*_: Any) -> Drawn:
    """All items as negatives, whoever draws: then several processes have the loss of one."""
    return Drawn(torch.arange(1, ITEMS + 1), ITEMS)


def sharded(world: World, folder: Path, name: str, *sets: str, **rest: Any) -> Any:
    paged_items.draw_negatives = every_item  # type: ignore[attr-defined]
    return ran(world, folder, name, *(sets or (ROWS,)), **rest)


# --- what the processes do ---


def row_wise(world: World, folder: Path) -> Any:
    return sharded(world, folder, "row")


def row_wise_in_two_parts(world: World, folder: Path) -> Any:
    """With dropout: the random state of both must come back."""
    whole = sharded(world, folder, "whole", ROWS, "model.dropout=0.3")
    sharded(world, folder, "parts", ROWS, "model.dropout=0.3", "training.epochs=1")
    return [whole, sharded(world, folder, "parts", ROWS, "model.dropout=0.3")]


def goes_on_table_wise(world: World, folder: Path) -> Any:
    """The first epoch with spread rows, the second with the table in one process."""
    sharded(world, folder, "moved", ROWS, "training.epochs=1")
    return sharded(world, folder, "moved", TABLE)


def managed(world: World, folder: Path) -> Any:
    """Fewer rows than items; the second run goes on where the first has ended."""
    first = sharded(world, folder, "managed", ROWS, MANAGED)
    again = sharded(world, folder, "managed", ROWS, MANAGED, stage=evaluated)
    return [first, again, sharded(world, folder, "managed", ROWS, MANAGED, f"training.epochs={EPOCHS + 1}")]


def with_spread_blocks(world: World, folder: Path) -> Any:
    return sharded(world, folder, "both", ROWS, "parallel.tensor=2")


def ranking(world: World, folder: Path) -> Any:
    return sharded(world, folder, "ranks", ROWS, recipe="ranking")


def without_room(world: World, folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchrec_table, "memory_bytes", lambda: 100)
        return sharded(world, folder, "no-room")


def alone_row_wise(world: World, folder: Path) -> Any:
    return sharded(world, folder, "alone")


def alone_evaluates(world: World, folder: Path) -> Any:
    """One process, what two have trained: a table, a table with managed ids, spread blocks as well."""
    return {
        "row": sharded(world, folder, "row", ROWS, stage=evaluated),
        "managed": sharded(world, folder, "managed", ROWS, MANAGED, stage=evaluated),
        "both": sharded(world, folder, "both", ROWS, stage=evaluated),
    }


def alone_ranking(world: World, folder: Path) -> Any:
    return sharded(world, folder, "ranks-alone", ROWS, recipe="ranking")


def alone_from_elsewhere(world: World, folder: Path) -> Any:
    """A run of another name goes on from the checkpoint of two: its table comes along."""
    from pipelines import runbook
    from pipelines.runbook import RunChoices

    def go_on(config: Any, console: Any) -> None:
        source = folder / "runs" / "parts" / "checkpoints"
        first = min(source.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
        runbook.run(config, RunChoices(resume=str(first), preflight=False), console)

    return sharded(world, folder, "elsewhere", ROWS, "model.dropout=0.3", stage=go_on)


TWO = (
    "row_wise",
    "row_wise_in_two_parts",
    "goes_on_table_wise",
    "managed",
    "with_spread_blocks",
    "ranking",
    "without_room",
)
ONE = ("alone_row_wise", "alone_evaluates", "alone_ranking", "alone_from_elsewhere")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded-runs")
    write_recipes(folder)
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, list[Any]]:
    return run_gang(__name__, {2: TWO, 1: ONE}, folder)


def test_two_processes_have_the_losses_and_metrics_of_one(answers: dict[str, list[Any]]) -> None:
    (alone,), (first, second) = answers["alone_row_wise"], answers["row_wise"]
    assert isinstance(alone, dict), alone
    assert first == second and first["page"]
    assert close(first["losses"], alone["losses"], 5e-5) and first["losses"][-1] < 0.97 * first["losses"][0]
    assert first["test"] == pytest.approx(alone["test"], abs=0.03), "of 48 users"
    assert first["training"]["processes"] == 2


def test_a_run_in_two_parts_is_the_run_in_one(answers: dict[str, list[Any]]) -> None:
    for whole, parts in answers["row_wise_in_two_parts"]:
        assert isinstance(whole, dict) and isinstance(parts, dict), (whole, parts)
        assert parts["losses"] == whole["losses"] and parts["test"] == whole["test"], "bit by bit"


def test_a_table_goes_on_spread_otherwise(answers: dict[str, list[Any]]) -> None:
    for own in answers["goes_on_table_wise"]:
        assert isinstance(own, dict), own
        assert close(own["losses"], answers["row_wise"][0]["losses"], 5e-5)


def test_the_checkpoint_has_the_table_beside_it_and_not_in_it(answers: dict[str, list[Any]], folder: Path) -> None:
    checkpoints = folder / "runs" / "row" / "checkpoints"
    steps = {path.name for path in checkpoints.glob("step-*")}
    assert steps and {path.name for path in (checkpoints / "tables").iterdir()} == steps
    saved = load_checkpoint(checkpoints / min(steps))
    assert saved["model"] and not [name for name in saved["model"] if name.startswith("item_embedding")]


def test_one_process_evaluates_what_two_have_trained(answers: dict[str, list[Any]]) -> None:
    (found,) = answers["alone_evaluates"]
    for name, run in (("row", "row_wise"), ("both", "with_spread_blocks")):
        assert found[name]["test"] == pytest.approx(answers[run][0]["test"], abs=1e-12), name
        assert found[name]["training"]["steps"] == answers[run][0]["training"]["steps"]


def test_managed_ids_are_ranked_among_the_whole_catalogue_by_the_processes_that_trained_them(
    answers: dict[str, list[Any]],
) -> None:
    for first, again, longer in answers["managed"]:
        assert isinstance(first, dict), first
        assert again["test"] == first["test"]
        assert longer["losses"][: len(first["losses"])] == first["losses"]
        assert len(longer["losses"]) == len(first["losses"]) * (EPOCHS + 1) // EPOCHS
    (found,) = answers["alone_evaluates"]
    assert found["managed"] == "2 embedding.capacity: managed ids of 2 processes, 1 are here. go on with 2 processes."


def test_table_and_blocks_may_be_spread_at_once(answers: dict[str, list[Any]]) -> None:
    (alone,) = answers["alone_row_wise"]
    for own in answers["with_spread_blocks"]:
        assert isinstance(own, dict), own
        assert close(own["losses"], alone["losses"], 5e-5)


def test_both_processes_say_that_there_is_no_room(answers: dict[str, list[Any]]) -> None:
    said = "2 embedding.sharding: row_wise: no process has room for its share of the item table on 2 x cpu."
    first, second = answers["without_room"]
    assert first == second and first.startswith(said)


def test_a_ranking_model_s_table_may_be_spread(answers: dict[str, list[Any]]) -> None:
    (alone,) = answers["alone_ranking"]
    for own in answers["ranking"]:
        assert isinstance(own, dict), own
        assert close(own["losses"], alone["losses"], 5e-5) and own["losses"][-1] < own["losses"][0]
        assert own["test"]["AUC"] == pytest.approx(alone["test"]["AUC"], abs=0.01)


def test_a_run_goes_on_from_a_checkpoint_elsewhere_with_its_table(answers: dict[str, list[Any]], folder: Path) -> None:
    (own,) = answers["alone_from_elsewhere"]
    assert isinstance(own, dict), own
    whole = answers["row_wise_in_two_parts"][0][0]
    assert own["training"]["steps"] == whole["training"]["steps"]
    assert own["losses"][0] == pytest.approx(whole["losses"][len(whole["losses"]) // 2], rel=0.2)
    assert own["losses"][0] < 0.99 * whole["losses"][0], "a table that did not come along would begin anew"
