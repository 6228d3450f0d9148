"""The engine ``recbole``: a sequential model of RecBole's, trained by RecBole on this project's data and split.

RecBole makes the batches, the loss and the update. Everything around them is this project's: the split (RecBole sees
the training events alone), validation and test by :func:`pipelines.evaluation.evaluator.evaluate` on the same queries
under the same protocol, early stopping, budget, gate, checkpoints and the run's folder. From the recipe come dataset,
``loader.max_length``, ``training.epochs``, ``patience``, ``eval_every``, ``select`` and ``keep``, seed and device;
``engine.options`` are RecBole's own parameters, with RecBole's defaults.

A checkpoint is written after each validation, random states included: a run that is stopped goes on from the last one.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from models.registry import MODELS
from pipelines import runbook, stages
from pipelines.config import RunConfig
from pipelines.data.loader import evaluation_batches
from pipelines.data.splits import Queries
from pipelines.engines import recbole_data as data
from pipelines.engines.recbole_accepted import check_accepted
from pipelines.engines.recbole_environment import load_recbole, loss_type, sequential_models, undisturbed
from pipelines.engines.recbole_evaluation import Made, ask, evaluate_model
from pipelines.engines.recbole_loop import EpochLoop, Loop
from pipelines.engines.recbole_models import recbole_model, register
from pipelines.engines.recbole_unused import as_used, unused_line
from pipelines.errors import ConfigError, RecPodError, nearest
from pipelines.evaluation.evaluator import write_ranks
from pipelines.run_folder import RunFolder, code_digest, read_json, write_json
from pipelines.training.checkpoint import load_checkpoint, sweep_checkpoints
from pipelines.training.distributed import this_world
from pipelines.training.signals import StopSignal
from pipelines.training.state import check_identity, load_best
from pipelines.training_stage import newest_checkpoint

# RecBole's key -> where the recipe says it.
_RECIPE_KEYS = {
    "model": "engine.model",
    "dataset": "dataset.name",
    "MAX_ITEM_LIST_LENGTH": "loader.max_length",
    "epochs": "training.epochs",
    "stopping_step": "training.patience",
    "eval_step": "training.eval_every",
    "valid_metric": "training.select",
    "metrics": "evaluation.ks",
    "topk": "evaluation.ks",
    "eval_args": "evaluation.protocol",
    "seed": "seed",
    "gpu_id": "device",
    "use_gpu": "device",
    "checkpoint_dir": "runs",
    "log_wandb": "tracking.wandb",
    **dict.fromkeys(("user_inter_num_interval", "item_inter_num_interval", "val_interval"), "dataset"),
    **dict.fromkeys(("data_path", "benchmark_filename", "rm_dup_inter", *data.FIELDS), "dataset"),
}
_REFUSALS = (KeyError, ValueError, TypeError, AttributeError, AssertionError, NotImplementedError, RuntimeError)


def run(config: RunConfig, *, resume: str, force: bool, console: Console) -> int:
    """Take a recipe with ``engine.name: recbole`` from nothing to a gated result.

    Returns:
        0, or 3 when the gate is missed.

    Raises:
        RecPodError: what the user can mend, a model that these data cannot feed included.
        Interrupted: SIGTERM or SIGINT; the last validated epoch is saved.
    """
    if this_world().size > 1:
        raise ConfigError("the engine recbole runs in one process", where="--processes", fix="leave it away")
    if resume not in ("auto", "never"):
        raise ConfigError("the engine recbole resumes its own folder", where="--resume", fix="give auto or never")
    load_recbole()
    register()
    check_options(config)
    if line := unused_line(config):
        console.print(f"[yellow]{line}[/]")
    runbook.check_predecessor(config, force, console)
    runbook.check_machine(config, console)
    folder = RunFolder(config.folder)
    with StopSignal() as stop:
        if resume == "never":
            runbook.set_aside(folder, console)
        with folder.lock():
            sweep_checkpoints(folder.checkpoints)
            metrics = _train_and_evaluate(config, folder, console, stop)
    return runbook.finish(config, folder, metrics, console)


def check_options(config: RunConfig) -> None:
    """Refuse a model that RecBole does not have, and options that the recipe decides or that nobody has.

    Raises:
        ConfigError: see above.
    """
    known = [*sequential_models(), *(recbole_model(name).__name__ for name in MODELS)]
    if config.engine.model not in known:
        what = f"RecBole has no sequential model '{config.engine.model}'"
        raise ConfigError(what, where="engine.model", fix=nearest(config.engine.model, known))
    for key in config.engine.options:
        if key in _RECIPE_KEYS:
            what = f"'{key}' is the recipe's: data, split and counting are the same for every engine"
            raise ConfigError(what, where="engine.options", fix=f"use {_RECIPE_KEYS[key]}")
    check_accepted(config.engine.model, config.engine.options, _RECIPE_KEYS)


def _train_and_evaluate(config: RunConfig, folder: RunFolder, console: Console, stop: StopSignal) -> dict[str, Any]:
    prepared = stages.prepare(config)
    inputs = _inputs(config, prepared)
    metrics = read_json(folder.metrics)
    if metrics.get("inputs") == inputs:
        return metrics
    store = prepared.store
    console.print(
        f"[bold]{folder.path.name}[/]: RecBole's {config.engine.model} on {config.dataset.name} "
        f"({store.num_users:,} users, {store.num_items:,} items, {store.num_events:,} events), "
        f"{prepared.protocol.name}, device {stages.device_of(config)}"
    )
    newest, identity = newest_checkpoint(folder), run_identity(config, prepared)
    saved = load_checkpoint(newest) if newest else None
    if saved is not None and newest is not None:
        check_identity(saved, identity, newest)
    provenance = [*(saved["provenance"] if saved else []), runbook.record(config, folder)]
    provenance = [entry for place, entry in enumerate(provenance) if entry not in provenance[:place]]
    with tempfile.TemporaryDirectory() as scratch, runbook.logged(config, folder, console, newest) as log:
        with undisturbed(folder.path / "tensorboard"):
            made = make_model(config, prepared, Path(scratch))
            loop = EpochLoop(
                Loop(config, identity, provenance, folder.checkpoints, log, stop),
                made.trainer,
                made.loader,
                validate=lambda: ask(config, prepared, made.task, "valid", stop=stop).metrics,
            )
            state = loop.run(saved)
            load_best(made.task.model, folder.checkpoints, state)
        console.print(f"training ended: {state.finished}")
        metrics, ranks = evaluate_model(config, prepared, made, state, provenance)
        write_ranks(folder.ranks, store, prepared.split.test, ranks)
        write_json(folder.metrics, {**metrics, "inputs": inputs})
        log.summary({f"test/{key}": value for key, value in metrics["test"].items()})
    return metrics


def run_identity(config: RunConfig, prepared: stages.Prepared) -> str:
    """Digest of what decides the weights."""
    parts = [
        config.engine.model_dump(),
        config.identity(),
        prepared.split.digest,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _inputs(config: RunConfig, prepared: stages.Prepared) -> str:
    gates = [gate.model_dump() for gate in config.gates]
    parts = [
        run_identity(config, prepared),
        asdict(as_used(config).training),
        config.evaluation.model_dump(),
        gates,
        code_digest(),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def make_model(config: RunConfig, prepared: stages.Prepared, scratch: Path) -> Made:
    """RecBole's model and trainer for the recipe's data.

    Args:
        config: the recipe.
        prepared: its data.
        scratch: where the atomic files are written.

    Raises:
        ConfigError: RecBole refuses the options, or the model needs what these data do not have.
    """
    from recbole.config import Config
    from recbole.trainer import Trainer
    from recbole.utils import get_model, get_trainer, init_seed

    name, device = config.engine.model, stages.device_of(config)
    data.write_atomic_files(prepared.store, prepared.split, scratch)
    try:
        theirs = Config(model=name, dataset=data.NAME, config_dict=recbole_values(config, scratch))
        theirs["device"] = device
        init_seed(config.seed, True)
        dataset, loader = data.training_loader(theirs)
        init_seed(config.seed, True)
        model = get_model(name)(theirs, loader._dataset).to(device)
        trainer = get_trainer(theirs["MODEL_TYPE"], name)(theirs, model)
        task = data.RecBoleTask.of(model, dataset, prepared.store, config.loader.max_length)
        _ask_once(config, prepared, task)
        init_seed(config.seed, True)
    except RecPodError:
        raise
    except _REFUSALS as error:
        what = f"RecBole cannot make {name} for these data: {type(error).__name__}: {error}"
        raise ConfigError(
            what, where="engine", fix="set what it lacks in engine.options, or take another model"
        ) from error
    if type(trainer).fit is not Trainer.fit:
        raise ConfigError(f"{name} is trained in several stages, which this engine does not do", where="engine.model")
    if theirs["train_neg_sample_args"].get("dynamic"):
        loader.get_model(model)
    return Made(theirs, loader, trainer, task)


def _ask_once(config: RunConfig, prepared: stages.Prepared, task: data.RecBoleTask) -> None:
    """Some histories' scores before training: a model that needs what is not there must not fail after hours."""
    split, length = prepared.split.valid, config.loader.max_length
    few = Queries(split.user[:2], split.end[:2])
    _, batch = next(evaluation_batches(prepared.store, few, max_length=length, tokens_per_batch=1 << 20))
    task.eval()
    with torch.inference_mode():
        task.encode(batch.to(task.items.device))
    task.train(True)


def recbole_values(config: RunConfig, scratch: Path) -> dict[str, Any]:
    """The recipe in RecBole's keys, with ``engine.options`` on top of RecBole's defaults."""
    options = dict(config.engine.options)
    if options.get("loss_type", loss_type(config.engine.model)) == "CE":  # RecBole's own default refuses it
        options.setdefault("train_neg_sample_args", None)
    if config.engine.model.startswith("RecPod"):
        options["train_neg_sample_args"] = None
    return {
        **options,
        **data.FIELDS,
        "data_path": str(scratch),
        "MAX_ITEM_LIST_LENGTH": config.loader.max_length,
        "epochs": config.training.epochs,
        "seed": config.seed,
        "gpu_id": "" if stages.device_of(config).type == "cpu" else "0",
        "checkpoint_dir": str(scratch / "saved"),
        "eval_args": {"split": {"RS": [1.0, 0.0, 0.0]}, "group_by": "none", "order": "TO", "mode": "full"},
        "repeatable": True,
        "metrics": ["NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
    }
