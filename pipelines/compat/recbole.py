"""RecBole's YAML keys, translated into a recipe, for this project's engine or for RecBole (``--engine recbole``).

A key that has no counterpart because it changes no number is named as not used; a key that would change the numbers is
translated or refused, never dropped. What a file leaves out has RecBole's default: its epochs, batch and early stopping
are those that RecBole would take. Data, split and counting go into the recipe with either engine; the keys of model and
optimiser become this project's options, or are RecBole's to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.compat import recbole_values as values
from pipelines.compat.recbole_forms import FORMS, Form, engine_options, form_of, put_model
from pipelines.config_files import KeyPath, Layered, parse_override, read_yaml
from pipelines.data.loader import LoaderOptions
from pipelines.engines import recbole_unused
from pipelines.errors import ConfigError, nearest

# RecBole's key -> this project's, and what becomes of the value; None as key: the value is checked, no more.
RECIPE: dict[str, tuple[str | None, Callable[[Any], Any]]] = {
    "dataset": ("dataset.name", str),
    "MAX_ITEM_LIST_LENGTH": ("loader.max_length", lambda value: value),
    "epochs": ("training.epochs", lambda value: value),
    "eval_step": ("training.eval_every", lambda value: value),
    "stopping_step": ("training.patience", values.patience),
    "seed": ("seed", lambda value: value),
    "wandb_project": ("tracking.project", lambda value: value),
    "checkpoint_dir": ("runs", lambda value: value),
    "use_gpu": ("device", values.device_of_use),
    "gpu_id": ("device", values.device_of_id),
    "topk": ("evaluation.ks", values.cut_offs),
    "metrics": (None, values.metrics),
    "user_inter_num_interval": ("dataset.min_user_events", values.least),
    "item_inter_num_interval": ("dataset.min_item_events", values.least),
    "eval_args": ("evaluation.protocol", values.protocol),
    "USER_ID_FIELD": ("dataset.options.user", values.unless("user_id")),
    "ITEM_ID_FIELD": ("dataset.options.item", values.unless("item_id")),
    "RATING_FIELD": ("dataset.options.rating", values.unless("rating")),
    "TIME_FIELD": ("dataset.options.timestamp", values.unless("timestamp")),
    "TIMESTAMP_FIELD": ("dataset.options.timestamp", values.unless("timestamp")),
    "field_separator": ("dataset.options.separator", values.unless("\t")),
    "valid_metric_bigger": (None, values.only(True, "larger is better for every metric here")),
    "val_interval": (None, values.only_empty("events are filtered by rating alone: use dataset.min_rating")),
    "threshold": (None, values.only_empty("events have no labels: use dataset.min_rating")),
    "rm_dup_inter": (None, values.only_empty("repeated events are kept: remove them from the file")),
    "benchmark_filename": (None, values.only_empty("the split is made here: give one file")),
    **dict.fromkeys(
        ("preload_weight", "normalize_field", "normalize_all", "discretization", "numerical_features"),
        (None, values.only_empty("only users, items, ratings and times are read")),
    ),
    "seq_len": (None, values.only_empty("histories have one length, MAX_ITEM_LIST_LENGTH")),
}
TRAINING: dict[str, tuple[str | None, Callable[[Any], Any]]] = {
    "train_batch_size": ("loader.tokens_per_batch", lambda value: value),  # targets: a prefix is a row with one there
    "learning_rate": ("optimizer.lr", lambda value: value),
    "weight_decay": ("optimizer.weight_decay", lambda value: value),
    "learner": ("optimizer.name", values.learner),
    "clip_grad_norm": ("training.grad_clip", values.clipping),
    "enable_amp": ("training.precision", values.precision),
    "loss_type": ("model.loss.name", values.loss),
    "shuffle": (None, values.only(True, "batches are drawn in random order")),
    "transform": (None, values.only_empty("histories are taken as they are")),
}
SAMPLING = ("train_neg_sample_args", "neg_sampling")
# Of RecBole's overall.yaml and sequential.yaml: what it takes where a file says nothing.
DEFAULTS: dict[str, Any] = {
    "MAX_ITEM_LIST_LENGTH": 50,
    "epochs": 300,
    "eval_step": 1,
    "stopping_step": 10,
    "seed": 2020,
    "topk": [10],
    "valid_metric": "MRR@10",
    "eval_args": {},
}
TRAINING_DEFAULTS = {"train_batch_size": 2048, "learning_rate": 0.001, "enable_amp": False, "loss_type": "CE"}

NOT_USED = {
    "the reader takes types from the file's header": (
        "LIST_SUFFIX ITEM_LIST_LENGTH_FIELD load_col unload_col unused_col seq_separator NEG_PREFIX LABEL_FIELD "
        "POSITION_FIELD additional_feat_suffix filter_inter_by_user_or_item"
    ),
    "evaluation is batched by tokens": "eval_batch_size",
    "full rankings draw no items": "repeatable",
    "runs repeat bit by bit in any case": "reproducibility",
    "numbers are kept whole": "loss_decimal_place metric_decimal_place",
    "bfloat16 needs no scaler": "enable_scaler",
    "it is part of a loss that these models do not have": "require_pow",
    "the log and the checkpoints are always kept": (
        "state show_progress save_dataset save_dataloaders dataset_save_path dataloaders_save_path log_wandb saved "
        "nproc worker"
    ),
    "sequences are made by the sequence store": "alias_of_user_id alias_of_item_id",
}
_REASON = {key: reason for reason, keys in NOT_USED.items() for key in keys.split()}
_ELSEWHERE = ("model", "valid_metric", "data_path", "recpod")
_BY_DEFAULT = "RecBole's default"


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


def asked_engine(sets: Sequence[str], layers: Layered | None) -> str:
    """Who is to train: what ``--engine`` or ``--set engine.name=`` says."""
    named = [value for text in sets for key, value in [parse_override(text)] if key == ("engine", "name")]
    above = layers.values.get("engine", {}).get("name") if layers else None
    return str(named[-1] if named else above or "recpod")


def translate(path: Path, engine: str = "recpod") -> tuple[Layered, list[str]]:
    """The values of a RecBole file as a recipe's, and a line for each key that is not used.

    Args:
        path: the file.
        engine: who trains: ``recpod`` or ``recbole``.

    Raises:
        ConfigError: a key that RecBole or this project does not know, or a value that cannot be honoured, with
        file:line.
        MachineError: RecBole is to train and is not installed.
    """
    source, target, notes = read_yaml(path), Layered(), []
    target.put(("name",), path.stem, str(path))
    form: Form = _checked(source, "model", lambda value: form_of(value or "SS4Rec", engine))
    theirs = engine == "recbole"
    for key in source.values:
        _check_known(source, key, form, theirs)
        if key in _REASON:
            notes.append(f"{source.origin((key,))}: '{key}' is not used: {_REASON[key]}")
    _put_table(target, source, RECIPE, DEFAULTS)
    select = _checked(source, "valid_metric", lambda value: values.selection(value, _value(source, "topk")))
    target.put(("training", "select"), select, _origin(source, "valid_metric"))
    if "data_path" in source.values:
        notes += _put_file(target, source)
    if form.model is not None:
        notes += _put_own(target, source, form)
    if theirs:
        _put_engine(target, source, form)
        _leave_to_recbole(target)
    return target, notes


def _put_own(target: Layered, source: Layered, form: Form) -> list[str]:
    """Model, loss, optimiser and batches as this project's options; lines for what is not used."""
    target.put(("model", "name"), form.model, _origin(source, "model"))
    _put_table(target, source, TRAINING, TRAINING_DEFAULTS)
    target.put(("loader", "batch"), "tokens", _origin(source, "train_batch_size"))
    target.put(("loader", "windows"), "all", "RecBole")
    if _value(source, "enable_amp") is False:
        target.put(("model", "loss", "precision"), "float32", _origin(source, "enable_amp"))
    loss = _value(source, "loss_type")
    for key in SAMPLING:
        if key in source.values:
            number = _checked(source, key, lambda value, key=key: values.negatives(key, value, loss))  # type: ignore[misc]
            if number is not None:
                target.put(("model", "loss", "num_negatives"), number, source.origin((key,)))
    if "max_length" in _options(form):
        target.put(
            ("model", "max_length"), _value(source, "MAX_ITEM_LIST_LENGTH"), _origin(source, "MAX_ITEM_LIST_LENGTH")
        )
    return put_model(target, source, form)


