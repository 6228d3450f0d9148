"""The loop: resumes bit by bit after SIGKILL, stops on SIGTERM, divides by counts, keeps the best."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.batch import SequenceBatch
from models.ss4rec import SS4Rec, SS4RecOptions
from models.tasks import LossOutput
from pipelines.data.loader import LoaderOptions, cut_windows
from pipelines.data.splits import make_split
from pipelines.errors import ConfigError, RunError
from pipelines.training.checkpoint import checkpoint_path, checkpoint_steps, load_checkpoint
from pipelines.training.guards import GuardOptions, Rent
from pipelines.training.optimizers import OptimizerOptions
from pipelines.training.signals import Interrupted, StopSignal
from pipelines.training.state import load_best
from pipelines.training.trainer import Trainer, TrainingData, TrainingOptions
from tests.pipelines.conftest import memory_store

ROOT = Path(__file__).resolve().parents[3]


class Events:
    """A log that remembers."""

    def __init__(self) -> None:
        self.tracker_ids: dict[str, str] = {"mlflow": "abc"}
        self.seen: list[dict[str, Any]] = []

    def write(self, kind: str, **values: Any) -> None:
        self.seen.append({"kind": kind, **values})

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.seen if event["kind"] == kind]


def trainer(folder: Path, task: nn.Module | None = None, validate: Any = None, **options: Any) -> Trainer:
    store = memory_store([12] * 24)
    if task is None:
        torch.manual_seed(0)
        task = SS4Rec(20, SS4RecOptions(hidden=8, s5_state=4, d_state=4, layers=1))
    loader = LoaderOptions(max_length=6, windows="all", rows_per_batch=8)
    data = TrainingData(store, cut_windows(store, make_split(store, "leave-one-out").train, 6, "all"), loader, seed=1)
    return Trainer(
        task,
        data,
        options=TrainingOptions(**{"epochs": 3, "log_every": 1, "checkpoint_minutes": 0.0, **options}),
        optimizer=OptimizerOptions(lr=1e-2),
        guards=options.pop("guards", GuardOptions(stuck_epochs=0)),
        checkpoints=folder,
        log=Events(),  # type: ignore[arg-type]
        validate=validate or (lambda: {"NDCG@10": 0.5}),
        stop=StopSignal(),
        identity="tiny",
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = load_checkpoint(checkpoint_path(folder, checkpoint_steps(folder)[-1]))["model"]
    return model


CHILD = """
import sys, time
from pathlib import Path
from tests.pipelines.training.test_trainer import trainer
from pipelines.training.checkpoint import checkpoint_path, checkpoint_steps
folder, waits_in = Path(sys.argv[1]), int(sys.argv[2])
def validate():
    while run.state.epoch == waits_in:
        time.sleep(0.1)
    return {"NDCG@10": 0.5}
run = trainer(folder, epochs=15, patience=0, validate=validate)
steps = checkpoint_steps(folder)
if steps:
    run.restore(checkpoint_path(folder, steps[-1]))
with run.stop:
    print("ready", flush=True)
    run.run()
"""


def child(folder: Path, waits_in: int = 0) -> subprocess.Popen[str]:
    """Training in a process of its own; it stands still in the validation of the epoch ``waits_in``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(waits_in)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 150
    while not [s for s in checkpoint_steps(folder) if s >= step]:
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)


@pytest.mark.timeout(300)
def test_killed_and_resumed_is_bit_identical_to_uninterrupted(tmp_path: Path) -> None:
    whole = child(tmp_path / "whole")
    killed = child(tmp_path / "killed", waits_in=8)  # else a fast machine is through before the kill
    wait_for_step(tmp_path / "killed", 20)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    at_death = checkpoint_steps(tmp_path / "killed")[-1]
    assert child(tmp_path / "killed").wait() == 0 and whole.wait() == 0
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert at_death < checkpoint_steps(tmp_path / "killed")[-1] == checkpoint_steps(tmp_path / "whole")[-1]
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_sigterm_saves_and_raises(tmp_path: Path) -> None:
    run = trainer(tmp_path, epochs=10**6, patience=0)

    def stop_at_second_epoch() -> dict[str, float]:
        if run.state.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"NDCG@10": 0.5}

    run.validate = stop_at_second_epoch
    with run.stop, pytest.raises(Interrupted):
        run.run()
    assert checkpoint_steps(tmp_path)[-1] == run.state.step > 0


def test_an_interrupted_validation_is_done_again_after_the_resume(tmp_path: Path) -> None:
    def interrupted() -> dict[str, float]:
        raise Interrupted

    first = trainer(tmp_path, validate=interrupted)
    with pytest.raises(Interrupted):
        first.run()
    second = trainer(tmp_path, epochs=1)
    second.restore(checkpoint_path(tmp_path, checkpoint_steps(tmp_path)[-1]))
    assert second.state.to_validate and second.state.epoch == 1
    second.run()
    assert [event["epoch"] for event in second.log.of("valid")] == [1]  # type: ignore[attr-defined]


