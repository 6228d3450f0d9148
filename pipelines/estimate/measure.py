"""Measure a recipe's speed on this machine: half a minute of real steps, a validation pass, a checkpoint, the start.

The steps are the trainer's own ``update`` on the loader's own batches, epoch after epoch; nothing of it is kept. The
weights move, so what is measured is training, not a loop over one batch.
"""

from __future__ import annotations

import datetime
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from models.batch import SequenceBatch
from models.losses.gradients import cpu_multiplies_bfloat16
from pipelines import ranking_stages, run_stages, stages
from pipelines.config import RunConfig
from pipelines.data.loader import Windows, cut_windows, training_batches
from pipelines.data.ranking_loader import ranking_gather, ranking_windows
from pipelines.data.splits import Queries
from pipelines.estimate.ranking_volume import protocol_of
from pipelines.estimate.throughput import Measurement
from pipelines.estimate.volume import from_store
from pipelines.estimate.work import formats_of
from pipelines.evaluation.evaluator import evaluate
from pipelines.evaluation.ranking_evaluator import evaluate_ranking
from pipelines.machine import describe_machine, package_versions
from pipelines.run_folder import commit
from pipelines.runbook import check_machine
from pipelines.speed_config import check_here
from pipelines.training.events import EventLog
from pipelines.training.signals import StopSignal
from pipelines.training.trainer import Trainer, TrainingData

ROUNDS = 5
MOST_QUERIES = 8192  # of a validation pass that are asked: the evaluator ranks so many together
SMALL_STEPS = 20


class _Events(EventLog):
    """The event file as the trainer's whole log; trackers are not measured."""

    tracker_ids: Mapping[str, str] = {}


def process_age() -> float:
    """Seconds since this process began: importing is part of a start. 0 where the kernel does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of the line, in ticks since boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


@dataclass(frozen=True)
class Clock:
    """What was timed: targets a second of each round, seconds of the other things, and where batches were made."""

    startup: float
    rounds: tuple[float, ...]
    small_step: float
    encode: float
    rank: float
    save: float
    resident: bool


def measure(config: RunConfig, seconds: float, age: Callable[[], float] = process_age) -> Measurement:
    """Measure ``config`` on the device that it would run on.

    Args:
        config: the recipe.
        seconds: of training steps, in :data:`ROUNDS` rounds.
        age: seconds since the process began.

    Raises:
        ConfigError: see :func:`pipelines.speed_config.check_here`.
        MachineError: likewise, or preflight has failed.
    """
    check_here(config, stages.device_of(config).type, processes=1)
    began = time.perf_counter()
    prepared = run_stages.prepare(config)  # made once, opened ever after: not part of a start
    not_counted = time.perf_counter() - began
    check_machine(config, Console(quiet=True))  # a run does it before anything else
    asked = _sample(prepared.split.valid)
    with tempfile.TemporaryDirectory(prefix="recpod-measure-") as folder:
        timed = _time(config, prepared, asked, Path(folder), seconds, lambda: age() - not_counted)
    volume, device = from_store(config, prepared.store), stages.device_of(config)
    formats, resolved = formats_of(config, device.type), config.resolved()
    tokens = _asked_windows(config, prepared, asked).lengths.sum()
    return Measurement(
        recipe=config.recipe or config.name,
        dataset=config.dataset.name,
        items=volume.items,
        model=resolved["model"],
        loader=resolved["loader"],
        accumulate=config.training.accumulate,
        narrow=formats.narrow,
        loss=formats.loss,
        shared_length=round(volume.shared_length, 2),
        targets_per_s=tuple(round(speed, 1) for speed in timed.rounds),
        targets_per_step=round(volume.targets / volume.batches, 1),
        step_overhead_s=round(timed.small_step, 6),
        query_tokens=round(float(tokens) / len(asked), 2),
        encode_queries_per_s=round(len(asked) / timed.encode, 1),
        rank_queries_per_s=round(len(asked) / timed.rank, 1) if timed.rank else 0.0,
        save_s=round(timed.save, 4),
        startup_s=round(timed.startup, 2),
        speeds=machine_speeds() if device.type == "cpu" else {},
        measured_on={
            "machine": describe_machine(),
            "versions": package_versions(),
            "commit": commit(),
            "load": round(os.getloadavg()[0], 2),  # of the last minute: more than the cores, and others were at work
            "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
        },
        ranking=None if volume.ranking is None else asdict(volume.ranking),
        compile=config.training.compile,
        cuda_graph=config.training.cuda_graph,
        resident=timed.resident,
    )


def _asked_windows(config: RunConfig, prepared: stages.Prepared, asked: Queries) -> Windows:
    """What the model sees of the queries' histories."""
    if config.ranks:
        return ranking_windows(prepared.store, asked, config.loader.max_length, protocol_of(config).asked)
    return cut_windows(prepared.store, asked, config.loader.max_length)