def _options(form: Form) -> set[str]:
    return {"max_length"} if form.model in ("sasrec", "tisasrec") else set()


def _put_engine(target: Layered, source: Layered, form: Form) -> None:
    """The keys that RecBole reads itself, as the engine's options."""
    target.put(("engine", "model"), form.engine, _origin(source, "model"))
    options: KeyPath = ("engine", "options")
    for key, value in source.values.items():
        if key in SAMPLING and not form.ours:  # this project's models draw their negatives themselves
            own = values.modern(key, value) or None
            target.put((*options, SAMPLING[0]), own, source.origin((key,)))
        elif key in (TRAINING.keys() - {"loss_type"} if form.ours else {*TRAINING, *form.keys}):
            target.put((*options, key), value, source.origin((key,)))
    if form.ours:
        target.put((*options, "recpod"), engine_options(target, form), _origin(source, "model"))


def _leave_to_recbole(target: Layered) -> None:
    """Take out what is the engine's options by now, and what the recipe below would say instead."""
    for section in ("model", "optimizer"):
        target.values.pop(section, None)
    target.put(("model",), None, "RecBole")
    length = target.values["loader"]["max_length"]
    target.values["loader"] = {**asdict(LoaderOptions()), "max_length": length}
    training = target.values["training"]
    target.values["training"] = {key: value for key, value in training.items() if key in recbole_unused.TRAINING}


