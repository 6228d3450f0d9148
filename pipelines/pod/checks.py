"""What is checked before any set-up or download: names, keys, driver, volume. A mistake is one line with its remedy."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from pipelines.errors import ConfigError, MachineError, nearest
from pipelines.machine import ROOT, missing_packages
from pipelines.pod.driver import check_driver
from pipelines.pod.environment import read_secret
from pipelines.pod.flags import Flags
from pipelines.pod.volume import Place, check_place

CONFIGS = ROOT / "configs"
_DATA_FILES = (".yaml", ".yml", ".csv", ".tsv", ".inter", ".parquet", ".txt", ".dat", ".zip", ".gz", ".data")
_WANDB_KEY = re.compile(r"([\w.]+-)?[\w-]{40,}|[\w-]+\.[\w-]+\.[\w-]+")  # a key with an own server's prefix, or a token


def check_start(flags: Flags, environ: Mapping[str, str], place: Place, *, contained: bool) -> list[str]:
    """Every check of the machine and of what was asked for, the cheap ones first; returns warnings.

    Raises:
        RecPodError: what will not work, before it costs anything.
    """
    check_names(flags)
    if "--no-setup" in flags.switches:
        check_packages()
    check_wandb_key(flags, environ)
    warnings = check_driver(flags, environ)
    warning = check_place(place, environ, contained=contained)
    return [*warnings, warning] if warning else warnings


def check_names(flags: Flags) -> None:
    """The recipe's file, the model and the dataset exist.

    Raises:
        ConfigError: one of them does not, with the nearest name.
    """
    if "--config" in flags.values and not Path(flags.values["--config"]).expanduser().is_file():
        fix = f"give a YAML file; the recipes of configs/runs are {', '.join(recipe_names())}"
        raise ConfigError("no such file", where=f"--config {flags.values['--config']}", fix=fix)
    model, dataset = flags.values.get("--model"), flags.values.get("--dataset")
    if model is not None and model not in model_names():
        raise ConfigError(f"unknown model '{model}'", where="--model", fix=nearest(model, model_names()))
    if dataset is None:
        return
    if Path(dataset).suffix in _DATA_FILES or "/" in dataset:
        if not Path(dataset).expanduser().exists():
            raise ConfigError("no such data file", where=f"--dataset {dataset}", fix="check the path")
    elif dataset not in dataset_names() and not Path(dataset).is_file():
        raise ConfigError(f"unknown dataset '{dataset}'", where="--dataset", fix=nearest(dataset, dataset_names()))


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in (CONFIGS / "runs").glob("*.yaml"))


def model_names() -> list[str]:
    """The models that a recipe may name: each has a file."""
    return sorted(path.stem for path in (CONFIGS / "models").glob("*.yaml"))


def dataset_names() -> list[str]:
    """Names and aliases of configs/datasets, read without a YAML parser, which a bare Python has not."""
    names = set()
    for path in (CONFIGS / "datasets").glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        names |= {path.stem, *re.findall(r"^name:\s*(\S+)", text, flags=re.MULTILINE)}
        for listed in re.findall(r"^aliases:\s*\[(.*?)\]", text, flags=re.MULTILINE):
            names |= {name.strip(" '\"") for name in listed.split(",")} - {""}
    return sorted(names)


def check_packages() -> None:
    """This Python has the core packages, when nothing may be installed.

    Raises:
        MachineError: some are missing.
    """
    missing = missing_packages()
    if missing:
        what = f"{sys.executable} lacks {', '.join(missing)}"
        raise MachineError(what, where="--no-setup", fix="Leave --no-setup away, or install them")


def check_wandb_key(flags: Flags, environ: Mapping[str, str]) -> None:
    """The form of W&B's key, where one is given and used; the tracker would refuse it after set-up and preparation.

    Raises:
        ConfigError: it cannot be a key. It is not shown.
    """
    if "--no-wandb" in flags.switches or flags.sets.get("tracking.wandb") in ("off", "offline"):
        return
    key = read_secret("WANDB_API_KEY", environ)
    if key is not None and not _WANDB_KEY.fullmatch(key):
        fix = "copy it anew from wandb.ai/authorize, or give --no-wandb"
        raise ConfigError("not a W&B key (it is not shown)", where="WANDB_API_KEY", fix=fix)
