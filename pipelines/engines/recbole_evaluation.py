"""A trained RecBole model under this project's evaluation: the same queries, protocol, baselines, controls and gate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pipelines import stages
from pipelines.config import RunConfig
from pipelines.engines.recbole_data import RecBoleTask
from pipelines.evaluation.evaluator import Evaluation, Observe
from pipelines.evaluation.protocols import Protocol
from pipelines.evaluation.ranking import EvaluatedTask
from pipelines.run_evaluation import Trained, evaluate_trained
from pipelines.training.signals import StopSignal
from pipelines.training.state import TrainState

_SCORES = 1 << 26  # held at a time while ranking: 256 MB


@dataclass(frozen=True)
class Made:
    """RecBole's parts of a run: its configuration, loader of training rows and trainer, and the model as a task."""

    config: Any
    loader: Any
    trainer: Any
    task: RecBoleTask


def ask(
    config: RunConfig,
    prepared: stages.Prepared,
    task: EvaluatedTask,
    part: str,
    *,
    protocol: Protocol | None = None,
    stop: StopSignal | None = None,
    observe: Observe | None = None,
) -> Evaluation:
    """As :func:`pipelines.stages.ask`, with so few queries at a time that their scores fit."""
    few = max(1, _SCORES // prepared.store.num_items)
    return stages.ask(
        config, prepared, task, part, protocol=protocol, stop=stop, observe=observe, queries_per_ranking=few
    )


def evaluate_model(
    config: RunConfig,
    prepared: stages.Prepared,
    made: Made,
    state: TrainState,
    provenance: list[dict[str, str]],
) -> tuple[dict[str, Any], np.ndarray]:
    """What metrics.json holds, and the ranks; see :func:`pipelines.run_evaluation.evaluate_trained`."""
    model = {"name": config.engine.model, "engine": "recbole", **_parameters(made.config)}
    trained = Trained(made.task, state, provenance, model, partial(ask, config), engine="recbole")
    return evaluate_trained(config, prepared, trained)


def _parameters(theirs: Any) -> dict[str, Any]:
    """What RecBole's model and trainer were given, as JSON has it."""
    known = {key for keys in theirs.parameters.values() for key in keys}
    kept = {"learner", "learning_rate", "weight_decay", "train_batch_size", "train_neg_sample_args", "clip_grad_norm"}
    values = theirs.final_config_dict.items()
    plain = (str, int, float, bool, list, dict, type(None))
    return {key: value for key, value in values if (key in kept or key not in known) and isinstance(value, plain)}
