"""The stages of a run, each a function of the configuration and what earlier stages left behind.

fetch and prepare give a sequence store; train leaves checkpoints; evaluate and gate write metrics.json; report makes
the page. A stage whose inputs have not changed is skipped: the store by its manifest, training by its checkpoint's
identity, evaluation by the digest it recorded.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.losses import PopularitySampler
from models.losses.gradients import compute_dtype
from models.registry import build_model
from models.tasks import Retrieval
from pipelines.config import RunConfig
from pipelines.data.dataset_store import dataset_store
from pipelines.data.datasets import DatasetSpec, load_dataset_spec
from pipelines.data.loader import cut_windows
from pipelines.data.splits import Split, make_split
from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError, MachineError, RunError
from pipelines.evaluation.baselines import baselines as make_baselines
from pipelines.evaluation.evaluator import Evaluation, evaluate, shuffle_ties, write_ranks
from pipelines.evaluation.protocols import Protocol, get_protocol
from pipelines.evaluation.ranking import EvaluatedTask
from pipelines.evaluation.significance import intervals
from pipelines.gates import apply_gates, gate_terms
from pipelines.run_folder import RunFolder, code_digest, read_json, write_json
from pipelines.training.checkpoint import checkpoint_path, checkpoint_steps, load_checkpoint
from pipelines.training.distributed import this_world
from pipelines.training.guards import Rent
from pipelines.training.observers import Log, Watch
from pipelines.training.run_log import beat
from pipelines.training.signals import StopSignal
from pipelines.training.state import TrainState, check_identity, load_best
from pipelines.training.trainer import Trainer, TrainingData, autocast


@dataclass(frozen=True)
class Prepared:
    """The data of a run.

    Attributes:
        store: the sequences.
        split: who trains, validates and tests.
        protocol: how answers are counted.
    """

    store: SequenceStore
    split: Split
    protocol: Protocol


def dataset_spec(config: RunConfig) -> DatasetSpec:
    """The dataset of the recipe, with the recipe's own filters in place of the dataset file's."""
    spec = load_dataset_spec(config.dataset.name, config.dataset.cache)
    filters = {"min_user_events", "min_item_events", "min_rating", "timestamp_unit"}
    chosen = config.dataset.model_dump(include=filters, exclude_none=True)
    options = {**spec.options, **config.dataset.options}
    spec = replace(spec, prepare=replace(spec.prepare, **chosen), options=options)
    return replace(spec, gdrive_id=config.dataset.gdrive_id) if config.dataset.gdrive_id else spec


def protocol_of(config: RunConfig, name: str | None = None) -> Protocol:
    """The protocol ``name`` (default: the recipe's) with the recipe's cut-offs, 10 always among them."""
    return replace(get_protocol(name or config.evaluation.protocol), ks=tuple(sorted({*config.evaluation.ks, 10})))


def prepare(config: RunConfig) -> Prepared:
    """Fetch the dataset and make its sequence store, or open the one that is there."""
    protocol = protocol_of(config)
    store = dataset_store(dataset_spec(config), config.dataset.cache)
    return Prepared(store, make_split(store, protocol.split), protocol)


def device_of(config: RunConfig) -> torch.device:
    """The device to run on; of several processes each has a GPU of its own.

    Raises:
        MachineError: a GPU is asked for and none can be used, or there are more processes than GPUs.
    """
    world = this_world()
    if world.size > 1 and config.device in ("auto", "cuda") and torch.cuda.is_available():
        if world.local_rank >= (count := torch.cuda.device_count()):
            raise MachineError(
                f"process {world.local_rank + 1} has no GPU: {count} are here", where="--processes", fix=f"use {count}"
            )
        torch.cuda.set_device(world.local_rank)
        return torch.device("cuda", world.local_rank)
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise MachineError(
            "no usable GPU", where="device", fix="use device: auto, or check the driver with `recpod preflight`"
        )
    return torch.device(config.device)


def build_task(config: RunConfig, prepared: Prepared) -> Retrieval:
    """The model with freshly drawn weights on its device; the seed decides them."""
    torch.manual_seed(config.seed)
    if prepared.store.manifest.get("timestamps") == "order" and getattr(config.model_options(), "use_time", False):
        fix = "use data with timestamps, or --set model.use_time=false"
        raise ConfigError("the data have no timestamps and the model reads them", where="model.use_time", fix=fix)
    try:
        task = build_model(config.model["name"], prepared.store.num_items, config.model_options())
    except ValueError as error:
        raise ConfigError(str(error), where="model") from error
    device, wide = device_of(config), config.training.precision == "float64"
    task.popularity = PopularitySampler.from_counts(torch.from_numpy(training_counts(prepared)).to(device))
    return task.to(device, torch.float64 if wide else None)


def loss_precision(config: RunConfig) -> str:
    """The dtype of the loss' matrix products on this machine: part of what a number was made with."""
    device = device_of(config)
    if config.training.precision == "float64":
        return "float64"
    with autocast(device, config.training.precision):
        return str(compute_dtype(torch.zeros(1, device=device), config.model_options().loss.precision)).partition(".")[
            2
        ]


def training_counts(prepared: Prepared) -> np.ndarray:
    """How often each item stands in the training events, ``[num_items + 1]`` int64; row 0 is padding."""
    store, train = prepared.store, prepared.split.train
    border = np.zeros(store.num_events + 1, dtype=np.int64)  # +1 where a user's training events begin, -1 behind them
    np.add.at(border, np.asarray(store.offsets)[train.user], 1)
    np.add.at(border, train.end + 1, -1)
    inside = np.cumsum(border[:-1]) > 0
    return np.bincount(store.items[inside], minlength=store.num_items + 1)


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
) -> tuple[Retrieval, TrainState]:
    """Train, or go on from the checkpoint ``resume``; the task comes back with the weights of the best validation."""
    task = build_task(config, prepared)
    data = TrainingData(
        prepared.store,
        cut_windows(prepared.store, prepared.split.train, config.loader.max_length, config.loader.windows),
        config.loader,
        config.seed,
    )
    trainer = Trainer(
        task,
        data,
        options=config.training,
        optimizer=config.optimizer,
        guards=config.guards,
        checkpoints=folder.checkpoints,
        log=log,
        validate=lambda: ask(config, prepared, task, "valid", stop=stop).metrics,
        stop=stop,
        identity=run_identity(config, prepared),
        provenance=provenance,
        watch=watch,
        world=this_world(),
        rent=Rent.so_far(),
    )
    if resume is not None:
        trainer.restore(resume)
    try:
        state = trainer.run()
    except torch.OutOfMemoryError as error:
        raise MachineError(
            "the GPU's memory does not hold a training step",
            where="loader",
            fix="set a smaller loader.rows_per_batch or loader.tokens_per_batch and begin anew with --resume never; "
            "`recpod estimate` says what fits",
        ) from error
    load_best(task, folder.checkpoints, state, this_world())
    return task, state


