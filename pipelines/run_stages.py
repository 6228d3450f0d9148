"""The stages of a run by what its model is asked to do: retrieval (stages.py) or ranking (ranking_stages.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.ranking import Ranking
from models.tasks import Retrieval
from pipelines import ranking_stages, run_evaluation, stages
from pipelines.config import RunConfig
from pipelines.run_folder import RunFolder
from pipelines.stages import Prepared
from pipelines.training.observers import Log, Watch
from pipelines.training.signals import StopSignal
from pipelines.training.state import TrainState

Task = Retrieval | Ranking


def prepare(config: RunConfig) -> Prepared:
    """Fetch the dataset and make its sequence store, or open the one that is there."""
    return ranking_stages.prepare(config) if config.ranks else stages.prepare(config)


def train(
    config: RunConfig,
    prepared: Prepared,
    folder: RunFolder,
    log: Log,
    stop: StopSignal,
    *,
    resume: Path | None,
    watch: Watch | None,
    provenance: Mapping[str, str],
) -> tuple[Task, TrainState]:
    """Train, or go on from the checkpoint ``resume``; the task comes back with the weights of the best validation."""
    trained = ranking_stages.train if config.ranks else stages.train
    return trained(config, prepared, folder, log, stop, resume=resume, watch=watch, provenance=provenance)


def best_task(config: RunConfig, prepared: Prepared, folder: RunFolder) -> tuple[Task, TrainState]:
    """The best checkpoint's model of a run that has been trained."""
    return (ranking_stages.best_task if config.ranks else stages.best_task)(config, prepared, folder)


def evaluate_run(
    config: RunConfig, prepared: Prepared, task: Task, state: TrainState, folder: RunFolder
) -> dict[str, Any]:
    """Test the chosen checkpoint, apply the gates, write metrics.json."""
    if isinstance(task, Ranking):
        return ranking_stages.evaluate_run(config, prepared, task, state, folder)
    return run_evaluation.evaluate_run(config, prepared, task, state, folder)
