"""Which ``engine.options`` a model takes, and of which kind: RecBole itself takes any key and any value without a word.

Keys and defaults are read from RecBole's own property files; keys that a model reads without a default, and its losses,
from its source.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from models.registry import MODELS
from pipelines.config_files import read_yaml
from pipelines.engines.recbole_models import KEYS, LOSSES, recbole_model
from pipelines.engines.recbole_options import WITHOUT_COUNTERPART
from pipelines.errors import ConfigError, nearest

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
"""RecBole's optimisers; it takes Adam for any other name."""
_MODELS = "recbole.model.sequential_recommender"
_NESTED = {
    "train_neg_sample_args": ("distribution", "sample_num", "alpha", "dynamic", "candidate_num"),
    "clip_grad_norm": ("max_norm", "norm_type"),
}


def check_accepted(model: str, options: Mapping[str, Any], not_here: Collection[str]) -> None:
    """Refuse an option that neither RecBole nor the model has, and a value of the wrong kind.

    Args:
        model: its name in RecBole.
        options: ``engine.options``.
        not_here: keys of RecBole's that the recipe decides.

    Raises:
        ConfigError: the first of them, with the nearest valid name.
    """
    ours = {recbole_model(name).__name__: name for name in MODELS}
    own, losses = _own(ours[model]) if model in ours else _theirs(model)
    known = {**_general(), **own}
    for key, value in options.items():
        where = f"engine.options.{key}"
        if key == "recpod" and model not in ours:
            known_as = f"RecPod{model}" if f"RecPod{model}" in ours else " or ".join(ours)
            raise ConfigError("`recpod` is for this project's models", where=where, fix=f"set engine.model={known_as}")
        if key not in known:
            what = f"neither RecBole nor its {model} has an option '{key}'"
            raise ConfigError(what, where=where, fix=nearest(key, known.keys() - set(not_here)))
        if key == "train_neg_sample_args" and model in ours and value not in (None, "None", {}):
            fix = "set recpod.loss.num_negatives in engine.options"
            raise ConfigError(f"{model} draws its negatives itself", where=where, fix=fix)
        _check_value(key, value, known[key], losses, where)


def _general() -> dict[str, Any]:
    """RecBole's keys for all models, with their defaults."""
    folder = _properties()
    return {**read_yaml(folder / "overall.yaml").values, **read_yaml(folder / "dataset" / "sample.yaml").values}


def _properties() -> Path:
    import recbole

    return Path(recbole.__file__).parent / "properties"


def _theirs(model: str) -> tuple[dict[str, Any], list[str]]:
    """Keys of one of RecBole's models with their defaults (None without one), and its losses."""
    import recbole.model.sequential_recommender as models

    path, keys = _properties() / "model" / f"{model}.yaml", dict[str, Any]()
    modules = {one.__module__ for one in getattr(models, model).__mro__ if one.__module__.startswith(_MODELS)}
    text = "\n".join(inspect.getsource(sys.modules[name]) for name in sorted(modules))
    for key in re.findall(r"""config\[["'](\w+)["']\]""", text):
        if not key.isupper() and key != "device":  # names of fields and what RecBole sets itself
            keys[key] = None
    if path.is_file():
        keys |= read_yaml(path).values
    losses = set(re.findall(r"""loss_type == ["'](\w+)["']""", text))
    return keys, sorted(losses)


def _own(name: str) -> tuple[dict[str, Any], list[str]]:
    """Keys of this project's model ``name`` inside RecBole, and its losses."""
    fields = {field.name for field in dataclasses.fields(MODELS[name].options)}
    keys = [key for key, names in KEYS.items() if fields & set(names)]
    keys += WITHOUT_COUNTERPART if "heads" in fields else []
    return dict.fromkeys([*keys, "loss_type", "recpod"]), sorted(LOSSES)


def _check_value(key: str, value: Any, usual: Any, losses: list[str], where: str) -> None:
    """Refuse a value of another kind than the default's.

    Raises:
        ConfigError: see above.
    """
    if key == "learner" and str(value).lower() not in LEARNERS:
        raise ConfigError(f"RecBole has no learner '{value}'", where=where, fix=nearest(str(value), LEARNERS))
    if key == "loss_type" and losses and value not in losses:
        raise ConfigError(f"unknown loss '{value}'", where=where, fix=nearest(str(value), losses))
    if key in _NESTED and value not in (None, "None"):
        if not isinstance(value, Mapping):
            fix = f"give {', '.join(_NESTED[key])}, or ~"
            raise ConfigError(f"{value!r} is no mapping", where=where, fix=fix)
        for entry in value:
            if entry not in _NESTED[key]:
                fix = nearest(str(entry), _NESTED[key])
                raise ConfigError(f"unknown entry '{entry}'", where=f"{where}.{entry}", fix=fix)
    if isinstance(usual, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{value!r} is neither true nor false", where=where)
    elif isinstance(usual, int | float) and not _is_number(value):
        raise ConfigError(f"{value!r} is no number", where=where, fix=f"RecBole's default is {usual}")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
