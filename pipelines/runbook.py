"""The runbook: preflight, fetch, prepare, train, evaluate, gate, report, in this order and resumable at every point.

Several processes (see training/distributed.py) go through it together. The first one holds the run's folder and writes.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines import run_stages, stages
from pipelines.config import RunConfig, to_yaml
from pipelines.engines.recbole_unused import used_values
from pipelines.errors import ConfigError, RecPodError, RunError
from pipelines.evaluation.report import results_table, write_report
from pipelines.gates import missing_predecessor
from pipelines.machine import describe_machine, package_versions
from pipelines.run_folder import RunFolder, code_digest, commit, write_json, write_text
from pipelines.speed_config import check_here
from pipelines.spread_config import check_world
from pipelines.training.checkpoint import adopt_checkpoint, load_checkpoint, sweep_checkpoints
from pipelines.training.debug import DebugWatch
from pipelines.training.distributed import World, this_world
from pipelines.training.events import EventLog
from pipelines.training.progress import open_progress
from pipelines.training.run_log import RunLog, SilentLog
from pipelines.training.signals import Interrupted, StopSignal
from pipelines.training.state import check_identity
from pipelines.training.tracking import Status, open_trackers, without_secrets
from pipelines.training_stage import Session, newest_checkpoint

GATE_MISSED = 3
LAUNCH = ".launch"  # in the run's folder: which launch.sh works in it


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
    world = this_world()
    world.on_first(lambda: check_predecessor(config, choices.force, console))
    if choices.preflight:
        world.in_turn(lambda: check_machine(config, console) if world.local_rank == 0 else None)
    with session(config, choices, console) as (prepared, here):
        task, state = run_stages.train(config, prepared, here)
        console.print(f"training ended: {state.finished}")
        metrics = run_stages.evaluate_run(config, prepared, task, state, here.folder)
        here.log.summary({f"test/{key}": value for key, value in metrics["test"].items()})
    return world.on_first(lambda: finish(config, here.folder, metrics, console))


def train_only(config: RunConfig, choices: RunChoices, console: Console) -> None:
    """The train stage alone (with what it needs from the stages before)."""
    with session(config, choices, console) as (prepared, here):
        run_stages.train(config, prepared, here)


def evaluate_only(config: RunConfig, console: Console) -> int:
    """Evaluation, gate and report of a run that has been trained; the exit code is the gate's."""
    folder, world = RunFolder(config.folder), this_world()
    with contextlib.ExitStack() as held:
        world.on_first(lambda: held.enter_context(folder.lock()))
        world.on_first(lambda: sweep_checkpoints(folder.checkpoints))
        prepared = prepare_everywhere(config, world)
        task, state = run_stages.best_task(config, prepared, folder)
        metrics = run_stages.evaluate_run(config, prepared, task, state, folder)
    return world.on_first(lambda: finish(config, folder, metrics, console))


@contextlib.contextmanager
def session(config: RunConfig, choices: RunChoices, console: Console) -> Iterator[tuple[stages.Prepared, Session]]:
    """Take the run's folder, bring its data, open its logs; whatever happens they are closed and say how it ended."""
    folder, world = RunFolder(config.folder), this_world()
    check_world(config, world)
    with StopSignal(alone=world.size == 1) as stop, contextlib.ExitStack() as held:
        world.agree(lambda: check_here(config, stages.device_of(config).type, world.size))  # one node may lack a tool
        resume = world.on_first(lambda: resume_choice(choices.resume, folder))
        if resume == "never":
            world.on_first(lambda: set_aside(folder, console))
        world.on_first(lambda: held.enter_context(folder.lock()))
        world.on_first(lambda: sweep_checkpoints(folder.checkpoints))
        prepared = prepare_everywhere(config, world)
        path = world.on_first(lambda: checkpoint_to_resume(config, prepared, folder, resume, console))
        world.on_first(lambda: remember_launch(folder))
        describe(config, prepared, console)
        provenance = world.on_first(lambda: record(config, folder))
        log: list[RunLog] = []
        world.on_first(lambda: log.append(held.enter_context(logged(config, folder, console, path))))
        events = log[0] if log else SilentLog()
        watch = DebugWatch(folder.path / "debug", write=events.write, world=world) if config.debug else None
        yield prepared, Session(folder, events, stop, path, watch, provenance)


def prepare_everywhere(config: RunConfig, world: World) -> stages.Prepared:
    """The data of a run, on every node's disk.

    Raises:
        RunError: nodes have different data.
    """
    prepared = world.in_turn(lambda: run_stages.prepare(config))
    if len(set(world.gather(stages.run_identity(config, prepared)))) > 1:
        fix = "give all nodes the same recipe, files and code"
        raise RunError("the nodes have different data or another configuration", where=config.name, fix=fix)
    return prepared


def resume_choice(asked: str, folder: RunFolder) -> str:
    """How to resume: as asked, but ``auto`` for a worker that torchrun has started again.

    What was asked for has been done by its first start: a second ``never`` would set its own work aside.
    """
    launch, marker = os.environ.get("RECPOD_LAUNCH"), folder.path / LAUNCH
    return "auto" if launch and marker.is_file() and marker.read_text(encoding="utf-8") == launch else asked


def remember_launch(folder: RunFolder) -> None:
    """Leave the mark that :func:`resume_choice` looks for."""
    if launch := os.environ.get("RECPOD_LAUNCH"):
        write_text(folder.path / LAUNCH, launch)


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
        wandb=config.tracking.wandb != "off",
        engine=config.engine.name,
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
    path = Path(resume) if given else newest_checkpoint(folder)
    if given and path is not None and not (path / "state.pt").exists():
        path = newest_checkpoint(RunFolder(path))
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
    write_text(folder.config, to_yaml(without_secrets(used_values(config.resolved()))))
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
        config.tracking,
        run_name=folder.path.name,
        config=used_values(config.resolved()),
        folder=folder.path,
        resume_ids=ids,
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
