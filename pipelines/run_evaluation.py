"""What a trained model is asked, and what is written down of it: metrics.json and ranks.parquet, for every engine."""

from __future__ import annotations

import hashlib
import json
import time
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from models.tasks import Retrieval
from pipelines import stages
from pipelines.config import RunConfig
from pipelines.data.splits import make_split
from pipelines.data.store import SequenceStore
from pipelines.evaluation.baselines import baselines
from pipelines.evaluation.beyond_accuracy import Exposure
from pipelines.evaluation.evaluator import Evaluation, Observe, shuffle_ties, write_ranks
from pipelines.evaluation.protocols import Protocol
from pipelines.evaluation.ranking import EvaluatedTask
from pipelines.evaluation.shuffled_order import shuffle_order
from pipelines.evaluation.significance import intervals
from pipelines.gates import apply_gates, gate_terms
from pipelines.run_folder import RunFolder, code_digest, read_json, write_json
from pipelines.stages import Prepared
from pipelines.training.checkpoint import checkpoint_path, load_checkpoint
from pipelines.training.distributed import this_world
from pipelines.training.state import TrainState

TIES, ORDER = "ties shuffled", "order shuffled"


class Ask(typing.Protocol):
    """How a task is asked: :func:`pipelines.stages.ask` with the configuration given, or an engine's own form of it."""

    def __call__(
        self,
        prepared: Prepared,
        task: EvaluatedTask,
        part: str,
        *,
        protocol: Protocol | None = None,
        observe: Observe | None = None,
    ) -> Evaluation:
        """Evaluate ``task`` on the ``valid`` or ``test`` queries."""


@dataclass(frozen=True)
class Trained:
    """A trained model, ready to be asked.

    Attributes:
        task: with the weights of the best validation.
        state: where its training ended.
        provenance: code and commit of every start that trained it.
        model: its name and options, for metrics.json.
        ask: how it is asked; baselines are asked by :func:`pipelines.stages.ask` in any case.
        engine: who trained it, where it was not this project.
    """

    task: EvaluatedTask
    state: TrainState
    provenance: list[dict[str, str]]
    model: Mapping[str, Any]
    ask: Ask
    engine: str | None = None


def evaluate_run(
    config: RunConfig, prepared: Prepared, task: Retrieval, state: TrainState, folder: RunFolder
) -> dict[str, Any]:
    """Test the chosen checkpoint and the baselines, apply the gates, write metrics.json and ranks.parquet.

    The code and commit that are named are those that trained the checkpoint. Several processes share the queries; the
    first one writes. Nothing is asked again when the inputs are those of the metrics that are there.
    """
    world = this_world()
    inputs, metrics = world.on_first(lambda: (inputs_digest(config, prepared, state), read_json(folder.metrics)))
    if metrics.get("inputs") == inputs:
        return metrics
    best = checkpoint_path(folder.checkpoints, state.best_step)
    provenance: list[dict[str, str]] = world.on_first(lambda: load_checkpoint(best).get("provenance", []))
    trained = Trained(task, state, provenance, config.resolved()["model"], partial(stages.ask, config))
    metrics, ranks = evaluate_trained(config, prepared, trained)
    metrics["inputs"] = inputs
    world.on_first(lambda: write_ranks(folder.ranks, prepared.store, prepared.split.test, ranks))
    world.on_first(lambda: write_json(folder.metrics, metrics))
    return metrics


def evaluate_trained(config: RunConfig, prepared: Prepared, trained: Trained) -> tuple[dict[str, Any], np.ndarray]:
    """What metrics.json holds, its inputs apart, and the ranks of the test queries' targets ``[Q]``."""
    started, task, state = time.perf_counter(), trained.task, trained.state
    counts = torch.from_numpy(stages.training_counts(prepared))
    exposure = Exposure(counts, prepared.protocol.ks) if config.evaluation.beyond_accuracy else None
    valid = trained.ask(prepared, task, "valid")
    test = trained.ask(prepared, task, "test", observe=exposure.observe if exposure else None)
    tasks = baselines(prepared.store, prepared.split)
    found = {name: stages.ask(config, prepared, one, "test").metrics for name, one in tasks.items()}
    also = _asked_otherwise(config, prepared, trained, tasks["popularity"])
    metrics = {
        "protocol": _card(config, prepared, trained),
        "valid": valid.metrics,
        "test": test.metrics,
        "intervals": {"test": intervals(test.ranks, test.metrics)},
        "baselines": found,
        **({"beyond_accuracy": _shown(prepared, exposure)} if exposure else {}),
        "also": also,
        "gate": apply_gates(config.gates, test.metrics, found),
        "training": how_trained(config, state),
        "evaluation": {
            "encode_seconds": test.encode_seconds,
            "rank_seconds": test.rank_seconds,
            "observe_seconds": test.observe_seconds,
            "seconds": time.perf_counter() - started,
        },
        "recipe": config.recipe,
        "model": dict(trained.model),
        "terms": gate_terms(config),
        "code": [entry["code"] for entry in trained.provenance],
    }
    return metrics, test.ranks


