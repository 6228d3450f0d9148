"""What ``--state_dict_path`` is for: weights to be evaluated, or to go on training with."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from models.tasks import Retrieval
from pipelines import stages
from pipelines.compat.sasrec_flags import Command
from pipelines.compat.sasrec_padding import PaddedSASRec, PaddedTiSASRec
from pipelines.compat.sasrec_weights import PublicForm, convert, form_of, read_public, rows_of_items
from pipelines.config import RunConfig
from pipelines.config_files import Layered
from pipelines.errors import ConfigError
from pipelines.run_folder import RunFolder
from pipelines.training.checkpoint import checkpoint_steps, load_checkpoint, save_checkpoint
from pipelines.training.guards import Guards
from pipelines.training.optimizers import build_optimizer
from pipelines.training.state import TrainState, random_state

_WHERE = "--state_dict_path"


def adapt(command: Command, layers: Layered) -> list[str]:
    """Make the recipe fit public weights: their LayerNorm, their scale of time. Returns notes.

    A folder (a checkpoint of this project) needs nothing.

    Raises:
        ConfigError: the weights are of another model than the flags say.
        DataError: they are no weights of a public model.
    """
    path = Path(command.state_dict_path)
    if path.is_dir():
        return []
    form = form_of(read_public(path))
    _check_form(command, form)
    notes = [f"{_WHERE}: the weights do not tell the number of heads; --num_heads {command.num_heads} is taken"]
    if form.masked(command.maxlen):
        if command.norm_first:
            raise ConfigError("these weights have LayerNorm on the queries", where="--norm_first", fix="leave it out")
        layers.put(("model", "norm"), "query", _WHERE)
    if form.model == "tisasrec":
        if "time_unit" in command.given:
            raise ConfigError(
                "public TiSASRec weights know a scale per user alone", where="--time_unit", fix="leave it out"
            )
        layers.put(("model", "time_unit"), None, _WHERE)
        notes.append(f"{_WHERE}: intervals in TiSASRec's scale per user, as the weights were trained, not --time_unit")
    return notes


def _check_form(command: Command, form: PublicForm) -> None:
    fixes = {
        "--no_time": (form.model == "sasrec", command.no_time),
        "--no_mhc": (True, command.no_mhc),
        "--hidden_units": (form.hidden, command.hidden_units),
        "--num_blocks": (form.blocks, command.num_blocks),
    }
    if form.time_span is not None:
        fixes["--time_span"] = (form.time_span, command.time_span)
    for flag, (theirs, ours) in fixes.items():
        if theirs != ours:
            fix = f"give {flag} {theirs}" if type(theirs) is int else f"{'add' if theirs else 'leave out'} {flag}"
            raise ConfigError(f"the weights are of another model than {flag} says", where=_WHERE, fix=fix)


def weights(command: Command, prepared: stages.Prepared) -> tuple[dict[str, Tensor], PublicForm | None]:
    """The weights in this project's names; their form where they are public."""
    path = Path(command.state_dict_path)
    if path.is_dir():
        return load_checkpoint(path)["model"], None
    state = read_public(path)
    form = form_of(state)
    rows = rows_of_items(prepared.store, form)
    return convert(state, max_length=command.maxlen, item_rows=rows), form


def _take(task: Retrieval, state: dict[str, Tensor]) -> None:
    try:
        task.load_state_dict(state)
    except RuntimeError as error:
        what = "the weights do not fit the model and data of the command line"
        raise ConfigError(what, where=_WHERE, fix="give the flags that they were trained with") from error


def evaluate_weights(command: Command, config: RunConfig) -> dict[str, dict[str, float]]:
    """Test metrics of the weights under the recipe's protocols, by protocol.

    Public weights are asked as their own code does: rows padded to ``--maxlen``, padding taking part.
    """
    prepared = stages.prepare(config)
    state, form = weights(command, prepared)
    items, options, device = prepared.store.num_items, config.model_options(), stages.device_of(config)
    if form is None:
        task = stages.build_task(config, prepared)
    elif form.model == "tisasrec":
        task = PaddedTiSASRec(items, options).to(device)
    else:
        task = PaddedSASRec(items, options, masked=form.masked(command.maxlen)).to(device)
    _take(task, state)
    names = (config.evaluation.protocol, *config.evaluation.also)
    with torch.no_grad():
        return {
            name: stages.ask(config, prepared, task, "test", protocol=stages.protocol_of(config, name)).metrics
            for name in names
        }


def start_from(command: Command, config: RunConfig) -> bool:
    """Put the weights into the run's folder as its checkpoint 0, from which training goes on; False where one is.

    As in the scripts, the number after ``epoch=`` in the file's name is the epoch that they come from.

    Raises:
        ConfigError: that epoch is not before the last.
    """
    folder = RunFolder(config.folder)
    if checkpoint_steps(folder.checkpoints):
        return False
    match = re.search(r"epoch=(\d+)\.", Path(command.state_dict_path).name)
    epoch = int(match[1]) if match else 0
    if epoch >= command.num_epochs:
        what = f"the weights are of epoch {epoch}, --num_epochs {command.num_epochs} leaves nothing to train"
        raise ConfigError(what, where=_WHERE)
    prepared = stages.prepare(config)
    task = stages.build_task(config, prepared)
    _take(task, weights(command, prepared)[0])
    start = {
        "identity": stages.run_identity(config, prepared),
        "model": task.state_dict(),
        "optimizer": build_optimizer(task, config.optimizer).state_dict(),
        "state": asdict(TrainState(epoch=epoch)),
        "guards": Guards(config.guards).state(),
        "rng": [random_state(stages.device_of(config))],
        "tracker_ids": {},
        "provenance": [],
    }
    with folder.lock():
        save_checkpoint(folder.checkpoints, 0, start)
    return True