def run_identity(config: RunConfig, prepared: Prepared) -> str:
    """Digest of what decides the weights: configuration and data."""
    return hashlib.sha256(f"{config.identity()} {prepared.split.digest}".encode()).hexdigest()


def ask(
    config: RunConfig,
    prepared: Prepared,
    task: EvaluatedTask,
    part: str,
    *,
    protocol: Protocol | None = None,
    stop: StopSignal | None = None,
    queries_per_ranking: int = 8192,
) -> Evaluation:
    """Evaluate ``task`` on the ``valid`` or ``test`` queries, the states of so many at a time."""

    def between_batches() -> None:
        beat()
        if stop is not None:
            stop.raise_if_requested()

    return evaluate(
        task,
        prepared.store,
        getattr(prepared.split, part),
        protocol=protocol or prepared.protocol,
        max_length=config.loader.max_length,
        device=next(iter(task.state_dict().values())).device,
        tokens_per_batch=config.loader.tokens_per_batch,
        queries_per_ranking=queries_per_ranking,
        between_batches=between_batches,
        world=this_world(),
    )


def newest_checkpoint(folder: RunFolder) -> Path | None:
    """The run's newest checkpoint."""
    steps = checkpoint_steps(folder.checkpoints)
    return checkpoint_path(folder.checkpoints, steps[-1]) if steps else None


