"""The flags of the SASRec family's reference scripts, as a recipe of this project.

A flag that changes no number here is named as not used; one that would is translated or refused by name.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pipelines.config_files import Layered
from pipelines.data.datasets import load_dataset_spec
from pipelines.errors import ConfigError, RecPodError, nearest

COMMANDS = {"main": 10, "main_distributed": 20}
"""The scripts, and the epochs between their validations."""
SWITCH = "switch"


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return text.lower() == "true"


# Name -> (type, default); a switch takes no value.
FLAGS: dict[str, tuple[Any, Any]] = {
    "dataset": (str, None),
    "train_dir": (str, None),
    "batch_size": (int, 128),
    "lr": (float, 0.001),
    "lr_decay_step": (int, 1000),
    "lr_decay_rate": (float, 0.95),
    "warmup_steps": (int, 100),
    "maxlen": (int, 200),
    "hidden_units": (int, 50),
    "num_blocks": (int, 2),
    "num_epochs": (int, 1000),
    "num_heads": (int, 2),
    "dropout_rate": (float, 0.2),
    "l2_emb": (float, 0.0),
    "device": (str, "auto"),
    "inference_only": (_truth, False),
    "state_dict_path": (str, None),
    "norm_first": (SWITCH, False),
    "num_workers": (int, 3),
    "no_time": (SWITCH, False),
    "use_time": (SWITCH, False),
    "no_mhc": (SWITCH, False),
    "mhc_expansion_rate": (int, 4),
    "mhc_init_gate": (float, 0.01),
    "mhc_sinkhorn_iter": (int, 20),
    "mhc_no_amp": (SWITCH, False),
    "use_amp": (SWITCH, False),
    "time_span": (int, 100),
    "time_unit": (str, "hour"),
    "gradient_accumulation_steps": (int, 1),
    "multi_gpu": (SWITCH, False),
    "backend": (str, "nccl"),
    "master_port": (int, 29500),
    "local_rank": (int, 0),
    "resume": (str, "auto"),  # this project's own
}

# Flag -> this project's key, where the value is taken as it is.
SAME = {
    "batch_size": "loader.rows_per_batch",
    "lr": "optimizer.lr",
    "lr_decay_step": "optimizer.decay_epochs",
    "lr_decay_rate": "optimizer.decay_rate",
    "warmup_steps": "optimizer.warmup_steps",
    "l2_emb": "optimizer.item_l2",
    "hidden_units": "model.hidden",
    "num_blocks": "model.blocks",
    "num_heads": "model.heads",
    "dropout_rate": "model.dropout",
    "num_epochs": "training.epochs",
    "gradient_accumulation_steps": "training.accumulate",
    "device": "device",
}
_OF_TIME = {"time_span": "model.time_span", "time_unit": "model.time_unit"}
_OF_MHC = {
    "mhc_expansion_rate": "model.mhc_expansion_rate",
    "mhc_init_gate": "model.mhc_init_gate",
    "mhc_sinkhorn_iter": "model.mhc_sinkhorn_iterations",
}


@dataclass(frozen=True)
class Command:
    """A reference command line.

    Attributes:
        script: ``main`` or ``main_distributed``.
        values: every flag, defaults filled in.
        given: the flags that were written.
    """

    script: str
    values: dict[str, Any]
    given: frozenset[str]

    def __getattr__(self, name: str) -> Any:
        """The value of the flag ``name``."""
        if name not in FLAGS:
            raise AttributeError(name)
        return self.values[name]

    @property
    def name(self) -> str:
        """``DATASET_TRAINDIR``: the folder that the scripts write to, and the run's name."""
        return f"{Path(self.dataset).name.split('.')[0]}_{self.train_dir}"

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return Path(self.name)

    def args_text(self) -> str:
        """``args.txt``: a line ``flag,value`` each, in the order of the alphabet."""
        own = {name: value for name, value in self.values.items() if name != "resume"}
        return "\n".join(f"{name},{value}" for name, value in sorted(own.items()))


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would print and exit."""

    def error(self, message: str) -> NoReturn:
        """An unknown flag with the nearest one, or what is wrong with a value."""
        _, unknown, flags = message.partition("unrecognized arguments: ")
        if unknown:
            flag = flags.split()[0].partition("=")[0]
            raise ConfigError(f"unknown flag '{flag}'", fix=nearest(flag, self._option_string_actions))
        raise ConfigError(message.removeprefix("argument "))


def parse(arguments: Sequence[str]) -> Command:
    """The command line ``SCRIPT [FLAG...]``.

    Raises:
        ConfigError: no script, an unknown flag, a value of another type, ``--dataset`` or ``--train_dir`` missing.
    """
    script = arguments[0].removesuffix(".py") if arguments else ""
    if script not in COMMANDS:
        what = f"unknown script '{script}'" if script else "no script is named"
        if script:
            raise ConfigError(what, fix=nearest(script, [*COMMANDS, "convert_ml1m", "test_distributed"]))
        raise ConfigError(what, fix="python -m pipelines.compat.sasrec main|main_distributed --dataset=D --train_dir=T")
    parser = Parser(prog=f"python -m pipelines.compat.sasrec {script}", allow_abbrev=False)
    for name, (kind, default) in FLAGS.items():
        flags = [f"--{name}"] + (["--local-rank"] if name == "local_rank" else [])  # torch.distributed.launch's
        about = "required" if name in ("dataset", "train_dir") else f"default {default}"
        if kind is SWITCH:
            parser.add_argument(*flags, action="store_true", default=None)
        else:
            parser.add_argument(*flags, type=kind, default=None, help=about)
    found = {name: value for name, value in vars(parser.parse_args(arguments[1:])).items() if value is not None}
    command = Command(
        script, {name: found.get(name, default) for name, (_, default) in FLAGS.items()}, frozenset(found)
    )
    for name in ("dataset", "train_dir"):
        if not command.values[name]:
            raise ConfigError("is missing", where=f"--{name}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", command.name):
        raise ConfigError(
            f"'{command.name}' is no name of a folder", where="--train_dir", fix="use letters, digits . _ -"
        )
    return command


def translate(command: Command) -> tuple[Layered, list[str]]:
    """The command as a recipe, and a line for everything that a reader of its numbers ought to know.

    Raises:
        ConfigError: a flag that cannot be honoured, by name.
    """
    _refuse(command)
    layers = Layered()

    def put(key: str, value: Any, flag: str) -> None:
        layers.put(tuple(key.split(".")), value, f"--{flag}")

    put("name", command.name, "train_dir")
    put("runs", ".", "train_dir")
    put("dataset.name", _dataset(command.dataset), "dataset")
    put("model.name", "sasrec" if command.no_time else "tisasrec", "no_time")
    for flag, key in {**SAME, **({} if command.no_time else _OF_TIME), **({} if command.no_mhc else _OF_MHC)}.items():
        put(key, command.values[flag], flag)
    for key in ("loader.max_length", "model.max_length"):
        put(key, command.maxlen, "maxlen")
    put("model.mhc", not command.no_mhc, "no_mhc")
    put("model.norm", _norm(command), "norm_first")
    put("model.loss.name", "bce", "dataset")
    put("model.loss.num_negatives", 1, "dataset")
    put("model.loss.precision", "auto" if command.use_amp else "float32", "use_amp")
    put("optimizer.beta2", 0.98, "lr")
    put("optimizer.schedule", "exponential", "lr_decay_rate")
    put("training.precision", "auto" if command.use_amp else "float32", "use_amp")
    put("training.patience", 0, "num_epochs")
    put("training.eval_every", COMMANDS[command.script], "num_epochs")
    put("training.log_every", 1, "train_dir")
    put("evaluation.also", ["sampled-100"], "dataset")
    return layers, _notes(command)


def _norm(command: Command) -> str:
    if command.norm_first:
        return "pre"
    return "post" if command.no_time else "query"  # TiSASRec's own: Q = LN(x), and the residual is Q + attention


def _dataset(name: str) -> str:
    """``data/NAME.txt`` where the scripts look for it; else a data file, or one of this project's datasets.

    Raises:
        ConfigError: nothing of that name.
    """
    path = Path("data") / f"{name}.txt"
    if path.is_file():
        return str(path)
    try:
        load_dataset_spec(name)
    except RecPodError as error:
        raise ConfigError(f"there is no {path}, and {error.what}", where="--dataset", fix=error.fix) from error
    return name


def _refuse(command: Command) -> None:
    """Raise ConfigError for what cannot be honoured."""
    if command.no_time and command.use_time:
        raise ConfigError("contradicts --no_time", where="--use_time", fix="give one of them")
    if command.mhc_no_amp and command.use_amp and not command.no_mhc:
        what = "cannot be honoured with --use_amp: of the hyper-connections only the Sinkhorn iteration is float32"
        raise ConfigError(what, where="--mhc_no_amp", fix="leave one of them out")
    if command.no_time and {"time_span", "time_unit"} & command.given:
        flag = min({"time_span", "time_unit"} & command.given)
        raise ConfigError("has nothing to say with --no_time", where=f"--{flag}")
    if command.no_mhc and (useless := {*_OF_MHC, "mhc_no_amp"} & command.given):
        raise ConfigError("has nothing to say with --no_mhc", where=f"--{min(useless)}")
    if command.inference_only and command.state_dict_path is None:
        raise ConfigError("needs weights", where="--inference_only", fix="add --state_dict_path")
    if command.backend not in ("nccl", "gloo"):
        raise ConfigError(f"'{command.backend}' is neither nccl nor gloo", where="--backend")
    if "backend" in command.given and command.device.startswith("cpu" if command.backend == "nccl" else "cuda"):
        what = f"{command.backend} cannot be honoured on {command.device}: CPUs talk by gloo, GPUs by nccl"
        raise ConfigError(what, where="--backend", fix="leave it out")


def _notes(command: Command) -> list[str]:
    notes = [
        "ranking: the whole catalogue without seen items (loo-full-masked); among 100 negatives: metrics.json, also",
        "test: asked once, of the epoch that is best on validation; the scripts stop and choose by it",
        "negatives: uniform over the catalogue; the scripts draw again what the user has seen",
        "--batch_size is the total over all processes",
    ]
    if not command.no_time:
        unit = command.time_unit
        default = "" if "time_unit" in command.given else " (the default of the command line)"
        notes.append(
            f"--time_unit {unit}{default}: intervals are whole {unit}s, TiSASRec's scale per user does not apply"
        )
    if not command.no_mhc:
        notes.append(
            "mHC: streams through the whole depth, as in its paper; the scripts copy them anew in every sub-layer"
        )
    if command.use_amp:
        notes.append("--use_amp: bfloat16 on a GPU instead of float16, so without a scaler; on a CPU it has no effect")
    elif command.mhc_no_amp:
        notes.append("--mhc_no_amp is not used: without --use_amp everything is float32")
    for flag, why in (
        ("num_workers", "batches are slices of a file in memory"),
        ("master_port", "a free port is taken"),
        ("local_rank", "torchrun says it"),
        ("backend", "CPUs talk by gloo, GPUs by nccl"),
    ):
        if flag in command.given:
            notes.append(f"--{flag} is not used: {why}")
    return notes
