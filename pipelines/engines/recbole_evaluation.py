"""A trained RecBole model under this project's evaluation: the same queries, protocol, baselines, controls and gate."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipelines import stages
from pipelines.config import RunConfig
from pipelines.data.splits import make_split
from pipelines.engines.recbole_data import RecBoleTask
from pipelines.evaluation.baselines import baselines
from pipelines.evaluation.evaluator import Evaluation, shuffle_ties
from pipelines.evaluation.protocols import Protocol
from pipelines.evaluation.ranking import EvaluatedTask
from pipelines.evaluation.significance import intervals
from pipelines.gates import apply_gates, gate_terms
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
) -> Evaluation:
    """As :func:`pipelines.stages.ask`, with so few queries at a time that their scores fit."""
    few = max(1, _SCORES // prepared.store.num_items)
    return stages.ask(config, prepared, task, part, protocol=protocol, stop=stop, queries_per_ranking=few)


def evaluate_model(
    config: RunConfig,
    prepared: stages.Prepared,
    made: Made,
    state: TrainState,
    provenance: list[dict[str, str]],
) -> dict[str, Any]:
    """What metrics.json holds (see :func:`pipelines.stages.evaluate_run`) and ``ranks``, those of the test queries."""
    started, task = time.perf_counter(), made.task
    valid, test = (ask(config, prepared, task, part) for part in ("valid", "test"))
    tasks = baselines(prepared.store, prepared.split)
    popular = tasks["popularity"]
    found = {name: stages.ask(config, prepared, one, "test").metrics for name, one in tasks.items()}
    card = prepared.protocol.describe(
        prepared.store,
        prepared.split,
        max_length=config.loader.max_length,
        query_time=task.query_time,
        validation=f"best {config.training.select} on validation, every {config.training.eval_every} epoch(s)",
        seeds=[config.seed],
        commit=", then ".join(entry["commit"] for entry in provenance) or None,
    )
    return {
        "protocol": {"engine": "recbole", **card},
        "valid": valid.metrics,
        "test": test.metrics,
        "intervals": {"test": intervals(test.ranks, test.metrics)},
        "baselines": found,
        "also": _asked_otherwise(config, prepared, task, popular),
        "gate": apply_gates(config.gates, test.metrics, found),
        "training": {
            **{key: getattr(state, key) for key in ("best_step", "seconds", "targets")},
            "epochs": state.epoch,
            "steps": state.step,
            "ended": state.finished,
            "processes": 1,
            "cost": config.guards.cost(state.paid),
        },
        "evaluation": {
            "encode_seconds": test.encode_seconds,
            "rank_seconds": test.rank_seconds,
            "seconds": time.perf_counter() - started,
        },
        "recipe": config.recipe,
        "model": {"name": config.engine.model, "engine": "recbole", **_parameters(made.config)},
        "terms": gate_terms(config),
        "code": [entry["code"] for entry in provenance],
        "ranks": test.ranks,
    }


def _parameters(theirs: Any) -> dict[str, Any]:
    """What RecBole's model and trainer were given, as JSON has it."""
    known = {key for keys in theirs.parameters.values() for key in keys}
    kept = {"learner", "learning_rate", "weight_decay", "train_batch_size", "train_neg_sample_args", "clip_grad_norm"}
    values = theirs.final_config_dict.items()
    plain = (str, int, float, bool, list, dict, type(None))
    return {key: value for key, value in values if (key in kept or key not in known) and isinstance(value, plain)}


def _asked_otherwise(
    config: RunConfig, prepared: stages.Prepared, task: EvaluatedTask, popular: EvaluatedTask
) -> dict[str, Mapping[str, Any]]:
    """The same weights under the recipe's further protocols and controls."""

    def also(where: stages.Prepared, name: str) -> Mapping[str, Any]:
        protocol = stages.protocol_of(config, name)
        return {
            "test": ask(config, where, task, "test", protocol=protocol).metrics,
            "popularity": ask(config, where, popular, "test", protocol=protocol).metrics,
        }

    found = {name: also(prepared, name) for name in config.evaluation.also}
    if config.evaluation.shuffle_ties:
        store = shuffle_ties(prepared.store, config.seed, asked=prepared.split.test)
        split = make_split(store, prepared.protocol.split)
        name = prepared.protocol.name
        found[f"{name}, ties shuffled"] = also(replace(prepared, store=store, split=split), name)
    return found
