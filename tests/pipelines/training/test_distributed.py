"""Two real processes over gloo: one answer for both, the same losses as one alone, nobody left waiting."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.ss4rec import SS4Rec, SS4RecOptions
from pipelines.data.loader import LoaderOptions, cut_windows
from pipelines.data.splits import Queries, make_split
from pipelines.errors import ConfigError, MachineError, RecPodError
from pipelines.evaluation.beyond_accuracy import Exposure
from pipelines.evaluation.evaluator import evaluate
from pipelines.evaluation.protocols import get_protocol
from pipelines.training.checkpoint import checkpoint_path, checkpoint_steps, load_checkpoint
from pipelines.training.distributed import World, process_group, this_world
from pipelines.training.guards import GuardOptions
from pipelines.training.optimizers import OptimizerOptions
from pipelines.training.signals import Interrupted, StopSignal
from pipelines.training.trainer import Trainer, TrainingData, TrainingOptions
from tests.pipelines.conftest import memory_store
from tests.pipelines.training.test_trainer import ROOT, Events

CHILD = """
import json, sys
from pathlib import Path
from pipelines.training.distributed import process_group, this_world
from tests.pipelines.training import test_distributed as tests
world, folder = this_world(), Path(sys.argv[1])
with process_group(world):
    answers = {name: getattr(tests, name)(world, folder / name) for name in sys.argv[2:]}