def _time(
    config: RunConfig, prepared: stages.Prepared, asked: Queries, folder: Path, seconds: float, age: Callable[[], float]
) -> Clock:
    """Start, train, validate, save."""
    device = stages.device_of(config)
    trainer = make_trainer(config, prepared, folder)
    batches = endless_batches(trainer)
    trainer.task.train()
    trainer.update([next(batches)])  # compiles and allocates
    _settle(device)
    startup = age()
    rounds = tuple(_round(trainer, batches, seconds / ROUNDS, device) for _ in range(ROUNDS))
    small_step = statistics.median(_small_step(trainer, batches, device) for _ in range(SMALL_STEPS))
    encode, rank = _asking(config, prepared, trainer, asked)
    begin = time.perf_counter()
    trainer.save()
    saved = time.perf_counter() - begin
    return Clock(startup, rounds, small_step, encode, rank, saved, trainer.resident is not None)


def _asking(config: RunConfig, prepared: stages.Prepared, trainer: Trainer, asked: Queries) -> tuple[float, float]:
    """Seconds in which the queries go through the model, and in which the catalogue is ranked for them."""
    options: dict[str, Any] = {"max_length": config.loader.max_length, "device": stages.device_of(config)}
    options["tokens_per_batch"] = config.loader.tokens_per_batch
    task: Any = trainer.task
    if config.ranks:
        found = evaluate_ranking(task, prepared.store, asked, asked=protocol_of(config).asked, **options)
        return found.seconds, 0.0
    answer = evaluate(
        task, prepared.store, asked, protocol=prepared.protocol, gather=prepared.residence.on(trainer.device), **options
    )
    return answer.encode_seconds, answer.rank_seconds


def make_trainer(config: RunConfig, prepared: stages.Prepared, folder: Path) -> Trainer:
    """The recipe's trainer, writing into ``folder``."""
    store, train, loader = prepared.store, prepared.split.train, config.loader
    if config.ranks:
        candidates = config.model_options().candidates
        windows = ranking_windows(store, train, loader.max_length, candidates, loader.windows)
        data = TrainingData(store, windows, loader, config.seed, ranking_gather(candidates))
    else:
        windows = cut_windows(store, train, loader.max_length, loader.windows)
        data = TrainingData(store, windows, loader, config.seed, residence=prepared.residence)
    return Trainer(
        (ranking_stages if config.ranks else stages).build_task(config, prepared),
        data,
        options=config.training,
        optimizer=config.optimizer,
        guards=config.guards,
        checkpoints=folder / "checkpoints",
        log=_Events(folder / "events.jsonl"),
        validate=dict,
        stop=StopSignal(),
        identity="measurement",
    )


def endless_batches(trainer: Trainer) -> Iterator[SequenceBatch]:
    """The recipe's batches, epoch after epoch, made where the trainer makes them."""
    data, epoch = trainer.data, 0
    while True:
        options: dict[str, Any] = {"seed": data.seed, "epoch": epoch, "gather": trainer.resident or data.gather}
        yield from training_batches(data.store, data.windows, data.loader, **options)
        epoch += 1


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _round(trainer: Trainer, batches: Iterator[SequenceBatch], seconds: float, device: torch.device) -> float:
    """Targets a second over at least ``seconds`` of updates."""
    before, begin = trainer.state.targets, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        trainer.update([next(batches) for _ in range(trainer.options.accumulate)])
    _settle(device)
    return (trainer.state.targets - before) / (time.perf_counter() - begin)


def _small_step(trainer: Trainer, batches: Iterator[SequenceBatch], device: torch.device) -> float:
    """Seconds that an update costs the host, whatever it holds: of one on a batch of one token.

    A captured step is as large as ever: of an update with it, until the host may go on.
    """
    data = trainer.data
    if trainer.graphed is not None:
        batch = next(batches)
        _settle(device)
        begin = time.perf_counter()
        trainer.update([batch])
        launched = time.perf_counter() - begin
        _settle(device)
        return launched
    first = data.windows.take(np.array([0]))
    batch = (trainer.resident or data.gather)(data.store, Windows(first.user, first.start, first.start + 1))
    begin = time.perf_counter()
    trainer.update([batch])
    _settle(device)
    return time.perf_counter() - begin


def _sample(queries: Queries) -> Queries:
    """At most :data:`MOST_QUERIES` of them, evenly spread."""
    if len(queries) <= MOST_QUERIES:
        return queries
    chosen = np.linspace(0, len(queries) - 1, MOST_QUERIES).astype(np.int64)
    return Queries(queries.user[chosen], queries.end[chosen])


def machine_speeds(size: int = 1024, runs: int = 5) -> dict[str, float]:
    """What this CPU shows elsewhere: FLOP/s of square products, float32 and the loss' format, bytes/s of a copy."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    narrow_a, narrow_b = a.bfloat16(), b.bfloat16()
    source = torch.rand(1 << 24)
    target = torch.empty_like(source)
    flop = 2.0 * size**3
    float32 = _best_rate(lambda: a @ b, flop, runs)
    fast = cpu_multiplies_bfloat16()
    return {
        "float32_flop_per_s": float32,
        "loss_flop_per_s": _best_rate(lambda: narrow_a @ narrow_b, flop, runs) if fast else float32,
        "bytes_per_s": _best_rate(lambda: target.copy_(source), 2.0 * source.nbytes, runs),
    }


def _best_rate(call: Callable[[], object], work: float, runs: int) -> float:
    call()
    fastest = float("inf")
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - begin)
    return float(f"{work / fastest:.4g}")
