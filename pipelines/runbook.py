"""The runbook: preflight, fetch, prepare, train, evaluate, gate, report, in this order and resumable at every point."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from models.tasks import Retrieval
from pipelines import stages
from pipelines.config import RunConfig, to_yaml
from pipelines.errors import ConfigError, RecPodError, RunError
from pipelines.evaluation.report import results_table, write_report
from pipelines.gates import missing_predecessor
from pipelines.machine import describe_machine, package_versions
from pipelines.run_folder import RunFolder, commit, write_json, write_text
from pipelines.training.checkpoint import load_checkpoint
from pipelines.training.debug import DebugWatch
from pipelines.training.events import EventLog
from pipelines.training.progress import open_progress
from pipelines.training.run_log import RunLog
from pipelines.training.signals import Interrupted, StopSignal
from pipelines.training.tracking import Status, open_trackers, without_secrets
from pipelines.training.trainer import TrainState

GATE_MISSED = 3


@dataclass(frozen=True)
class RunChoices:
    """How to run a recipe, beside what the recipe says.

    Attributes:
        resume: ``auto`` goes on where the run's folder stands, ``never`` sets an existing folder aside, else the
            path of a checkpoint.
        force: run although the recipe's predecessor has not passed.
        preflight: check the machine first.
    """

    resume: str = "auto"
    force: bool = False
    preflight: bool = True


def run(config: RunConfig, choices: RunChoices, console: Console) -> int:
    """Take a recipe from nothing to a gated result.

    Returns:
        0, or 3 when the gate is missed.

    Raises:
        RecPodError: what the user can mend.
        Interrupted: SIGTERM or SIGINT; everything is saved.
    """
    check_predecessor(config, choices.force, console)
    if choices.preflight:
        check_machine(config, console)
    with session(config, choices, console) as here:
        task, state = here.train()
        metrics = stages.evaluate_run(config, here.prepared, task, state, here.folder)
        here.log.tracker.summary({f"test/{key}": value for key, value in metrics["test"].items()})
    return finish(config, here.folder, metrics, console)


def train_only(config: RunConfig, choices: RunChoices, console: Console) -> None:
    """The train stage alone (with what it needs from the stages before)."""
    with session(config, choices, console) as here:
        here.train()


def evaluate_only(config: RunConfig, console: Console) -> int:
    """Evaluation, gate and report of a run that has been trained; the exit code is the gate's."""
    folder = RunFolder(config.folder)
    with folder.lock():
        prepared = stages.prepare(config)
        task, state = stages.best_task(config, prepared, folder)
        metrics = stages.evaluate_run(config, prepared, task, state, folder)
    return finish(config, folder, metrics, console)


@dataclass(frozen=True)
class Session:
    """A run that holds its folder: data, log and signals, ready to train."""

    config: RunConfig
    folder: RunFolder
    prepared: stages.Prepared
    log: RunLog
    stop: StopSignal
    resume: Path | None

    def train(self) -> tuple[Retrieval, TrainState]:
        """Train or go on; the task has the weights of the best validation."""
        watch = DebugWatch(self.folder.path / "debug", write=self.log.write) if self.config.debug else None
        return stages.train(
            self.config, self.prepared, self.folder, self.log, self.stop, resume=self.resume, watch=watch
        )


@contextlib.contextmanager
def session(config: RunConfig, choices: RunChoices, console: Console) -> Iterator[Session]:
    """Take the run's folder, bring its data, open its logs; whatever happens they are closed and say how it ended."""
    folder = RunFolder(config.folder)
    with StopSignal() as stop:
        if choices.resume == "never":
            set_aside(folder, console)
        with folder.lock():
            resume = checkpoint_to_resume(folder, choices.resume)
            prepared = stages.prepare(config)
            describe(config, prepared, console)
            record(config, folder)
            with logged(config, folder, console, resume) as log:
                yield Session(config, folder, prepared, log, stop, resume)


