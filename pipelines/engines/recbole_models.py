"""This project's models as RecBole's: classes that its trainer, its configuration files and its evaluator can use.

    from pipelines.engines.recbole_models import recbole_model, run_recbole
    run_recbole(model=recbole_model("sasrec"), dataset="ml-100k")       # or model="RecPodSASRec", or in a YAML file

RecBole makes every prefix of a history a padded row with one target. The rows are packed again before the model sees
them, so the model is the same; the speed is RecBole's. Options come from its own keys where it has one
(``hidden_size``, ``n_layers``, ``n_heads``, ``hidden_dropout_prob``, ``inner_size``, ``hidden_act``, ``loss_type``) if
a file or the caller sets it, and from ``recpod``, a mapping of this project's option names, which goes first. Its times
are float32: seconds since 1970 are rounded to 64 or 128 of them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import types
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from typing import Any

import torch
from torch import Tensor

from models.batch import Jagged, SequenceBatch
from models.losses import PopularitySampler
from models.registry import MODELS, build_model
from pipelines.config_files import Layered
from pipelines.engines.recbole_environment import load_recbole
from pipelines.engines.recbole_options import WITHOUT_COUNTERPART, activation, refusal
from pipelines.errors import ConfigError, nearest

# RecBole's key -> the option of ours that it means; the first that a model has.
KEYS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden",),
    "n_layers": ("blocks", "layers"),
    "num_layers": ("blocks", "layers"),
    "n_heads": ("heads",),
    "hidden_dropout_prob": ("dropout",),
    "dropout_prob": ("dropout",),
    "inner_size": ("feed_forward",),
    "hidden_act": ("activation",),
}
LOSSES = {"CE": "softmax", "BPR": "bpr"}
_PACKAGE = "recbole.model.sequential_recommender"  # where RecBole looks a sequential model up by its name


def run_recbole(model: Any = None, dataset: str | None = None, **arguments: Any) -> dict[str, Any]:
    """RecBole's ``run_recbole`` with this project's models among its own.

    Args:
        model: a class of :func:`recbole_model`, or a name: RecBole's, or ``RecPodSASRec`` and its like.
        dataset: as RecBole takes it.
        **arguments: ``config_file_list``, ``config_dict`` and the others of RecBole's.

    Returns:
        RecBole's result: best validation and test.
    """
    register()
    run = importlib.import_module("recbole.quick_start").run_recbole
    result: dict[str, Any] = run(model=model, dataset=dataset, **arguments)
    return result


def register() -> None:
    """Let RecBole find every model by its name; may be called any number of times."""
    for name in MODELS:
        recbole_model(name)


@functools.cache
def recbole_model(name: str) -> type[Any]:
    """The model ``name`` of the registry as a RecBole ``SequentialRecommender``, registered with RecBole.

    Raises:
        ConfigError: no such model.
        MachineError: RecBole is not installed.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model '{name}'", fix=nearest(name, MODELS))
    load_recbole()
    from recbole.model.abstract_recommender import SequentialRecommender
    from recbole.utils import InputType

    class_name = f"RecPod{getattr(MODELS[name].task, '__name__', name)}"
    module = types.ModuleType(f"{_PACKAGE}.{class_name.lower()}")
    module.__spec__ = ModuleSpec(module.__name__, loader=None)
    body = {
        "__doc__": f"{class_name.removeprefix('RecPod')} of this project.",
        "__module__": module.__name__,
        "model_name": name,
        "input_type": InputType.POINTWISE,
    }
    made = type(class_name, (_Methods, SequentialRecommender), body)
    setattr(module, class_name, made)
    sys.modules[module.__name__] = module
    return made


