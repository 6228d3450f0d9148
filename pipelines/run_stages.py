"""The stages of a run by what its model is asked to do: retrieval (stages.py) or ranking (ranking_stages.py)."""

from __future__ import annotations

from typing import Any

from models.ranking import Ranking
from pipelines import ranking_stages, run_evaluation, stages
from pipelines.config import RunConfig
from pipelines.run_folder import RunFolder
from pipelines.stages import Prepared
from pipelines.training.state import TrainState
from pipelines.training_stage import Session, Task


def prepare(config: RunConfig) -> Prepared:
    """Fetch the dataset and make its sequence store, or open the one that is there."""
    return ranking_stages.prepare(config) if config.ranks else stages.prepare(config)


def train(config: RunConfig, prepared: Prepared, session: Session) -> tuple[Task, TrainState]:
    """Train, or go on from a checkpoint; the task comes back with the weights of the best validation."""
    return (ranking_stages.train if config.ranks else stages.train)(config, prepared, session)


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
