"""What the GPU benchmarks share: device, data, a trainer of a fresh model, and the measurement of its speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.plain_trainer import plain_trainer
from models.batch import SequenceBatch
from models.ss4rec import SS4Rec, SS4RecOptions
from models.tasks import Retrieval
from pipelines.data.loader import LoaderOptions, cut_windows, training_batches
from pipelines.data.splits import Split, make_split
from pipelines.data.store import SequenceStore
from pipelines.evaluation.evaluator import Evaluation, evaluate
from pipelines.evaluation.protocols import get_protocol
from pipelines.training.trainer import Trainer, TrainingData, TrainingOptions

SEED = 1
LOADER = LoaderOptions(max_length=200, windows="all", rows_per_batch=128)  # as configs/runs/ml1m.yaml


class Bench:
    """Device, data and model sizes of this call.

    Args:
        device: ``cuda`` or ``cpu``.
        store: the sequences.
        options: of the model.
        work: folder for events and checkpoints.
        loader: how histories are batched.
    """

    def __init__(
        self, device: str, store: SequenceStore, options: SS4RecOptions, work: Path, loader: LoaderOptions = LOADER
    ) -> None:
        self.device, self.store, self.options, self.work = torch.device(device), store, options, work
        self.loader = loader
        self.split: Split = make_split(store, "leave-one-out")

    def data(self, loader: LoaderOptions) -> TrainingData:
        """Training data cut and batched as ``loader`` says."""
        windows = cut_windows(self.store, self.split.train, loader.max_length, loader.windows)
        return TrainingData(self.store, windows, loader, SEED)

    def task(self) -> Retrieval:
        """A fresh model with the same weights each time."""
        torch.manual_seed(SEED)
        return SS4Rec(self.store.num_items, self.options).to(self.device)

    def trainer(self, name: str, loader: LoaderOptions, **options: Any) -> Trainer:
        """A trainer of a fresh model."""
        return plain_trainer(self.task(), self.data(loader), self.work / name, **options)

    def ask(self, task: Retrieval, part: str, protocol: str) -> Evaluation:
        """Evaluate on the ``valid`` or ``test`` queries."""
        queries = getattr(self.split, part)
        return evaluate(
            task,
            self.store,
            queries,
            protocol=get_protocol(protocol),
            max_length=self.loader.max_length,
            device=self.device,
            tokens_per_batch=self.loader.tokens_per_batch * (8 if self.device.type == "cuda" else 1),
        )


def synchronise(device: torch.device) -> float:
    """The time when the device has done all it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def batches_of(trainer: Trainer, epoch: int) -> Iterator[SequenceBatch]:
    """The batches of an epoch, made where ``loader.resident`` says."""
    data, gather = trainer.data, trainer.resident or trainer.data.gather
    return training_batches(data.store, data.windows, data.loader, seed=data.seed, epoch=epoch, gather=gather)


def endless(trainer: Trainer) -> Iterator[SequenceBatch]:
    """Batches, epoch after epoch."""
    epoch = 0
    while True:
        yield from batches_of(trainer, epoch)
        epoch += 1


def measure_speed(bench: Bench, name: str, rows: int, precision: str, seconds: float) -> dict[str, Any]:
    """Targets per second of one way to train, in steps of ten until ``seconds`` are over; peak memory of the device."""
    loader = replace(bench.loader, rows_per_batch=rows)
    trainer = bench.trainer(f"speed-{name}", loader, training=TrainingOptions(precision=precision))
    batches = endless(trainer)
    trainer.task.train()
    for _ in range(3):  # compiles and allocates
        trainer.update([next(batches)])
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rates: list[float] = []
    steps, end = 0, time.perf_counter() + seconds
    while not rates or time.perf_counter() < end:
        begin, before = synchronise(bench.device), trainer.state.targets
        for _ in range(10):
            trainer.update([next(batches)])
        rates.append((trainer.state.targets - before) / (synchronise(bench.device) - begin))
        steps += 10
    per_step = trainer.state.targets / trainer.state.step
    return {
        "rows_per_batch": rows,
        "precision": precision,
        "targets_per_second": [round(rate) for rate in rates],
        "median": statistics.median(rates),
        "steps_per_second": statistics.median(rates) / per_step,
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3) if bench.device.type == "cuda" else None,
        "steps": steps,
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or that there is none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
