"""What of a recipe ``--engine recbole`` does not use: said when a run starts, refused from ``--set``, not written down.

A shipped recipe names a model of this project and may be run with RecBole as it is. An option that somebody sets by
hand for that very run is another matter: a result that does not have it must not come out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pipelines.data.loader import LoaderOptions
from pipelines.errors import ConfigError
from pipelines.training.optimizers import OptimizerOptions
from pipelines.training.options import TrainingOptions

if TYPE_CHECKING:
    from pipelines.config import RunConfig

SECTIONS = ("model", "optimizer")
TRAINING = ("epochs", "patience", "eval_every", "select", "keep")  # of the training: how long, and what is selected
LOADER = ("max_length", "tokens_per_batch")  # of the loader: what models see, and what evaluation is batched by
_PARTLY = {"loader": LOADER, "training": TRAINING}


def refuse_sets(config: RunConfig, origins: Mapping[tuple[str, ...], str]) -> None:
    """Refuse an option of this project's model, optimiser or training loop from ``--set`` where RecBole trains.

    Args:
        config: the run.
        origins: where each key was written.

    Raises:
        ConfigError: see above, with the key that RecBole's is.
    """
    if config.engine.name != "recbole":
        return
    for path, origin in origins.items():
        ours = path[0] in SECTIONS or (path[0] == "training" and len(path) > 1 and path[1] not in TRAINING)
        if ours and origin.startswith("--set"):
            names = path in (("model",), ("model", "name"))
            fix = "set engine.model" if names else "set RecBole's key in engine.options"
            raise ConfigError(f"'{'.'.join(path)}' is not used with --engine recbole", where=origin, fix=fix)


def unused_line(config: RunConfig) -> str:
    """One line on what the recipe says and RecBole does not use, and what is used instead; empty without any."""
    named = [f"model ({config.model['name']})"] if "model" in config.model_fields_set else []
    named += [f"optimizer.{key}" for key in _changed(config.optimizer, OptimizerOptions())]
    named += [f"loader.{key}" for key in _changed(config.loader, LoaderOptions()) if key not in LOADER]
    named += [f"training.{key}" for key in _changed(config.training, TrainingOptions()) if key not in TRAINING]
    used = f"engine.model ({config.engine.model}), engine.options"
    return f"not used with --engine recbole: {', '.join(named)}; used instead: {used}" if named else ""


def _changed(options: Any, usual: Any) -> list[str]:
    return [one.name for one in fields(options) if getattr(options, one.name) != getattr(usual, one.name)]


def as_used(config: RunConfig) -> RunConfig:
    """The configuration with what RecBole does not use as if nobody had given it; another engine's as it is."""
    if config.engine.name != "recbole":
        return config
    loader = LoaderOptions(**{key: getattr(config.loader, key) for key in LOADER})
    training = TrainingOptions(**{key: getattr(config.training, key) for key in TRAINING})
    usual = {"model": {"name": "sasrec"}, "optimizer": OptimizerOptions(), "loader": loader, "training": training}
    return config.model_copy(update=usual)


def used_values(values: dict[str, Any]) -> dict[str, Any]:
    """A resolved configuration, without what RecBole does not use if it trains."""
    if values["engine"]["name"] != "recbole":
        return values
    parts = {section: {key: values[section][key] for key in keys} for section, keys in _PARTLY.items()}
    return {key: parts.get(key, value) for key, value in values.items() if key not in SECTIONS}