def _card(config: RunConfig, prepared: Prepared, trained: Trained) -> dict[str, Any]:
    """The protocol card with what this run adds to it."""
    training, evaluation = config.training, config.evaluation
    every = f"{training.eval_steps} updates" if training.eval_steps else f"{training.eval_every} epoch(s)"
    some = f" ({training.valid_queries} of its queries)" if training.valid_queries else ""
    card = prepared.protocol.describe(
        prepared.store,
        prepared.split,
        max_length=config.loader.max_length,
        query_time=getattr(trained.task, "query_time", "blind"),
        validation=f"best {training.select} on validation{some}, every {every}",
        seeds=[config.seed],
        commit=", then ".join(entry["commit"] for entry in trained.provenance) or None,
    )
    said = {
        TIES: "events of one user in the same second in random order, targets in their places",
        ORDER: "the whole of each history in random order, targets and times in their places",
    }
    controls = [f"{name}: {said[name]}, seed {config.seed}" for name in _controls(config)]
    listed = "what competes"
    if prepared.protocol.negatives is not None:  # the lists are made of all items in any case
        listed = "the whole catalogue without the user's history, not of the sampled items"
    lists = f"the best k of {listed}, for coverage and popularity" if evaluation.beyond_accuracy else None
    more = {key: value for key, value in (("controls", controls), ("lists", lists)) if value}
    return {**({"engine": trained.engine} if trained.engine else {}), **card, **more}


def _shown(prepared: Prepared, exposure: Exposure) -> dict[str, dict[str, float]]:
    """What the lists of the test queries hold, those of all processes together, and what was chosen instead."""
    exposure.gather(this_world())
    targets = torch.from_numpy(prepared.store.items[prepared.split.test.end].astype(np.int64))
    return {"test": exposure.metrics(), "targets": exposure.of_targets(targets)}


def _controls(config: RunConfig) -> list[str]:
    asked = ((TIES, config.evaluation.shuffle_ties), (ORDER, config.evaluation.shuffle_order))
    return [name for name, wanted in asked if wanted]


def _asked_otherwise(
    config: RunConfig, prepared: Prepared, trained: Trained, popular: EvaluatedTask
) -> dict[str, Mapping[str, Any]]:
    """The same weights under the recipe's further protocols and controls."""

    def also(where: Prepared, name: str) -> Mapping[str, Any]:
        protocol = stages.protocol_of(config, name)
        return {
            "test": trained.ask(where, trained.task, "test", protocol=protocol).metrics,
            "popularity": stages.ask(config, where, popular, "test", protocol=protocol).metrics,
        }

    found = {name: also(prepared, name) for name in config.evaluation.also}
    own = prepared.protocol
    for control in _controls(config):
        shuffle = {TIES: shuffle_ties, ORDER: shuffle_order}[control]
        store: SequenceStore = shuffle(prepared.store, config.seed, asked=prepared.split.test)
        found[f"{own.name}, {control}"] = also(Prepared(store, make_split(store, own.split), own), own.name)
    return found


def how_trained(config: RunConfig, state: TrainState) -> dict[str, Any]:
    """What metrics.json says of the training, whatever has been trained."""
    return {
        "epochs": state.epoch,
        "best_step": state.best_step,
        "steps": state.step,
        "seconds": state.seconds,
        "targets": state.targets,
        "ended": state.finished,
        "cost": config.guards.cost(state.paid),
        "processes": this_world().size,
    }


def inputs_digest(config: RunConfig, prepared: Prepared, state: TrainState) -> str:
    """Digest of what decides a run's metrics: nothing is asked again while it is that of the metrics there are."""
    parts = [
        stages.run_identity(config, prepared),
        state.best_step,
        state.step,
        config.evaluation.model_dump(),
        [gate.model_dump() for gate in config.gates],
        code_digest(),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
