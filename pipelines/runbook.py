"""The runbook: preflight, fetch, prepare, train, evaluate, gate, report, in this order and resumable at every point."""

from __future__ import annotations

import contextlib
import datetime
import shutil
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
from pipelines.run_folder import RunFolder, code_digest, commit, write_json, write_text
from pipelines.training.checkpoint import adopt_checkpoint, load_checkpoint, sweep_checkpoints
from pipelines.training.debug import DebugWatch
from pipelines.training.events import EventLog
from pipelines.training.progress import open_progress
from pipelines.training.run_log import RunLog
from pipelines.training.signals import Interrupted, StopSignal
from pipelines.training.tracking import Status, open_trackers, without_secrets
from pipelines.training.trainer import TrainState, check_identity

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
    provenance: dict[str, str]

    def train(self) -> tuple[Retrieval, TrainState]:
        """Train or go on; the task has the weights of the best validation."""
        watch = DebugWatch(self.folder.path / "debug", write=self.log.write) if self.config.debug else None
        return stages.train(
            self.config,
            self.prepared,
            self.folder,
            self.log,
            self.stop,
            resume=self.resume,
            watch=watch,
            provenance=self.provenance,
        )


@contextlib.contextmanager
def session(config: RunConfig, choices: RunChoices, console: Console) -> Iterator[Session]:
    """Take the run's folder, bring its data, open its logs; whatever happens they are closed and say how it ended."""
    folder = RunFolder(config.folder)
    with StopSignal() as stop:
        if choices.resume == "never":
            set_aside(folder, console)
        with folder.lock():
            sweep_checkpoints(folder.checkpoints)
            prepared = stages.prepare(config)
            resume = checkpoint_to_resume(config, prepared, folder, choices.resume, console)
            describe(config, prepared, console)
            provenance = record(config, folder)
            with logged(config, folder, console, resume) as log:
                yield Session(config, folder, prepared, log, stop, resume, provenance)


def finish(config: RunConfig, folder: RunFolder, metrics: dict[str, Any], console: Console) -> int:
    """Report and gate; the exit code."""
    page = write_report(folder.path)
    console.print(results_table(folder.path))
    console.print(f"report: {page}")
    if config.gates:
        verdict = "[green]passed[/]" if metrics["gate"]["passed"] else "[red]missed[/]"
        console.print(f"gate: {verdict}")
    return GATE_MISSED if metrics["gate"]["passed"] is False else 0


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

    options = PreflightOptions(
        device=config.device,
        folder=config.runs,
        dataset=config.dataset.name,
        data_needed=True,
        spec=stages.dataset_spec(config),
        cache=config.dataset.cache,
    )
    require_preflight(options, console)


def set_aside(folder: RunFolder, console: Console) -> None:
    """Rename an existing run, for ``--resume never``; refused while another process works in it."""
    if folder.path.exists():
        with folder.lock():
            moved = folder.set_aside()
        if moved is not None:
            console.print(f"the earlier run was set aside: {moved}")


def checkpoint_to_resume(
    config: RunConfig, prepared: stages.Prepared, folder: RunFolder, resume: str, console: Console
) -> Path | None:
    """The checkpoint that the run goes on from, or None for a fresh start.

    It is checked before anything of the run is touched. One that lies elsewhere, or is not the newest, becomes the
    newest: what was newer is moved aside with its events.

    Raises:
        RunError: ``resume`` is a path without a checkpoint, or the checkpoint is of another configuration or data.
    """
    given = resume not in ("auto", "never")
    path = Path(resume) if given else stages.newest_checkpoint(folder)
    if given and path is not None and not (path / "state.pt").exists():
        path = stages.newest_checkpoint(RunFolder(path))
        if path is None:
            fix = "give a step-N folder, a run folder, auto or never"
            raise RunError("no checkpoint there", where=f"--resume {resume}", fix=fix)
    if path is None:
        return None
    saved = load_checkpoint(path)
    check_identity(saved, stages.run_identity(config, prepared), path)
    if given:
        path, aside = adopt_checkpoint(folder.checkpoints, path, saved["state"]["best_step"])
        if aside is not None:
            if folder.events.exists():
                shutil.copy2(folder.events, aside / folder.events.name)
            console.print(f"newer checkpoints were set aside: {aside}")
    return path


def describe(config: RunConfig, prepared: stages.Prepared, console: Console) -> None:
    """Say what is about to run."""
    store, device = prepared.store, stages.device_of(config)
    console.print(
        f"[bold]{config.name}[/]: {config.model['name']} on {config.dataset.name} "
        f"({store.num_users:,} users, {store.num_items:,} items, {store.num_events:,} events), "
        f"{prepared.protocol.name}, device {device}"
    )
    if store.num_out_of_order:
        moved, order = store.num_out_of_order, "sorted by time, ties in file order"
        console.print(f"{moved:,} events stood out of time order in the file; they are {order}")


def record(config: RunConfig, folder: RunFolder) -> dict[str, str]:
    """Write configuration and environment into the run's folder; returns code digest and commit of this start."""
    from models.kernels import chosen_paths

    provenance = {"code": code_digest(), "commit": commit()}
    write_text(folder.config, to_yaml(without_secrets(config.resolved())))
    environment = {
        "machine": describe_machine(),
        "versions": package_versions(),
        **provenance,
        "kernels": chosen_paths(stages.device_of(config).type),
        "loss_products": stages.loss_precision(config),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_json(folder.environment, environment)
    return provenance


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