class _Methods:
    """What RecBole asks of a sequential model; the class that is made has RecBole's base behind it."""

    model_name: str
    USER_ID: str
    ITEM_ID: str
    ITEM_SEQ: str
    ITEM_SEQ_LEN: str
    n_items: int

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)  # type: ignore[call-arg]
        if config["train_neg_sample_args"]["distribution"] != "none":
            fix = "set train_neg_sample_args to None (~ in a file)"
            raise ConfigError(
                f"{type(self).__name__} draws its negatives itself", where="train_neg_sample_args", fix=fix
            )
        self.TIME = config["TIME_FIELD"]
        self.TIME_SEQ = self.TIME + config["LIST_SUFFIX"]
        self.task = build_model(self.model_name, self.n_items - 1, options_of(self.model_name, config))
        self.query_time = getattr(self.task, "query_time", "blind")
        self.task.popularity = PopularitySampler.from_counts(
            training_counts(dataset, self.ITEM_ID, config).to(config["device"])
        )

    def calculate_loss(self, interaction: Any) -> Tensor:
        """The mean loss of the batch's targets, one a row."""
        output = self.task.loss(self.batch(interaction, targets=interaction[self.ITEM_ID]))
        return output.sum / output.count

    def predict(self, interaction: Any) -> Tensor:
        """The score of each row's item, ``[B]``."""
        states = self.task.encode(self.batch(interaction))
        items, place = torch.unique(interaction[self.ITEM_ID], return_inverse=True)
        return self.task.score_block(states, items).gather(1, place[:, None]).squeeze(1)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """The scores of all items for each row, ``[B, n_items]``; column 0 is padding."""
        states = self.task.encode(self.batch(interaction))
        return self.task.score_block(states, torch.arange(self.n_items, device=states.device))

    def batch(self, interaction: Any, targets: Tensor | None = None) -> SequenceBatch:
        """RecBole's padded rows packed end to end.

        Args:
            interaction: items ``[B, L]``, left-aligned, lengths ``[B]``, times ``[B, L]`` and of the request ``[B]``.
            targets: ``[B]``, what follows each row's newest item; None without loss.

        Raises:
            ConfigError: the model reads times that the data do not hold.
        """
        items, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        packed = Jagged.from_padded(items, offsets).values
        wanted = torch.zeros_like(packed)
        if targets is not None:
            wanted[offsets[1:] - 1] = targets
        return SequenceBatch(
            offsets=offsets,
            items=packed,
            timestamps=Jagged.from_padded(self._times(interaction, self.TIME_SEQ), offsets).values,
            targets=wanted,
            request_time=self._times(interaction, self.TIME),
            user_index=interaction[self.USER_ID] if self.USER_ID in interaction else torch.zeros_like(lengths),
        )

    def _times(self, interaction: Any, field: str) -> Tensor:
        if field in interaction:
            return interaction[field].to(torch.int64)
        if field == self.TIME and self.query_time == "blind":
            return interaction[self.ITEM_SEQ_LEN].new_zeros(len(interaction))
        fix = "add the time field to load_col.inter"
        raise ConfigError(f"{type(self).__name__} reads '{field}', which is not loaded", where="load_col", fix=fix)


def options_of(name: str, config: Any) -> Any:
    """The options of the model ``name`` that a RecBole configuration means.

    Raises:
        ConfigError: an option that the model does not have, or a value that it does not take.
    """
    from pydantic import TypeAdapter, ValidationError

    options, given = MODELS[name].options, config.external_config_dict
    fields = {field.name for field in dataclasses.fields(options)}
    values: dict[str, Any] = {}
    if "max_length" in fields:
        values["max_length"] = config["MAX_ITEM_LIST_LENGTH"]
    for key, names in KEYS.items():
        found = [option for option in names if option in fields]
        if key in given and found:
            values[found[0]] = given[key] if key != "hidden_act" else _activation(given[key])
    if "heads" in fields:  # an attention model
        for key in WITHOUT_COUNTERPART:
            if key in given and (reason := refusal(key, given[key], given)):
                raise ConfigError(f"{given[key]} cannot be honoured: {reason}", where=key)
    if given.get("loss_type") is not None:
        if given["loss_type"] not in LOSSES:
            raise ConfigError(
                f"unknown loss '{given['loss_type']}'", where="loss_type", fix=nearest(str(given["loss_type"]), LOSSES)
            )
        values["loss"] = {"name": LOSSES[given["loss_type"]]}
    own = config["recpod"] or {}
    if not isinstance(own, Mapping):
        raise ConfigError(f"it is {own!r}, not a mapping of options", where="recpod")
    try:
        merged = Layered(dict(own)).over(Layered(values)).values  # leaf by leaf: `loss` keeps what it does not name
        return TypeAdapter(options).validate_python(merged)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(("recpod", *map(str, first["loc"])))
        raise ConfigError(first["msg"].removeprefix("Value error, "), where=where) from error


def _activation(value: Any) -> str:
    try:
        return activation(value)
    except ValueError as error:
        raise ConfigError(f"'{value}' cannot be honoured: {error}", where="hidden_act") from error


def training_counts(dataset: Any, item: str, config: Any) -> Tensor:
    """How often each item stands in RecBole's training rows, a user's first event included, ``[n_items]`` int64."""
    rows = dataset.inter_feat
    first = rows[item + config["LIST_SUFFIX"]][rows[config["ITEM_LIST_LENGTH_FIELD"]] == 1][:, 0]
    return torch.bincount(torch.cat([rows[item], first]), minlength=dataset.num(item))
