"""The front door's flags: which the supervisor takes for itself, which training sees; mistakes before any set-up."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ConfigError, nearest

# A test compares the first two with the command line's own, so that a flag which it gains is known here.
TRAINING_SWITCHES = (
    "--quickstart",
    "--test-ml1m",
    "--test-ml20m",
    "--production",
    "--debug",
    "--no-wandb",
    "--force",
    "--dry-run",
)
TRAINING_VALUES = (
    "--config",
    "--model",
    "--dataset",
    "--engine",
    "--set",
    "--resume",
    "--max-hours",
    "--max-cost",
    "--price-per-hour",
)
POD_SWITCHES = ("--stop-pod-when-done", "--no-setup")
POD_VALUES = ("--webhook", "--idle-minutes")
LAUNCH_VALUES = ("--processes", "--nodes", "--node-rank", "--rendezvous", "--max-restarts")
RECIPE_FLAGS = {
    "--quickstart": "quickstart",
    "--test-ml1m": "ml1m",
    "--test-ml20m": "ml20m",
    "--production": "production",
}


@dataclass(frozen=True)
class Flags:
    """What the front door was given, before anything is installed.

    Attributes:
        training: the arguments that go on to training, as they stood.
        switches: flags without a value that were given.
        values: the last value of each flag that takes one.
        sets: ``--set`` keys and values, the last of each key.
        launch: arguments of entrypoints/launch.sh; empty for one process.
    """

    training: tuple[str, ...]
    switches: frozenset[str]
    values: Mapping[str, str]
    sets: Mapping[str, str]
    launch: tuple[str, ...]

    @property
    def dry_run(self) -> bool:
        """Only say what would run."""
        return "--dry-run" in self.switches

    @property
    def stop_pod(self) -> bool:
        """Stop the pod at the end, whatever the end is."""
        return "--stop-pod-when-done" in self.switches

    @property
    def first_node(self) -> bool:
        """Whether this is the only node, or the one of several that writes the run and counts its cost."""
        return int(self.values.get("--node-rank", "0")) == 0

    @property
    def recipe(self) -> str:
        """Name of the shipped recipe, or path of the ``--config`` file, that these flags mean."""
        if "--config" in self.values:
            return self.values["--config"]
        named = [recipe for flag, recipe in RECIPE_FLAGS.items() if flag in self.switches]
        return named[0] if named else "train" if {"--model", "--dataset"} & self.values.keys() else "quickstart"

    @property
    def job(self) -> str:
        """A name for what is run, the same on every resume: the recipe with the model and data put in its place."""
        if "name" in self.sets:
            return self.sets["name"]
        own = [self.values[flag] for flag in ("--engine", "--model", "--dataset") if flag in self.values]
        first = [] if self.recipe == "train" else [Path(self.recipe).stem]
        return "-".join([*first, *own])

    @property
    def max_cost(self) -> float | None:
        """The spend cap, from its flag or from ``--set guards.max_cost``."""
        return self._number("--max-cost", "guards.max_cost")

    @property
    def price_per_hour(self) -> float | None:
        """What the machine costs, from its flag or from ``--set guards.price_per_hour``."""
        return self._number("--price-per-hour", "guards.price_per_hour")

    def _number(self, flag: str, key: str) -> float | None:
        if key in self.sets:  # as in training: a --set lies on top of a flag
            text = self.sets[key]
            return None if text.lower() in ("null", "~", "") else positive(text, f"--set {key}")
        return positive(self.values[flag], flag) if flag in self.values else None


def wants_stop(arguments: Sequence[str]) -> bool:
    """Whether these arguments, understood or not, mean ``--stop-pod-when-done``: mistyped, or with a value, as well."""
    if any(argument.partition("=")[0] == "--dry-run" for argument in arguments):
        return False
    return any(re.match(r"[-\u2013\u2014]+stop[-_ ]?pod", argument, re.IGNORECASE) for argument in arguments)


def positive(text: str, where: str, *, zero: bool = False) -> float:
    """A number above zero, or not below it.

    Raises:
        ConfigError: something else, named with ``where``.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        what = "zero or a positive number" if zero else "a positive number"
        raise ConfigError(f"'{text}' is not {what}", where=where)
    return value


def parse(arguments: Sequence[str]) -> Flags:
    """Sort the front door's arguments.

    Raises:
        ConfigError: an unknown flag (with the nearest), one without its value, a value where none is taken, an argument
            that is no flag, flags that name two recipes, or processes and nodes that make no sense.
    """
    training: list[str] = []
    launch: list[str] = []
    switches: set[str] = set()
    values: dict[str, str] = {}
    sets: dict[str, str] = {}
    left = list(arguments)
    while left:
        name, equals, value = left.pop(0).partition("=")
        own = training if name in TRAINING_SWITCHES + TRAINING_VALUES else launch if name in LAUNCH_VALUES else []
        if name in TRAINING_SWITCHES + POD_SWITCHES:
            if equals:
                raise ConfigError(f"'{name}' takes no value")
            switches.add(name)
            own.append(name)
        elif name in TRAINING_VALUES + POD_VALUES + LAUNCH_VALUES:
            if not equals:
                if not left:
                    raise ConfigError(f"Option '{name}' requires an argument")
                value = left.pop(0)
            values[name] = value
            own += [name, value]
            if name == "--set":
                key, _, text = value.partition("=")
                sets[key] = text
        else:
            raise _unknown(name)
    flags = Flags(tuple(training), frozenset(switches), values, sets, tuple(launch))
    _check_recipe_flags(flags)
    _check_launch(values)
    return flags


def _unknown(name: str) -> ConfigError:
    if name.startswith("-"):
        known = (*TRAINING_SWITCHES, *TRAINING_VALUES, *POD_SWITCHES, *POD_VALUES, *LAUNCH_VALUES, "--help")
        return ConfigError(f"unknown flag '{name}'", fix=nearest(name, known))
    fix = "give a recipe by its flag, or --config FILE; see --help"
    return ConfigError(f"'{name}' is no flag", fix=fix)


def _check_recipe_flags(flags: Flags) -> None:
    chosen = [flag for flag in RECIPE_FLAGS if flag in flags.switches]
    chosen += ["--config"] if "--config" in flags.values else []
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} name different recipes", fix="give one of them")


def _check_launch(values: Mapping[str, str]) -> None:
    for flag in ("--processes", "--nodes", "--node-rank", "--max-restarts"):
        least = 0 if flag in ("--node-rank", "--max-restarts") else 1
        text = values.get(flag)
        if text is None or (flag == "--processes" and text == "auto"):
            continue
        if not text.isdecimal() or int(text) < least:
            raise ConfigError(f"'{text}' is not a whole number from {least} up", where=flag)
    nodes = int(values.get("--nodes", "1"))
    if int(values.get("--node-rank", "0")) >= nodes:
        raise ConfigError(f"there are {nodes} nodes, numbered from 0", where="--node-rank", fix="give --nodes as well")
    if nodes > 1 and not {"--node-rank", "--rendezvous"} <= values.keys():
        fix = "give --node-rank R and --rendezvous HOST:PORT of the first node"
        raise ConfigError("several nodes must find each other", where="--nodes", fix=fix)
    if "--rendezvous" in values and not re.fullmatch(r"\S+:\d+", values["--rendezvous"]):
        raise ConfigError(f"'{values['--rendezvous']}' is not HOST:PORT", where="--rendezvous")
