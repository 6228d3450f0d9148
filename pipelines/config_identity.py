"""The digest of a configuration by which checkpoints are known: what decides the weights, and nothing else.

An option that came later stays out while it is as it always was, so that it parts no run from its checkpoints.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from pipelines.engines.recbole_unused import as_used
from pipelines.spread_config import embedding_identity
from pipelines.training.optimizers import OptimizerOptions

if TYPE_CHECKING:
    from pipelines.config import RunConfig


def identity_of(config: RunConfig) -> str:
    """See :meth:`pipelines.config.RunConfig.identity`."""
    values = as_used(config).resolved()
    decisive = {
        "model": _model(values["model"]),
        "loader": _loader(values["loader"]),
        "optimizer": _optimizer(values["optimizer"]),
        "seed": values["seed"],
        **embedding_identity(config.embedding),
    }
    dataset = {key: value for key, value in values["dataset"].items() if key not in ("cache", "gdrive_id")}
    dataset = {key: value for key, value in dataset.items() if value or key not in ("timestamp_unit", "options")}
    text = json.dumps([decisive, _training(values), dataset, config.evaluation.protocol], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _model(values: dict[str, Any]) -> dict[str, Any]:
    loss = values.get("loss")  # a ranking model has none
    if loss and not loss["exclude_seen"]:
        values = {**values, "loss": {key: value for key, value in loss.items() if key != "exclude_seen"}}
    came_later = {"hstu": ("scaling_length", "dense_init_std"), "hstu-ranking": ("dense_init_std",)}
    later = {key for key in came_later.get(values.get("name", ""), ()) if values[key] is None}
    return {key: value for key, value in values.items() if key not in later}


def _loader(values: dict[str, Any]) -> dict[str, Any]:
    usual = {"shuffle": True, "deal": "tokens"}
    without = {key for key, value in usual.items() if values.get(key) == value}
    without.add("resident")  # batches are the same wherever they are put together
    return {key: value for key, value in values.items() if key not in without}


def _optimizer(values: dict[str, Any]) -> dict[str, Any]:
    later = ("item_l2", "decay_rate", "decay_epochs")
    return {key: v for key, v in values.items() if key not in later or v != getattr(OptimizerOptions, key)}


def _training(values: dict[str, Any]) -> dict[str, Any]:
    training = values["training"]
    kept = {key: training[key] for key in ("accumulate", "grad_clip", "precision", "eval_every", "select")}
    if values["optimizer"]["schedule"] in ("linear", "cosine"):  # the number of epochs shapes every learning rate
        kept["epochs"] = training["epochs"]
        if training["max_steps"]:
            kept["max_steps"] = training["max_steps"]
    return kept | {key: training[key] for key in ("eval_steps", "valid_queries") if training[key]}