def _check_known(source: Layered, key: str, form: Form, theirs: bool) -> None:
    """Refuse a key that neither RecBole nor the model knows.

    Raises:
        ConfigError: see above, with the nearest one.
    """
    elsewhere = _ELSEWHERE if form.model is not None else [name for name in _ELSEWHERE if name != "recpod"]
    known = {*RECIPE, *TRAINING, *SAMPLING, *_REASON, *elsewhere, *form.known}
    if key in known:
        return
    if key == "recpod":
        same = f"RecPod{form.engine}"
        fix = f"model: {same if same in FORMS else ' or '.join(name for name in FORMS if name.startswith('RecPod'))}"
        raise ConfigError("`recpod` is for this project's models", where=source.origin((key,)), fix=fix)
    models = [name for name, other in FORMS.items() if key in other.known and not name.startswith("RecPod")]
    owner = form.engine.removeprefix("RecPod") if form.model is not None or theirs else ""
    what = f"'{key}' is no key of {owner}, but of {models[0]}" if models else f"unknown RecBole key '{key}'"
    raise ConfigError(what, where=source.origin((key,)), fix=nearest(key, known))


def _put_table(
    target: Layered,
    source: Layered,
    table: dict[str, tuple[str | None, Callable[[Any], Any]]],
    defaults: dict[str, Any],
) -> None:
    """Write what the keys of ``table`` say, or RecBole's defaults, into ``target``."""
    for key, (name, convert) in table.items():
        if key in source.values or key in defaults:
            converted = _checked(source, key, convert)
            if name is not None and converted is not None:
                target.put(tuple(name.split(".")), converted, _origin(source, key))


def _checked(source: Layered, key: str, convert: Callable[[Any], Any]) -> Any:
    """``convert`` of the key's value, its refusal with file and line.

    Raises:
        ConfigError: the value cannot be honoured.
    """
    value = _value(source, key)
    try:
        return convert(value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"'{key}: {value}' cannot be honoured: {error}", where=_origin(source, key)) from error


def _value(source: Layered, key: str) -> Any:
    return source.values.get(key, DEFAULTS.get(key, TRAINING_DEFAULTS.get(key)))


def _origin(source: Layered, key: str) -> str:
    return source.origin((key,)) if key in source.values else _BY_DEFAULT


def _put_file(target: Layered, source: Layered) -> list[str]:
    """The ``.inter`` file below ``data_path`` as the dataset; a note where there is none, and the name decides."""
    folder, name, origin = source.values["data_path"], source.values.get("dataset"), source.origin(("data_path",))
    if not values.empty(folder) and name is not None:
        for file in (Path(str(folder)) / str(name) / f"{name}.inter", Path(str(folder)) / f"{name}.inter"):
            if file.is_file():
                target.put(("dataset", "name"), str(file), origin)
                return []
    return [f"{origin}: 'data_path' is not used: there is no {name or 'DATASET'}.inter in it"]
