"""RecBole's YAML keys, translated into a recipe.

A key that has no counterpart because it changes no number is named as not used; a key that would change the numbers is
translated or refused, never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.config_files import KeyPath, Layered, read_yaml
from pipelines.errors import ConfigError, nearest

MODELS = {"SS4Rec": "ss4rec-official", "ss4rec": "ss4rec-official", "ss4rec-official": "ss4rec-official"}
LOSSES = {"CE": "softmax", "BPR": "bpr"}

# RecBole's key -> this project's, where the value is taken as it is.
SAME: dict[str, str] = {
    "hidden_size": "model.hidden",
    "num_layers": "model.layers",
    "n_layers": "model.layers",
    "dropout_prob": "model.dropout",
    "d_state": "model.d_state",
    "d_conv": "model.d_conv",
    "expand": "model.expand",
    "dt_min": "model.dt_min",
    "dt_max": "model.dt_max",
    "d_P": "model.s5_state",
    "MAX_ITEM_LIST_LENGTH": "loader.max_length",
    "learning_rate": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "epochs": "training.epochs",
    "eval_step": "training.eval_every",
    "stopping_step": "training.patience",
    "valid_metric": "training.select",
    "seed": "seed",
    "wandb_project": "tracking.project",
    "checkpoint_dir": "runs",
}

NOT_USED = {
    "the reader takes types from the file's header": (
        "LIST_SUFFIX ITEM_LIST_LENGTH_FIELD load_col seq_separator NEG_PREFIX LABEL_FIELD POSITION_FIELD"
    ),
    "evaluation is batched by tokens": "eval_batch_size",
    "runs repeat bit by bit in any case": "reproducibility",
    "the log and the checkpoints are always kept": (
        "state show_progress save_dataset save_dataloaders log_wandb saved use_gpu gpu_id nproc worker"
    ),
    "the metrics are always HR, NDCG and MRR": "metrics",
    "larger is better for all of them": "valid_metric_bigger",
    "sequences are made by the sequence store": "alias_of_user_id alias_of_item_id",
}
SAMPLING = ("train_neg_sample_args", "neg_sampling")
_REASON = {key: reason for reason, keys in NOT_USED.items() for key in keys.split()}


def _filter(value: Any) -> int | None:
    """``[5,inf)`` as the smallest count that stays."""
    text = str(value).strip()
    if _empty(value):
        return None
    lower, _, upper = text.strip("[]()").partition(",")
    if upper.strip() not in ("inf", "Inf"):
        raise ValueError("only an interval that ends in 'inf' can be honoured")
    least = math.floor(float(lower)) + 1 if text.startswith("(") else math.ceil(float(lower))
    return max(least, 1)


def _empty(value: Any) -> bool:
    """Whether RecBole takes the value for none."""
    return value is None or value in ("", "None", {}, [])


def _no_value_filter(value: Any) -> None:
    if not _empty(value):
        raise ValueError("events are filtered by rating alone: use dataset.min_rating")


def _no_deduplication(value: Any) -> None:
    if not _empty(value):
        raise ValueError("repeated events are kept: remove them from the file")


def _protocol(value: Any) -> str:
    args = dict(value or {})
    split, mode = args.pop("split", {"LS": "valid_and_test"}), args.pop("mode", "full")
    if dict(split) != {"LS": "valid_and_test"}:
        raise ValueError(f"split {split} is not leave-one-out ({{'LS': 'valid_and_test'}})")
    modes = set(mode.values()) if isinstance(mode, dict) else {mode}
    if modes != {"full"}:
        raise ValueError(f"mode {mode} samples negatives; numbers here are full rankings (mode: full)")
    if args.pop("order", "TO") != "TO":
        raise ValueError("only order TO (by time) can be honoured")
    args.pop("group_by", None)
    if args:
        raise ValueError(f"unknown entries {sorted(args)}")
    return "loo-full"  # RecBole does not mask seen items for sequential models


def _learner(value: Any) -> str:
    if str(value).lower() not in ("adam", "adamw"):
        raise ValueError("only adam and adamw can be honoured")
    return str(value).lower()


def _negatives(key: str, value: Any, loss: Any) -> int | None:
    """How many negatives a target gets, or None without sampling."""
    if value is not None and value not in ("None", {}) and not isinstance(value, dict):
        raise ValueError("it is no mapping")
    args = {} if _empty(value) else dict(value)
    if key == "neg_sampling" and args:  # the older form: {uniform: 1}
        args = {"distribution": next(iter(args)), "sample_num": args.pop(next(iter(args))), **args}
    if not args or args.get("distribution", "uniform") in (None, "None"):
        if loss == "BPR" and key == "train_neg_sample_args":
            raise ValueError("loss_type BPR needs negatives")
        return None
    if loss != "BPR":
        raise ValueError("only loss_type BPR takes negatives")
    if args.pop("distribution", "uniform") != "uniform":
        raise ValueError("only uniform negatives can be honoured")
    if args.pop("dynamic", False):
        raise ValueError("dynamic negatives cannot be honoured")
    number = args.pop("sample_num", 1)
    for without_effect in ("alpha", "candidate_num"):  # of popularity and of dynamic sampling
        args.pop(without_effect, None)
    if args:
        raise ValueError(f"unknown entries {sorted(args)}")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError("sample_num is no count")
    return number


def _unless(usual: str) -> Callable[[Any], str | None]:
    """A reader's option, or None where RecBole's value is what the reader takes anyway."""

    def option(value: Any) -> str | None:
        if not isinstance(value, str) or not value:
            raise ValueError("it is no name")
        return None if value == usual else value

    return option


CONVERTED: dict[str, tuple[str | None, Callable[[Any], Any]]] = {
    "model": ("model.name", lambda value: MODELS[str(value)]),
    "dataset": ("dataset.name", str),
    "loss_type": ("model.loss.name", lambda value: LOSSES[str(value)]),
    "learner": ("optimizer.name", _learner),
    "topk": ("evaluation.ks", lambda value: [value] if isinstance(value, int) else list(value)),
    "user_inter_num_interval": ("dataset.min_user_events", _filter),
    "item_inter_num_interval": ("dataset.min_item_events", _filter),
    "eval_args": ("evaluation.protocol", _protocol),
    "USER_ID_FIELD": ("dataset.options.user", _unless("user_id")),
    "ITEM_ID_FIELD": ("dataset.options.item", _unless("item_id")),
    "RATING_FIELD": ("dataset.options.rating", _unless("rating")),
    "TIME_FIELD": ("dataset.options.timestamp", _unless("timestamp")),
    "TIMESTAMP_FIELD": ("dataset.options.timestamp", _unless("timestamp")),
    "field_separator": ("dataset.options.separator", _unless("\t")),
    "val_interval": (None, _no_value_filter),
    "rm_dup_inter": (None, _no_deduplication),
}


def is_recbole_config(path: Path) -> bool:
    """Whether the YAML file is written in RecBole's keys rather than in this project's."""
    keys = set(read_yaml(path).values)
    marks = {
        "hidden_size",
        "train_batch_size",
        "MAX_ITEM_LIST_LENGTH",
        "USER_ID_FIELD",
        "loss_type",
        "eval_args",
        "stopping_step",
    }
    return bool(keys & marks) and "loader" not in keys


def translate(path: Path) -> tuple[Layered, list[str]]:
    """The values of a RecBole file as a recipe's, and a line for each key that is not used.

    Raises:
        ConfigError: a key that RecBole or this project does not know, or a value that cannot be honoured, with
        file:line.
    """
    source, target, notes = read_yaml(path), Layered(), []
    target.put(("name",), path.stem, str(path))
    for key, value in source.values.items():
        origin = source.origin((key,))
        try:
            known = _put(target, source, key, value, origin)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"'{key}: {value}' cannot be honoured: {error}", where=origin) from error
        if not known:
            notes.append(f"{origin}: '{key}' is not used: {_REASON[key]}")
    if "data_path" in source.values:
        notes += _put_file(target, source)
    target.put(("loader", "windows"), "all", str(path))
    if "model" not in source.values:
        target.put(("model", "name"), "ss4rec-official", str(path))
    return target, notes


def _put(target: Layered, source: Layered, key: str, value: Any, origin: str) -> bool:
    """Write what ``key`` says into ``target``; False for a key that changes nothing.

    Raises:
        ConfigError: a key that RecBole or this project does not know.
        ValueError: a value that cannot be honoured (KeyError and TypeError, too).
    """
    if key in SAME:
        target.put(_path(SAME[key]), value, origin)
    elif key in CONVERTED:
        name, convert = CONVERTED[key]
        converted = convert(value)
        if name is not None and converted is not None:
            target.put(_path(name), converted, origin)
    elif key in SAMPLING:
        number = _negatives(key, value, source.values.get("loss_type"))
        if number is not None:
            target.put(("model", "loss", "num_negatives"), number, origin)
    elif key == "train_batch_size":  # counts targets: there every prefix is a row with one target
        target.put(("loader", "batch"), "tokens", origin)
        target.put(("loader", "tokens_per_batch"), value, origin)
    elif key == "d_H":
        if value != source.values.get("hidden_size", 64):
            raise ValueError("d_H must equal hidden_size: S5 stands in the residual stream")
    elif key not in _REASON and key != "data_path":  # that one is looked at when the dataset's name is known
        known = [*SAME, *CONVERTED, *SAMPLING, *_REASON, "train_batch_size", "d_H", "data_path"]
        raise ConfigError(f"unknown RecBole key '{key}'", where=origin, fix=nearest(key, known))
    return key not in _REASON


def _put_file(target: Layered, source: Layered) -> list[str]:
    """The ``.inter`` file below ``data_path`` as the dataset; a note where there is none, and the name decides."""
    folder, name, origin = source.values["data_path"], source.values.get("dataset"), source.origin(("data_path",))
    if not _empty(folder) and name is not None:
        for file in (Path(str(folder)) / str(name) / f"{name}.inter", Path(str(folder)) / f"{name}.inter"):
            if file.is_file():
                target.put(("dataset", "name"), str(file), origin)
                return []
    return [f"{origin}: 'data_path' is not used: there is no {name or 'DATASET'}.inter in it"]


def _path(dotted: str) -> KeyPath:
    return tuple(dotted.split("."))
