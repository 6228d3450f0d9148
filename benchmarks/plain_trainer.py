"""The project's Trainer without the runbook around it: no trackers, no display. Needs torch and numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from pipelines.training.events import EventLog
from pipelines.training.guards import GuardOptions
from pipelines.training.optimizers import OptimizerOptions
from pipelines.training.signals import StopSignal
from pipelines.training.trainer import Trainer, TrainingData, TrainingOptions


class EventsOnly(EventLog):
    """The event file as the trainer's whole log."""

    tracker_ids: Mapping[str, str] = {}


def plain_trainer(
    task: nn.Module,
    data: TrainingData,
    folder: Path,
    *,
    training: TrainingOptions | None = None,
    optimizer: OptimizerOptions | None = None,
    guards: GuardOptions | None = None,
    validate: Callable[[], Mapping[str, float]] = dict,
) -> Trainer:
    """A trainer of ``task`` on ``data`` that writes its events and checkpoints into ``folder``; options by default."""
    return Trainer(
        task,
        data,
        options=training or TrainingOptions(),
        optimizer=optimizer or OptimizerOptions(),
        guards=guards or GuardOptions(),
        checkpoints=folder / "checkpoints",
        log=EventsOnly(folder / "events.jsonl"),
        validate=validate,
        stop=StopSignal(),
        identity="benchmark",
    )