def finish(config: RunConfig, folder: RunFolder, metrics: dict[str, Any], console: Console) -> int:
    """Report and gate; the exit code."""
    page = write_report(folder.path)
    console.print(results_table(folder.path))
    console.print(f"report: {page}")
    if config.gates:
        verdict = "[green]passed[/]" if metrics["gate"]["passed"] else "[red]missed[/]"
        console.print(f"gate: {verdict}")
    return 0 if metrics["gate"]["passed"] else GATE_MISSED


def check_predecessor(config: RunConfig, force: bool, console: Console) -> None:
    """Warn, or refuse, when the recipe that should come first has not passed.

    Raises:
        ConfigError: refused; ``--force`` overrides.
    """
    reason = missing_predecessor(config)
    if reason is None:
        return
    if config.require_after and not force:
        fix = f"run `./runpod_entrypoint.sh --test-{config.after}` first, or add --force"
        raise ConfigError(f"'{config.name}' comes after '{config.after}': {reason}", where="after", fix=fix)
    console.print(f"[yellow]warning[/]: '{config.name}' comes after '{config.after}': {reason}")


def check_machine(config: RunConfig, console: Console) -> None:
    """Preflight before anything costs time.

    Raises:
        MachineError: a check has failed.
    """
    from pipelines.preflight import PreflightOptions, require_preflight

    require_preflight(PreflightOptions(config.device, config.runs, config.dataset.name, data_needed=True), console)


def set_aside(folder: RunFolder, console: Console) -> None:
    """Rename an existing run, for ``--resume never``; refused while another process works in it."""
    if folder.path.exists():
        with folder.lock():
            moved = folder.set_aside()
        if moved is not None:
            console.print(f"the earlier run was set aside: {moved}")


def checkpoint_to_resume(folder: RunFolder, resume: str) -> Path | None:
    """The checkpoint that the run goes on from, or None for a fresh start.

    Raises:
        RunError: ``resume`` is a path without a checkpoint.
    """
    if resume in ("auto", "never"):
        return stages.newest_checkpoint(folder)
    path = Path(resume)
    if (path / "state.pt").exists():
        return path
    newest = stages.newest_checkpoint(RunFolder(path))
    if newest is None:
        raise RunError(
            "no checkpoint there", where=f"--resume {resume}", fix="give a step-N folder, a run folder, auto or never"
        )
    return newest


def describe(config: RunConfig, prepared: stages.Prepared, console: Console) -> None:
    """Say what is about to run."""
    store, device = prepared.store, stages.device_of(config)
    console.print(
        f"[bold]{config.name}[/]: {config.model['name']} on {config.dataset.name} "
        f"({store.num_users:,} users, {store.num_items:,} items, {store.num_events:,} events), "
        f"{prepared.protocol.name}, device {device}"
    )


def record(config: RunConfig, folder: RunFolder) -> None:
    """Write the resolved configuration and the environment into the run's folder."""
    from models.kernels import chosen_paths

    write_text(folder.config, to_yaml(without_secrets(config.resolved())))
    environment = {
        "machine": describe_machine(),
        "versions": package_versions(),
        "commit": commit(),
        "kernels": chosen_paths(stages.device_of(config).type),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_json(folder.environment, environment)


@contextlib.contextmanager
def logged(config: RunConfig, folder: RunFolder, console: Console, resume: Path | None) -> Iterator[RunLog]:
    """Event file, trackers and progress, cut back to the checkpoint that is resumed and closed with the run's fate."""
    events, ids, step = EventLog(folder.events), {}, -1
    if resume is not None:
        saved = load_checkpoint(resume)
        ids, step = saved["tracker_ids"], saved["state"]["step"]
        console.print(f"resuming from {resume}")
    events.cut_back(step)  # what was logged after the checkpoint will be logged again
    tracker = open_trackers(
        config.tracking, run_name=config.name, config=config.resolved(), folder=folder.path, resume_ids=ids
    )
    progress = open_progress(console, price_per_hour=config.guards.price_per_hour)
    status: Status = "failed"
    try:
        yield RunLog(events, tracker, progress)
        status = "finished"
    except Interrupted:
        status = "interrupted"
        raise
    except RecPodError as error:
        events.write("failure", step=-1, epoch=-1, message=str(error))
        raise
    finally:
        progress.close()
        tracker.finish(status)
        events.close()
