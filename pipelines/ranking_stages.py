"""The stages of a ranking run that differ from a retrieval run's: data, training and evaluation by predictions.

Run folder, checkpoints, resume, guards, gates and report are the same; so is the training loop.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from models.ranking import Ranking, RankingData
from models.registry import build_ranking
from pipelines.config import RunConfig
from pipelines.data.dataset_store import dataset_store
from pipelines.data.ranking_loader import ranking_gather, ranking_windows
from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError
from pipelines.evaluation.ranking_evaluator import (
    RankingEvaluation,
    evaluate_ranking,
    intervals_of,
    item_average,
    write_predictions,
)
from pipelines.evaluation.ranking_metrics import ranking_metrics, torchmetrics_classification
from pipelines.evaluation.ranking_protocols import RankingProtocol, get_ranking_protocol
from pipelines.gates import apply_gates, gate_terms
from pipelines.run_evaluation import how_trained, inputs_digest
from pipelines.run_folder import RunFolder, read_json, write_json
from pipelines.stages import Prepared, check_items, dataset_spec, device_of, on_device, run_identity, spread
from pipelines.training.checkpoint import checkpoint_path, load_checkpoint
from pipelines.training.distributed import this_world
from pipelines.training.run_log import beat
from pipelines.training.signals import StopSignal
from pipelines.training.state import TrainState
from pipelines.training.trainer import TrainingData
from pipelines.training_stage import Session, put_best_weights, train_task

BASELINE = "item average"


def prepare(config: RunConfig) -> Prepared:
    """The data with their actions, and the split of the recipe's protocol.

    Raises:
        ConfigError: the dataset names no actions.
        MachineError: torchmetrics is not installed: said now, not after the first epoch.
    """
    torchmetrics_classification()
    protocol = get_ranking_protocol(config.evaluation.protocol, config.model_options().candidates)
    store = dataset_store(dataset_spec(config), config.dataset.cache)
    if store.actions is None:
        raise ConfigError(
            f"dataset '{config.dataset.name}' names no actions, which {config.model['name']} predicts",
            where="dataset.name",
            fix="use one that does (ml-1m-context, kuairand-1k), or name them in its YAML file: prepare.rating_levels "
            "or prepare.action_bits",
        )
    return Prepared(store, protocol.divide(store), protocol)


def ranking_data(store: SequenceStore) -> RankingData:
    """What a model needs to know of a store with actions."""
    described = store.actions or {}
    return RankingData(described["kind"], tuple(described["names"]), store.user_feature_sizes)


def build_task(config: RunConfig, prepared: Prepared) -> Ranking:
    """The model with freshly drawn weights on its device; the seed decides them."""
    torch.manual_seed(config.seed)
    options, store = config.model_options(), prepared.store
    check_items(store)
    if store.manifest.get("timestamps") == "order" and options.relative_bias == "position_time":
        fix = "use data with timestamps, or --set model.relative_bias=position"
        raise ConfigError("the data have no timestamps and the model reads them", where="model.relative_bias", fix=fix)
    try:
        task = build_ranking(config.model["name"], store.num_items, options, ranking_data(store))
    except ValueError as error:
        raise ConfigError(str(error), where="model.head", fix="end model.head with their number") from error
    return on_device(task, config, device_of(config))


def train(config: RunConfig, prepared: Prepared, session: Session) -> tuple[Ranking, TrainState]:
    """Train, or go on from a checkpoint; the task comes back with the weights of the best validation."""
    from pipelines.estimate.training_work import ranking_training_work  # here: the estimate itself reads the stages

    candidates, loader = config.model_options().candidates, config.loader
    task = this_world().agree(lambda: build_task(config, prepared))
    windows = ranking_windows(prepared.store, prepared.split.train, loader.max_length, candidates, loader.windows)
    stop, at_most = session.stop, config.training.valid_queries
    state = train_task(
        config,
        session,
        task,
        TrainingData(prepared.store, windows, loader, config.seed, ranking_gather(candidates)),
        identity=run_identity(config, prepared),
        validate=lambda: ask(config, prepared, task, "valid", stop=stop, at_most=at_most).metrics,
        work_of=ranking_training_work(
            config, prepared.store.num_items, device_of(config).type, ranking_data(prepared.store), windows.lengths
        ),
    )
    return task, state


def ask(
    config: RunConfig,
    prepared: Prepared,
    task: Ranking,
    part: str,
    *,
    stop: StopSignal | None = None,
    at_most: int = 0,
) -> RankingEvaluation:
    """Evaluate ``task`` on the ``valid`` or ``test`` queries (``at_most`` so many, unless 0)."""

    def between_batches() -> None:
        beat()
        if stop is not None:
            stop.raise_if_requested()

    return evaluate_ranking(
        task,
        prepared.store,
        spread(getattr(prepared.split, part), at_most),
        max_length=config.loader.max_length,
        asked=_protocol(prepared).asked,
        device=next(task.parameters()).device,
        tokens_per_batch=config.loader.tokens_per_batch,
        between_batches=between_batches,
        world=this_world(),
    )


def _protocol(prepared: Prepared) -> RankingProtocol:
    assert isinstance(prepared.protocol, RankingProtocol)
    return prepared.protocol


def best_task(config: RunConfig, prepared: Prepared, folder: RunFolder) -> tuple[Ranking, TrainState]:
    """The best checkpoint's model of a run that has been trained.

    Raises:
        RunError: no checkpoint, or one of another configuration.
    """
    task = this_world().agree(lambda: build_task(config, prepared))
    return task, put_best_weights(config, task, folder, run_identity(config, prepared))


def evaluate_run(
    config: RunConfig, prepared: Prepared, task: Ranking, state: TrainState, folder: RunFolder
) -> dict[str, Any]:
    """Test the chosen checkpoint and the baseline, apply the gates, write metrics.json and predictions.parquet.

    Nothing is asked again when the inputs are those of the metrics that are there.
    """
    world = this_world()
    inputs, metrics = world.on_first(lambda: (inputs_digest(config, prepared, state), read_json(folder.metrics)))
    if metrics.get("inputs") == inputs:
        return metrics
    best = checkpoint_path(folder.checkpoints, state.best_step)
    provenance: list[dict[str, str]] = world.on_first(lambda: load_checkpoint(best).get("provenance", []))
    metrics, test = _measured(config, prepared, task, state, provenance)
    metrics["inputs"] = inputs
    names = ranking_data(prepared.store).names
    world.on_first(lambda: write_predictions(folder.predictions, prepared.store, test, names))
    world.on_first(lambda: write_json(folder.metrics, metrics))
    return metrics


def _measured(
    config: RunConfig, prepared: Prepared, task: Ranking, state: TrainState, provenance: list[dict[str, str]]
) -> tuple[dict[str, Any], RankingEvaluation]:
    started, data, training = time.perf_counter(), ranking_data(prepared.store), config.training
    valid, test = (ask(config, prepared, task, part) for part in ("valid", "test"))
    averages = item_average(prepared.store, prepared.split, test.events)
    baselines = {BASELINE: ranking_metrics(averages, test.labels, test.users, data.kind, data.names)}
    metrics = {
        "protocol": prepared.protocol.describe(
            prepared.store,
            prepared.split,
            max_length=config.loader.max_length,
            query_time=task.query_time,
            validation=f"best {training.select} on validation, every {training.eval_every} epoch(s)",
            seeds=[config.seed],
            commit=", then ".join(entry["commit"] for entry in provenance) or None,
        ),
        "valid": valid.metrics,
        "test": test.metrics,
        "intervals": {"test": intervals_of(test, data.kind, data.names)},
        "asked": {"valid": len(valid.events), "test": len(test.events)},
        "baselines": baselines,
        "gate": apply_gates(config.gates, test.metrics, baselines),
        "training": how_trained(config, state),
        "evaluation": {"predict_seconds": test.seconds, "seconds": time.perf_counter() - started},
        "recipe": config.recipe,
        "model": config.resolved()["model"],
        "terms": gate_terms(config),
        "code": [entry["code"] for entry in provenance],
    }
    return metrics, test
