"""The stages of a run, each a function of the configuration and what earlier stages left behind.

fetch and prepare give a sequence store; train leaves checkpoints; evaluate and gate (run_evaluation.py) write
metrics.json; report makes the page. A stage whose inputs have not changed is skipped: the store by its manifest,
training by its checkpoint's identity, evaluation by the digest it recorded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from models.losses import PopularitySampler
from models.losses.gradients import compute_dtype
from models.ranking import Ranking
from models.registry import build_model
from models.tasks import Retrieval
from pipelines.config import RunConfig
from pipelines.data.dataset_store import dataset_store
from pipelines.data.datasets import DatasetSpec, load_dataset_spec
from pipelines.data.loader import cut_windows
from pipelines.data.resident import Residence
from pipelines.data.splits import Queries, Split, make_split
from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError, DataError, MachineError
from pipelines.evaluation.baselines import training_events
from pipelines.evaluation.evaluator import Evaluation, Observe, evaluate
from pipelines.evaluation.protocols import Protocol, get_protocol
from pipelines.evaluation.ranking import EvaluatedTask
from pipelines.run_folder import RunFolder
from pipelines.training.distributed import this_world
from pipelines.training.run_log import beat
from pipelines.training.signals import StopSignal
from pipelines.training.state import TrainState
from pipelines.training.trainer import TrainingData, autocast
from pipelines.training_stage import Session, put_best_weights, train_task

AnyTask = TypeVar("AnyTask", Retrieval, Ranking)

_EVENTS = 1 << 24  # checked at a time: nothing of a large store is held in memory


@dataclass(frozen=True)
class Prepared:
    """The data of a run.

    Attributes:
        store: the sequences.
        split: who trains, validates and tests.
        protocol: how answers are counted.
        residence: where the events lie besides; training decides it, and queries are asked from there.
    """

    store: SequenceStore
    split: Split
    protocol: Protocol
    residence: Residence = field(default_factory=Residence)


def dataset_spec(config: RunConfig) -> DatasetSpec:
    """The dataset of the recipe, with the recipe's own filters in place of the dataset file's."""
    spec = load_dataset_spec(config.dataset.name, config.dataset.cache)
    filters = {"min_user_events", "min_item_events", "min_rating", "timestamp_unit"}
    chosen = config.dataset.model_dump(include=filters, exclude_none=True)
    options = {**spec.options, **config.dataset.options}
    spec = replace(spec, prepare=replace(spec.prepare, **chosen), options=options)
    return replace(spec, gdrive_id=config.dataset.gdrive_id) if config.dataset.gdrive_id else spec


def protocol_of(config: RunConfig, name: str | None = None) -> Protocol:
    """The protocol ``name`` (default: the recipe's) with the recipe's cut-offs."""
    return replace(get_protocol(name or config.evaluation.protocol), ks=config.cutoffs)


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
    check_items(prepared.store)
    if prepared.store.manifest.get("timestamps") == "order" and getattr(config.model_options(), "use_time", False):
        fix = "use data with timestamps, or --set model.use_time=false"
        raise ConfigError("the data have no timestamps and the model reads them", where="model.use_time", fix=fix)
    try:
        task = build_model(config.model["name"], prepared.store.num_items, config.model_options())
    except ValueError as error:
        raise ConfigError(str(error), where="model") from error
    device = device_of(config)
    task.popularity = PopularitySampler.from_counts(torch.from_numpy(training_counts(prepared)).to(device))
    return on_device(task, config, device)


def on_device(task: AnyTask, config: RunConfig, device: torch.device) -> AnyTask:
    """``task`` in the recipe's precision on ``device``; a table that is going to be spread stays in main memory.

    No process may have room for the whole of it on its GPU: that is what it is spread for.
    """
    whole: nn.Module = task
    table = whole.item_embedding
    if config.embedding.sharded:
        whole.item_embedding = nn.Identity()
    whole.to(device, torch.float64 if config.training.precision == "float64" else None)
    whole.item_embedding = table
    return task


def loss_precision(config: RunConfig) -> str:
    """The dtype of the loss' matrix products on this machine: part of what a number was made with."""
    device = device_of(config)
    if config.training.precision == "float64":
        return "float64"
    if config.ranks:
        return "float32"  # there are none: the loss is made of the logits, in float32 at least
    with autocast(device, config.training.precision):
        return str(compute_dtype(torch.zeros(1, device=device), config.model_options().loss.precision)).partition(".")[
            2
        ]


def training_counts(prepared: Prepared) -> np.ndarray:
    """How often each item stands in the training events, ``[num_items + 1]`` int64; row 0 is padding."""
    inside = training_events(prepared.store, prepared.split)
    return np.bincount(prepared.store.items[inside], minlength=prepared.store.num_items + 1)


def check_items(store: SequenceStore) -> None:
    """Refuse events of items that a model's table has no row for.

    A lookup on a GPU would say so without a line of its own, and a spread table might answer with another row.

    Raises:
        DataError: names the file and the first such event.
    """
    for start in range(0, store.num_events, _EVENTS):
        items = store.items[start : start + _EVENTS]
        if int(items.min()) < 1 or int(items.max()) > store.num_items:
            event = int(np.flatnonzero((items < 1) | (items > store.num_items))[0])
            what = f"event {start + event} is of item {items[event]}, the catalogue has items 1 to {store.num_items}"
            fix = "delete the store's folder: the next run prepares it anew"
            raise DataError(what, where=str(store.path / "items.npy"), fix=fix)


def train(config: RunConfig, prepared: Prepared, session: Session) -> tuple[Retrieval, TrainState]:
    """Train, or go on from a checkpoint; the task comes back with the weights of the best validation."""
    from pipelines.estimate.training_work import training_work  # here: the estimate itself reads the stages

    task, stop = this_world().agree(lambda: build_task(config, prepared)), session.stop
    windows = cut_windows(prepared.store, prepared.split.train, config.loader.max_length, config.loader.windows)
    state = train_task(
        config,
        session,
        task,
        TrainingData(prepared.store, windows, config.loader, config.seed, residence=prepared.residence),
        identity=run_identity(config, prepared),
        validate=lambda: ask(config, prepared, task, "valid", stop=stop, at_most=config.training.valid_queries).metrics,
        work_of=training_work(config, prepared.store.num_items, device_of(config).type),
    )
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
    at_most: int = 0,
    observe: Observe | None = None,
) -> Evaluation:
    """Evaluate ``task`` on the ``valid`` or ``test`` queries (``at_most`` so many, unless 0), some states at a time."""

    def between_batches() -> None:
        beat()
        if stop is not None:
            stop.raise_if_requested()

    device = next(iter(task.state_dict().values())).device
    return evaluate(
        task,
        prepared.store,
        spread(getattr(prepared.split, part), at_most),
        protocol=protocol or prepared.protocol,
        max_length=config.loader.max_length,
        device=device,
        tokens_per_batch=config.loader.tokens_per_batch,
        queries_per_ranking=queries_per_ranking,
        between_batches=between_batches,
        world=this_world(),
        observe=observe,
        gather=prepared.residence.on(device),
    )


def spread(queries: Queries, at_most: int) -> Queries:
    """``at_most`` of ``queries``, evenly over all; all of them where they are no more, or ``at_most`` is 0."""
    if not 0 < at_most < len(queries):
        return queries
    rows = np.arange(at_most) * len(queries) // at_most
    return Queries(queries.user[rows], queries.end[rows])


def best_task(config: RunConfig, prepared: Prepared, folder: RunFolder) -> tuple[Retrieval, TrainState]:
    """The best checkpoint's model of a run that has been trained.

    Raises:
        RunError: no checkpoint, or one of another configuration.
    """
    task = this_world().agree(lambda: build_task(config, prepared))
    return task, put_best_weights(config, task, folder, run_identity(config, prepared))