(folder / f"{world.rank}.json").write_text(json.dumps(answers))
"""


def build(
    folder: Path, world: World | None = None, *, rows: int = 8, deal: str = "tokens", log: Any = None, **options: Any
) -> Trainer:
    """A training in float64, so that what differs between one process and two is not hidden in rounding."""
    store = memory_store([12] * 24)
    torch.manual_seed(0)
    task = SS4Rec(20, SS4RecOptions(hidden=8, s5_state=4, d_state=4, layers=1, dropout=options.pop("dropout", 0.0)))
    loader = LoaderOptions(max_length=6, windows="all", rows_per_batch=rows, deal=deal)
    data = TrainingData(store, cut_windows(store, make_split(store, "leave-one-out").train, 6, "all"), loader, seed=1)
    return Trainer(
        task.double(),
        data,
        options=TrainingOptions(**{"epochs": 1, "log_every": 1, **options}),
        optimizer=OptimizerOptions(lr=1e-2),
        guards=GuardOptions(stuck_epochs=0),
        checkpoints=folder,
        log=log or Events(),  # type: ignore[arg-type]
        validate=lambda: {"NDCG@10": 0.5},
        stop=StopSignal(alone=world is None),
        identity="tiny",
        world=world,
    )


def losses(run: Trainer) -> list[float]:
    return [event["loss"] for event in run.log.of("train")]  # type: ignore[attr-defined]


def trained(world: World | None, folder: Path, **options: Any) -> list[float]:
    run = build(folder, world, **options)
    with run.stop:
        run.run()
    return losses(run)


# --- what both processes do; each function's answer goes back to the test of the same name ---


def shared_batches(world: World, folder: Path) -> list[float]:
    return trained(world, folder)


def accumulated(world: World, folder: Path) -> list[float]:
    return trained(world, folder, accumulate=3, rows=3, grad_clip=0.1)


def dealt_by_attention(world: World, folder: Path) -> list[float]:
    return trained(world, folder, deal="attention")


def fewer_rows_than_processes(world: World, folder: Path) -> list[float]:
    return trained(world, folder, rows=1)[:20]


def going_on_from_one(world: World, folder: Path) -> list[Any]:
    run = build(folder, world, epochs=2)
    run.restore(folder.parent / "by-one" / "step-6")
    with run.stop:
        run.run()
    return [losses(run), run.log.of("processes")]  # type: ignore[attr-defined]


def going_on_from_two(world: World, folder: Path) -> list[Any]:
    """With dropout: the random state of both must come back."""
    whole = trained(world, folder / "whole", epochs=2, dropout=0.3)
    trained(world, folder / "parts", epochs=1, dropout=0.3)
    again = build(folder / "parts", world, epochs=2, dropout=0.3)
    again.restore(checkpoint_path(folder / "parts", 6))
    with again.stop:
        again.run()
    return [whole, losses(again), again.log.of("processes")]  # type: ignore[attr-defined]


def stopped_at_one(world: World, folder: Path) -> list[Any]:
    """SIGTERM reaches the second process only."""

    class Log(Events):
        def write(self, kind: str, **values: Any) -> None:
            super().write(kind, **values)
            if world.rank == 1 and kind == "train" and values["step"] == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    run = build(folder, world, log=Log(), epochs=10**6)
    with run.stop:
        try:
            run.run()
        except Interrupted:
            return [run.state.step, checkpoint_steps(folder)]
    return []


def shared_errors(world: World, folder: Path) -> dict[str, Any]:
    def fail(where: int) -> None:
        if world.rank == where:
            raise ConfigError(f"process {where} does not like it", where="a.yaml:3")

    def stop() -> None:
        raise Interrupted("stopped by SIGTERM")

    said = {}
    for name, act in (
        ("first", lambda: world.on_first(lambda: fail(0))),
        ("other", lambda: world.agree(lambda: fail(1))),
        ("stop", lambda: world.on_first(stop)),
    ):
        try:
            act()
        except (RecPodError, Interrupted) as error:
            said[name] = f"{error.exit_code} {error}"
    said["value"] = world.on_first(lambda: f"made by {world.rank}")
    return said


def taken_in_turn(world: World, folder: Path) -> str:
    def make_or_find() -> str:
        if (folder / "store").exists():
            return "found"
        (folder / "store").mkdir(parents=True)
        return "made"

    return world.in_turn(make_or_find)


def ranked(world: World | None, folder: Path) -> list[Any]:
    store = memory_store([12] * 25)
    queries = make_split(store, "leave-one-out").test
    task, protocol = build(folder).task, get_protocol("loo-full")
    exposure = Exposure(torch.arange(21), (3,))
    one = evaluate(
        task,
        store,
        queries,
        protocol=protocol,
        max_length=6,
        world=world,
        observe=exposure.observe,  # type: ignore[arg-type]
    )
    exposure.gather(world or World())
    single = Queries(queries.user[:1], queries.end[:1])
    few = evaluate(task, store, single, protocol=protocol, max_length=6, world=world)  # type: ignore[arg-type]
    return [one.ranks.tolist(), one.metrics["NDCG@10"], few.ranks.tolist(), exposure.shown.tolist()]


CHECKS = (
    shared_batches,
    accumulated,
    dealt_by_attention,
    fewer_rows_than_processes,
    going_on_from_one,
    going_on_from_two,
    stopped_at_one,
    shared_errors,
    taken_in_turn,
    ranked,
)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """All checks in one pair of processes: starting them is what takes time."""
    folder = tmp_path_factory.mktemp("pair")
    trained(None, folder / "by-one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = [check.__name__ for check in CHECKS]
    pair = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "test", "PYTHONPATH": str(ROOT)}
        variables |= {name: str(value) for name, value in place.items()}
        command = [sys.executable, "-c", CHILD, str(folder), *names]
        pair.append(subprocess.Popen(command, cwd=ROOT, env=variables))
    try:
        assert [child.wait(timeout=240) for child in pair] == [0, 0]
    finally:
        for child in pair:
            child.kill()
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


pytestmark = pytest.mark.timeout(300)
Answers = tuple[Path, list[dict[str, Any]]]


@pytest.mark.parametrize(
    ("check", "options"),
    [
        ("shared_batches", {}),
        ("accumulated", {"accumulate": 3, "rows": 3, "grad_clip": 0.1}),
        ("dealt_by_attention", {}),
        ("fewer_rows_than_processes", {"rows": 1}),
    ],
)
def test_two_processes_have_the_losses_of_one(
    answers: Answers, tmp_path: Path, check: str, options: dict[str, Any]
) -> None:
    _, (first, second) = answers
    alone = trained(None, tmp_path, **options)[:20]
    assert first[check] == second[check] and len(alone) >= 6
    assert np.allclose(first[check], alone, rtol=1e-6, atol=0)


def test_a_run_of_one_goes_on_with_two(answers: Answers, tmp_path: Path) -> None:
    folder, (first, second) = answers
    run = build(tmp_path, epochs=2)
    run.restore(folder / "by-one" / "step-6")
    run.run()
    assert first["going_on_from_one"][0] == second["going_on_from_one"][0]
    assert np.allclose(first["going_on_from_one"][0], losses(run), rtol=1e-6, atol=0)
    assert "1 before, 2 now" in first["going_on_from_one"][1][0]["message"]


def test_a_run_of_two_goes_on_bit_by_bit(answers: Answers) -> None:
    for whole, again, said in (answer["going_on_from_two"] for answer in answers[1]):
        assert whole[6:] == again and len(again) == 6 and said == []


def test_a_run_of_two_goes_on_with_one(answers: Answers, tmp_path: Path) -> None:
    folder, (first, _) = answers
    saved = folder / "shared_batches" / "step-6"
    assert len(load_checkpoint(saved)["rng"]) == 2
    run = build(tmp_path, epochs=2)
    run.restore(saved)
    run.run()
    assert np.allclose(first["going_on_from_one"][0], losses(run), rtol=1e-6, atol=0)
    assert "2 before, 1 now" in run.log.of("processes")[0]["message"]  # type: ignore[attr-defined]


def test_a_signal_to_one_stops_both_at_the_same_step(answers: Answers) -> None:
    step, steps = answers[1][0]["stopped_at_one"]
    assert answers[1][1]["stopped_at_one"][0] == step and steps == [step] and 3 < step < 6


def test_an_error_of_one_is_the_error_of_all(answers: Answers) -> None:
    first, second = (answer["shared_errors"] for answer in answers[1])
    assert (
        first
        == second
        == {
            "first": "2 a.yaml:3: process 0 does not like it",
            "other": "2 a.yaml:3: process 1 does not like it",
            "stop": "75 stopped by SIGTERM",
            "value": "made by 0",
        }
    )


def test_what_the_first_makes_the_others_find(answers: Answers) -> None:
    assert [answer["taken_in_turn"] for answer in answers[1]] == ["made", "found"]


def test_queries_are_shared_out_and_ranks_come_together(answers: Answers, tmp_path: Path) -> None:
    alone = ranked(None, tmp_path)
    assert [answer["ranked"] for answer in answers[1]] == [alone, alone]
    assert len(set(alone[0])) > 3 and sum(alone[3][0]) == 25 * 3


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("RANK", "3")  # clusters set such variables for purposes of their own
    assert this_world() == World()
    with process_group(this_world()):
        assert not torch.distributed.is_initialized()


def test_the_first_node_is_the_one_that_the_user_calls_first(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"RANK": 1, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "GROUP_WORLD_SIZE": 2}
    for name, value in {**place, "TORCHELASTIC_RUN_ID": "x", "RECPOD_NODE_RANK": "1"}.items():
        monkeypatch.setenv(name, str(value))
    assert this_world() == World(rank=3, size=4, local_rank=1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(MachineError, match="3 processes on 2 nodes, 2 of them here"):
        this_world()
