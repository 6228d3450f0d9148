"""RecBole's YAML keys, translated into a recipe.

A key that says how RecBole reads its files has no counterpart (the readers look at the header themselves) and is named
as not used; a key that would change the numbers is translated or refused, never dropped.
"""

from __future__ import annotations

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
    "the reader takes names and types from the file's header": (
        "USER_ID_FIELD ITEM_ID_FIELD TIME_FIELD RATING_FIELD TIMESTAMP_FIELD LIST_SUFFIX "
        "ITEM_LIST_LENGTH_FIELD load_col field_separator seq_separator NEG_PREFIX LABEL_FIELD POSITION_FIELD"
    ),
    "evaluation is batched by tokens": "eval_batch_size",
    "runs repeat bit by bit in any case": "reproducibility",
    "the log and the checkpoints are always kept": (
        "state show_progress save_dataset save_dataloaders log_wandb saved use_gpu gpu_id nproc worker"
    ),
    "the metrics are always HR, NDCG and MRR": "metrics",
    "larger is better for all of them": "valid_metric_bigger",
    "sequences are made by the sequence store": "alias_of_user_id alias_of_item_id rm_dup_inter val_interval data_path",
}
_REASON = {key: reason for reason, keys in NOT_USED.items() for key in keys.split()}


def _filter(value: Any) -> int | None:
    """``[5,inf)`` as the smallest count that stays."""
    text = str(value).strip()
    if value is None or text in ("", "None"):
        return None
    lower, _, upper = text.strip("[]()").partition(",")
    if upper.strip() not in ("inf", "Inf"):
        raise ValueError("only an interval that ends in 'inf' can be honoured")
    return int(float(lower)) + (1 if text.startswith("(") else 0)


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


def _no_sampling(value: Any) -> None:
    if value not in (None, "None", {}):
        distribution = dict(value).get("distribution", "uniform")
        if distribution != "uniform":
            raise ValueError("only uniform negatives can be honoured")


CONVERTED: dict[str, tuple[str | None, Callable[[Any], Any]]] = {
    "model": ("model.name", lambda value: MODELS[str(value)]),
    "dataset": ("dataset.name", str),
    "loss_type": ("model.loss.name", lambda value: LOSSES[str(value)]),
    "learner": ("optimizer.name", _learner),
    "topk": ("evaluation.ks", lambda value: [value] if isinstance(value, int) else list(value)),
    "user_inter_num_interval": ("dataset.min_user_events", _filter),
    "item_inter_num_interval": ("dataset.min_item_events", _filter),
    "eval_args": ("evaluation.protocol", _protocol),
    "train_neg_sample_args": (None, _no_sampling),
    "neg_sampling": (None, _no_sampling),
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
        if key in SAME:
            target.put(_path(SAME[key]), value, origin)
        elif key in CONVERTED:
            name, convert = CONVERTED[key]
            try:
                converted = convert(value)
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"'{key}: {value}' cannot be honoured: {error}", where=origin) from error
            if name is not None and converted is not None:
                target.put(_path(name), converted, origin)
        elif key == "train_batch_size":  # counts targets: there every prefix is a row with one target
            target.put(("loader", "batch"), "tokens", origin)
            target.put(("loader", "tokens_per_batch"), value, origin)
        elif key == "d_H":
            if value != source.values.get("hidden_size", 64):
                raise ConfigError("d_H must equal hidden_size: S5 stands in the residual stream", where=origin)
        elif key in _REASON:
            notes.append(f"{origin}: '{key}' is not used: {_REASON[key]}")
        else:
            known = [*SAME, *CONVERTED, *_REASON, "train_batch_size", "d_H"]
            raise ConfigError(f"unknown RecBole key '{key}'", where=origin, fix=nearest(key, known))
    target.put(("loader", "windows"), "all", str(path))
    if "model" not in source.values:
        target.put(("model", "name"), "ss4rec-official", str(path))
    return target, notes


def _path(dotted: str) -> KeyPath:
    return tuple(dotted.split("."))
