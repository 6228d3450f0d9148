"""Debug mode in two real processes: what breaks in one ends both, in one line that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.layers.hstu import HSTULayer
from pipelines.training.debug import DebugWatch
from pipelines.training.debug_dump import load_dump
from pipelines.training.distributed import World
from tests.pipelines.recipe_runs import ran, write_recipes
from tests.pipelines.training.gang import run_gang

pytestmark = pytest.mark.timeout(240)

BROKEN, STEP = 1, 2  # the process and the update


def broken_block(patch: pytest.MonkeyPatch, calls_before: int) -> None:
    """From some call on blocks make NaN of everything."""
    forward, calls = HSTULayer.forward, [0]

    def poisoned(self: HSTULayer, *given: Any) -> Any:
        calls[0] += 1
        return forward(self, *given) * (float("nan") if calls[0] > calls_before else 1.0)

    patch.setattr(HSTULayer, "forward", poisoned)


# --- what both do ---


def healthy(world: World, folder: Path) -> Any:
    return [ran(world, folder, name, f"debug={str(name == 'watched').lower()}") for name in ("watched", "plain")]


def breaks(world: World, folder: Path) -> Any:
    """In two blocks an update, in one of the processes alone."""
    with pytest.MonkeyPatch.context() as patch:
        if world.rank == BROKEN:
            broken_block(patch, 2 * STEP)
        return ran(world, folder, "breaks", "debug=true")


def disk_full(world: World, folder: Path) -> Any:
    """The one that has something to dump cannot."""
    with pytest.MonkeyPatch.context() as patch:
        if world.rank == BROKEN:
            broken_block(patch, 0)
            patch.setattr("torch.save", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
        return ran(world, folder, "full", "debug=true")


def numbers_of_both(world: World, folder: Path) -> Any:
    """What is told of an update has the largest numbers of both."""
    from tests.pipelines.training.test_debug import make_batch, make_task, update

    told: list[dict[str, Any]] = []
    for size in (World(), world):
        watch, task = DebugWatch(folder, write=lambda kind, **given: told.append(given), world=size), make_task()
        watch.attach(task)
        update(task, watch, 0, [make_batch(world.rank)])
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("debug")
    write_recipes(folder)
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, list[Any]]:
    return run_gang(__name__, {2: ("healthy", "breaks", "disk_full", "numbers_of_both")}, folder)


def test_the_process_that_broke_and_its_module_are_named_by_both(answers: dict[str, list[Any]], folder: Path) -> None:
    first, second = answers["breaks"]
    assert isinstance(first, str) and first == second and "\n" not in first
    said = "the first value that is not finite came from HSTULayer 'blocks.0' (output; its inputs were finite)"
    assert f"step-{STEP}.pt: {said} at step {STEP} on rank {BROKEN} of 2." in first
    path = folder / "runs" / "breaks" / "debug" / f"step-{STEP}.pt"
    assert {file.name for file in path.parent.iterdir()} == {path.name, path.with_suffix(".json").name}
    dump, summary = load_dump(path), json.loads(path.with_suffix(".json").read_text())
    assert dump["rank"] == summary["rank"] == BROKEN and dump["processes"] == 2
    assert summary["origin"]["module"] == "blocks.0" and dump["batches"][0].num_rows == 8, "its own half of 16 rows"
    events = [json.loads(line) for line in (folder / "runs" / "breaks" / "events.jsonl").read_text().splitlines()]
    assert events[-1]["kind"] == "failure" and f"rank {BROKEN} of 2" in events[-1]["message"]


def test_both_end_where_the_step_cannot_be_dumped(answers: dict[str, list[Any]]) -> None:
    first, second = answers["disk_full"]
    assert first == second and f"at step 0 on rank {BROKEN} of 2" in first and "could not be dumped" in first


def test_a_run_that_is_watched_by_both_is_the_run_that_is_not(answers: dict[str, list[Any]], folder: Path) -> None:
    for watched, plain in answers["healthy"]:
        assert isinstance(watched, dict), watched
        assert watched["losses"] == plain["losses"] and watched["test"] == plain["test"]
    events = [json.loads(line) for line in (folder / "runs" / "watched" / "events.jsonl").read_text().splitlines()]
    (told,) = [event for event in events if event["kind"] == "debug"]
    assert told["grad_norm/blocks.1"] > 0 and told["max_abs/blocks.0"] > 0


def test_what_is_told_is_the_largest_of_both(answers: dict[str, list[Any]]) -> None:
    (alone, both), (other, again) = answers["numbers_of_both"]
    assert both == again and set(both) == set(alone)
    different = [key for key in alone if alone[key] != other[key]]
    assert different and all(both[key] == max(alone[key], other[key]) for key in alone)