def best_task(config: RunConfig, prepared: Prepared, folder: RunFolder) -> tuple[Retrieval, TrainState]:
    """The best checkpoint's model of a run that has been trained.

    Raises:
        RunError: no checkpoint, or one of another configuration.
    """
    identity = run_identity(config, prepared)

    def stand() -> TrainState:
        newest = newest_checkpoint(folder)
        if newest is None:
            raise RunError("there is no checkpoint to evaluate", where=str(folder.path), fix="train the run first")
        saved = load_checkpoint(newest)
        check_identity(saved, identity, newest)
        return TrainState(**saved["state"])

    task, state = build_task(config, prepared), this_world().on_first(stand)
    load_best(task, folder.checkpoints, state, this_world())
    return task, state


def evaluate_run(
    config: RunConfig, prepared: Prepared, task: Retrieval, state: TrainState, folder: RunFolder
) -> dict[str, Any]:
    """Test the chosen checkpoint and the popularity baseline, apply the gates, write metrics.json and ranks.parquet.

    The code and commit that are named are those that trained the checkpoint. Several processes share the queries; the
    first one writes.
    """
    world = this_world()
    inputs, metrics = world.on_first(lambda: (_evaluation_inputs(config, prepared, state), read_json(folder.metrics)))
    if metrics.get("inputs") == inputs:
        return metrics
    best = checkpoint_path(folder.checkpoints, state.best_step)
    provenance: list[dict[str, str]] = world.on_first(lambda: load_checkpoint(best).get("provenance", []))
    started = time.perf_counter()
    tasks = make_baselines(prepared.store, prepared.split)
    valid, test = (ask(config, prepared, task, part) for part in ("valid", "test"))
    baselines = {name: ask(config, prepared, one, "test").metrics for name, one in tasks.items()}
    metrics = {
        "protocol": prepared.protocol.describe(
            prepared.store,
            prepared.split,
            max_length=config.loader.max_length,
            query_time=getattr(task, "query_time", "blind"),
            validation=f"best {config.training.select} on validation, every {config.training.eval_every} epoch(s)",
            seeds=[config.seed],
            commit=", then ".join(entry["commit"] for entry in provenance) or None,
        ),
        "valid": valid.metrics,
        "test": test.metrics,
        "intervals": {"test": intervals(test.ranks, test.metrics)},
        "baselines": baselines,
        "also": _asked_otherwise(config, prepared, task, tasks["popularity"]),
        "gate": apply_gates(config.gates, test.metrics, baselines),
        "training": {
            "epochs": state.epoch,
            "best_step": state.best_step,
            "steps": state.step,
            "seconds": state.seconds,
            "targets": state.targets,
            "ended": state.finished,
            "cost": config.guards.cost(state.paid),
            "processes": world.size,
        },
        "evaluation": {
            "encode_seconds": test.encode_seconds,
            "rank_seconds": test.rank_seconds,
            "seconds": time.perf_counter() - started,
        },
        "recipe": config.recipe,
        "model": config.resolved()["model"],
        "terms": gate_terms(config),
        "code": [entry["code"] for entry in provenance],
        "inputs": inputs,
    }
    world.on_first(lambda: write_ranks(folder.ranks, prepared.store, prepared.split.test, test.ranks))
    world.on_first(lambda: write_json(folder.metrics, metrics))
    return metrics


def _asked_otherwise(
    config: RunConfig, prepared: Prepared, task: Retrieval, popular: EvaluatedTask
) -> dict[str, Mapping[str, Any]]:
    """The same checkpoint under the recipe's further protocols and controls."""
    also = {name: _also(config, prepared, task, popular, name) for name in config.evaluation.also}
    if config.evaluation.shuffle_ties:
        store = shuffle_ties(prepared.store, config.seed, asked=prepared.split.test)
        control = Prepared(store, make_split(store, prepared.protocol.split), prepared.protocol)
        also[f"{prepared.protocol.name}, ties shuffled"] = _also(config, control, task, popular, prepared.protocol.name)
    return also


def _also(
    config: RunConfig, prepared: Prepared, task: Retrieval, popular: EvaluatedTask, name: str
) -> Mapping[str, Any]:
    protocol = protocol_of(config, name)
    return {
        "test": ask(config, prepared, task, "test", protocol=protocol).metrics,
        "popularity": ask(config, prepared, popular, "test", protocol=protocol).metrics,
    }


def _evaluation_inputs(config: RunConfig, prepared: Prepared, state: TrainState) -> str:
    gates = [gate.model_dump() for gate in config.gates]
    parts = [
        run_identity(config, prepared),
        state.best_step,
        state.step,
        config.evaluation.model_dump(),
        gates,
        code_digest(),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