def test_patience_stops_and_the_best_weights_come_back(tmp_path: Path) -> None:
    values = iter([0.1, 0.3, 0.2, 0.2, 0.2])
    best: dict[str, torch.Tensor] = {}

    def validate() -> dict[str, float]:
        value = next(values)
        if value == 0.3:
            best.update({name: tensor.clone() for name, tensor in run.task.state_dict().items()})
        return {"NDCG@10": value}

    run = trainer(tmp_path, validate=validate, epochs=9, patience=2)
    state = run.run()
    assert (state.epoch, state.best_value, state.finished) == (4, 0.3, "no better NDCG@10 in 2 validations")
    load_best(run.task, tmp_path, state)
    assert all(torch.equal(best[name], tensor) for name, tensor in run.task.state_dict().items())


class Counted(nn.Module):
    """One weight; the loss of a target is the weight times the target."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def loss(self, batch: SequenceBatch) -> LossOutput:
        return LossOutput(self.weight * batch.targets.sum(), batch.num_tokens)


def test_accumulated_gradients_are_divided_by_the_count_over_all_batches(tmp_path: Path) -> None:
    run = trainer(tmp_path, Counted(), accumulate=3)
    from pipelines.data.loader import training_batches

    data = run.data
    batches = list(training_batches(data.store, data.windows, data.loader, seed=1, epoch=0))[:3]
    _, norm = run.update(batches)
    targets = torch.cat([batch.targets for batch in batches]).double()
    assert norm.item() == pytest.approx(float(targets.mean()), rel=1e-6)


def test_gradients_are_clipped_after_the_division(tmp_path: Path) -> None:
    run = trainer(tmp_path, Counted(), grad_clip=0.5)
    from pipelines.data.loader import training_batches

    run.optimizer = torch.optim.SGD(run.parameters, lr=1.0)
    object.__setattr__(run.optimizer_options, "lr", 1.0)
    run.update(list(training_batches(run.data.store, run.data.windows, run.data.loader, seed=1, epoch=0))[:1])
    assert run.task.weight.item() == pytest.approx(0.5)  # 1 - lr x clipped norm


def test_a_nan_stops_before_it_is_saved(tmp_path: Path) -> None:
    class Broken(Counted):
        def loss(self, batch: SequenceBatch) -> LossOutput:
            return LossOutput(self.weight * float("nan"), 1)

    with pytest.raises(RunError, match="loss is nan at step 1"):
        trainer(tmp_path, Broken()).run()
    assert checkpoint_steps(tmp_path) == []


def test_broken_weights_do_not_push_out_good_checkpoints(tmp_path: Path) -> None:
    run = trainer(tmp_path, epochs=9, keep=1, log_every=10**6)

    update = run.update

    def breaking(group: Any) -> Any:
        result = update(group)
        if run.state.step == 3:
            with torch.no_grad():
                run.parameters[0].fill_(float("nan"))
        return result

    run.update = breaking  # type: ignore[method-assign]
    with pytest.raises(RunError, match="largest weight is nan at step 3"):
        run.run()
    assert checkpoint_steps(tmp_path) == [2]
    assert all(bool(tensor.isfinite().all()) for tensor in weights(tmp_path).values())


def test_an_explosion_is_counted_across_epochs(tmp_path: Path) -> None:
    run = trainer(tmp_path, epochs=30, log_every=6)  # one logged step an epoch
    run.guards.options = GuardOptions(max_grad_norm=1e-9, stuck_epochs=0)  # type: ignore[misc]
    with pytest.raises(RunError, match="for 3 logged steps"):
        run.run()


def test_a_budget_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path, epochs=10**6)
    run.guards.options = GuardOptions(max_hours=1e-12)  # type: ignore[misc]
    assert run.run().finished == "max_hours 1e-12 reached"
    assert checkpoint_steps(tmp_path) == [run.state.step]
    with pytest.raises(RunError, match="before its first validation"):
        load_best(run.task, tmp_path, run.state)


def test_a_budget_counts_what_was_paid_before_training_and_over_resumes(tmp_path: Path) -> None:
    run = trainer(tmp_path, epochs=1)
    run.run()
    assert run.state.paid == pytest.approx(run.state.seconds)
    again = trainer(tmp_path, epochs=10**6)
    again.rent = Rent(here=3600.0)
    again.restore(checkpoint_path(tmp_path, run.state.step))
    again.guards.options = GuardOptions(max_cost=2.0, price_per_hour=2.0, stuck_epochs=0)  # type: ignore[misc]
    assert again.run().finished == "max_cost 2 reached"
    assert again.state.paid >= 3600 + run.state.paid and again.state.seconds < 600  # those of training stay apart
    assert again.log.of("checkpoint")  # type: ignore[attr-defined]
    assert load_checkpoint(checkpoint_path(tmp_path, again.state.step))["state"]["paid"] >= 3600


def test_more_epochs_reopen_a_finished_run(tmp_path: Path) -> None:
    trainer(tmp_path, epochs=1).run()
    run = trainer(tmp_path, epochs=2)
    run.restore(checkpoint_path(tmp_path, checkpoint_steps(tmp_path)[-1]))
    assert run.state.finished == ""
    assert run.run().epoch == 2


def test_another_configurations_checkpoint_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, epochs=1).run()
    run = trainer(tmp_path)
    run.identity = "other"
    with pytest.raises(RunError, match="another configuration"):
        run.restore(checkpoint_path(tmp_path, checkpoint_steps(tmp_path)[-1]))


def test_selecting_by_a_metric_that_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'NDCG@11' is not measured; there are NDCG@10"):
        trainer(tmp_path, select="NDCG@11").run()
