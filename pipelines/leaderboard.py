"""The leaderboard: recipes x seeds, one after another, one JSON a run, and a table of them that can be made again.

Each run is a process of its own, ``recpod run RECIPE`` with another seed and name, so that none pays for another's time
or memory. A run whose file is there is not run again; one that was stopped goes on where it stood. Runs that were
trained elsewhere are collected from their folders. The tables: :mod:`pipelines.evaluation.leaderboard_table`.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.config import RunConfig, load_config, recipes
from pipelines.engines.recbole_unused import used_values
from pipelines.errors import ConfigError, RunError
from pipelines.evaluation.compare import find_run
from pipelines.evaluation.leaderboard_table import NOTE, read_records, tables
from pipelines.finished_run import configuration_of, digest, settings_digest
from pipelines.run_folder import ROOT, RunFolder, read_json, write_json, write_text
from pipelines.runbook import GATE_MISSED
from pipelines.training.signals import Interrupted
from pipelines.training.tracking import without_secrets

FOLDER = Path("benchmarks/results/leaderboard")
TABLE = "leaderboard.md"
SEEDS = "1,2,3"
_KEPT = ("model", "test", "valid", "intervals", "baselines", "protocol", "gate", "training", "code")

Load = Callable[[str, list[str]], RunConfig]
Start = Callable[[list[str]], int]


@dataclass(frozen=True)
class Entry:
    """One run of the grid.

    Attributes:
        recipe: as it was given.
        sets: ``--set`` values that make it this run.
        config: the configuration that they give.
        file: where its result goes.
    """

    recipe: str
    sets: list[str]
    config: RunConfig
    file: Path

    @property
    def identity(self) -> str:
        """Digest of what decides the run's numbers, its machine and code apart."""
        return digest(self.config)

    @property
    def settings(self) -> str:
        """The same without the seed: runs that share it are the seeds of one row."""
        return settings_digest(self.config)


def leaderboard(
    names: Sequence[str],
    seeds: Sequence[int],
    sets: Sequence[str],
    *,
    load: Load,
    folder: Path,
    console: Console,
    start: Start | None = None,
) -> int:
    """Run what is not there yet and write the table.

    Args:
        names: recipes' names or files.
        seeds: each recipe is run with each of them.
        sets: ``key=value`` for all runs.
        load: makes the configuration of a recipe and overrides.
        folder: of the results and the table.
        console: says what runs.
        start: runs ``recpod`` with arguments and gives its exit code; by default in a process of its own.

    Returns:
        0; gates decide nothing here.

    Raises:
        RunError: a run has ended with a mistake, or a result is one of another configuration.
        Interrupted: a run was stopped and is saved.
    """
    # Every recipe has one seed before any has two.
    entries = [plan(recipe, seed, sets, load, folder) for seed in seeds for recipe in names]
    if len({entry.file for entry in entries}) < len(entries):
        raise ConfigError("two of the runs have one name", where="leaderboard", fix="give each recipe its own `name`")
    waiting = [entry for entry in entries if not is_finished(entry)]
    console.print(f"{len(entries)} runs, {len(entries) - len(waiting)} of them finished")
    for entry in waiting:
        console.print(f"[bold]{entry.file.stem}[/]: {entry.recipe}, seed {entry.config.seed}")
        arguments = ["run", entry.recipe, *(part for text in entry.sets for part in ("--set", text))]
        code = (start or in_a_process)(arguments)
        if code == Interrupted.exit_code:
            raise Interrupted(f"stopped during {entry.file.stem}")
        if code not in (0, GATE_MISSED):
            what = f"the run has ended with exit code {code}"
            raise RunError(what, where=entry.file.stem, fix="mend it and start the same command again")
        command = f"recpod run {' '.join(_plain(text) for text in arguments[1:])}"
        write_json(entry.file, record(entry, RunFolder(entry.config.folder), command))
        write_table(folder)
    console.print(f"table: {write_table(folder)}")
    return 0


def parse_seeds(text: str) -> list[int]:
    """``1,2,3`` as numbers.

    Raises:
        ConfigError: something else, or a seed twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise ConfigError(
            f"'{text}' is not a list of different whole numbers", where="--seeds", fix="give --seeds 1,2,3"
        )
    return [int(part) for part in parts]


def plan(recipe: str, seed: int, sets: Sequence[str], load: Load, folder: Path) -> Entry:
    """The run of ``recipe`` with ``seed``."""
    name = load(recipe, list(sets)).name
    own = [*sets, f"seed={seed}", f"name={name}-seed-{seed}"]
    config = load(recipe, own)
    return Entry(recipe, own, config, folder / f"{config.folder.name}.json")


def is_finished(entry: Entry) -> bool:
    """Whether the run's result is there.

    Raises:
        RunError: there is one of another configuration.
    """
    found = read_json(entry.file)
    if found and found.get("identity") != entry.identity:
        fix = "delete it and its run's folder, or give the recipe another name"
        raise RunError("this result is of another configuration", where=str(entry.file), fix=fix)
    return bool(found)


def in_a_process(arguments: list[str]) -> int:
    """``recpod`` with ``arguments``; a signal that stops this process is passed on and waited for."""
    # In a session of its own: else Ctrl-C would reach it beside the signal below, and a second one cuts short.
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    command = [sys.executable, "-m", "pipelines", *arguments]
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, start_new_session=True)
    try:
        return child.wait()
    except Interrupted:
        child.terminate()
        child.wait()
        raise


def collect(
    runs: Sequence[str], sets: Sequence[str], *, folder: Path, console: Console, seeds: str | None = None
) -> int:
    """Turn finished runs into results beside the grid's; nothing is trained.

    Args:
        runs: their folders (config.yaml, environment.json and metrics.json are read), or names in ``runs``.
        sets: must be empty: a finished run is what it is.
        folder: of the results and the table.
        console: says what was taken.
        seeds: must be None, for the same reason.

    Returns:
        0.

    Raises:
        ConfigError: there are ``sets`` or ``seeds``.
        RunError: a run that is not finished, or whose numbers are of another configuration than its config.yaml, or
            whose place another one has taken. Nothing was written then.
    """
    for flag, given in (("--set", sets), ("--seeds", seeds is not None)):
        if given:
            raise ConfigError("finished runs are taken as they are", where=flag, fix="leave it away with --collect")
    found = _collected([find_run(name) for name in runs], folder)
    for run, file, values in found:
        write_json(file, values)
        console.print(f"{run.name}: {file}")
    console.print(f"table: {write_table(folder)}")
    return 0


def _collected(runs: Sequence[Path], folder: Path) -> list[tuple[Path, Path, dict[str, Any]]]:
    """Each run with its file and what goes there; all of them are checked before the first is written.

    Raises:
        RunError: see :func:`collect`.
    """
    found: list[tuple[Path, Path, dict[str, Any]]] = []
    taken = {(one["settings"], one["seed"]): folder / one["file"] for one in read_records(folder)}
    for run in runs:
        config = _config_of(RunFolder(run))
        base = config.name.removesuffix(f"-seed-{config.seed}")
        named = config.model_copy(update={"name": f"{base}-seed-{config.seed}"})
        entry = Entry(config.recipe, [], config, folder / f"{named.folder.name}.json")
        is_finished(entry)
        other = next((earlier for earlier, file, _ in found if file == entry.file), None)
        if other is not None:
            fix = "collect one of them, or give them different names"
            raise RunError(f"its result would take the place of {other}'s", where=str(run), fix=fix)
        if (file := taken.setdefault((entry.settings, config.seed), entry.file)) != entry.file:
            what = f"{file.name} is a run of the same configuration and seed"
            raise RunError(what, where=str(run), fix="a seed counts once: collect one of the two")
        found.append((run, entry.file, record(entry, RunFolder(run), command_of(config))))
    return found


def _config_of(folder: RunFolder) -> RunConfig:
    """The configuration of a finished run.

    Raises:
        RunError: there is none, or the metrics are of another.
    """
    metrics = read_json(folder.metrics)
    config = configuration_of(folder, metrics) if metrics else None
    if config is None:
        raise RunError("this is no finished run (config.yaml and metrics.json)", where=str(folder.path))
    return config


def record(entry: Entry, folder: RunFolder, command: str) -> dict[str, Any]:
    """What is kept of a run.

    Raises:
        RunError: the run has left no metrics, or not all of them.
    """
    metrics, environment = read_json(folder.metrics), read_json(folder.environment)
    if missing := [key for key in _KEPT if key not in metrics]:
        raise RunError(f"metrics.json lacks '{missing[0]}'", where=str(folder.path), fix="evaluate the run again")
    config = entry.config
    return {
        "recipe": config.recipe,
        "name": config.name.removesuffix(f"-seed-{config.seed}"),
        "dataset": Path(config.dataset.name).name,
        "seed": config.seed,
        **{key: metrics[key] for key in _KEPT},
        **{key: metrics[key] for key in ("beyond_accuracy", "also") if metrics.get(key)},
        "command": command,
        "config": _anywhere(config),
        "machine": environment.get("machine"),
        "versions": environment.get("versions"),
        "commit": metrics["protocol"].get("commit"),
        "identity": entry.identity,
        "settings": entry.settings,
    }


def _anywhere(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration without what belongs to one machine."""
    values = without_secrets(used_values(config.resolved()))
    kept = {key: value for key, value in values.items() if key not in ("runs", "tracking", "debug")}
    kept["dataset"] = {key: value for key, value in values["dataset"].items() if key not in ("cache", "gdrive_id")}
    kept["dataset"]["name"] = _plain(kept["dataset"]["name"])
    return kept


def command_of(config: RunConfig) -> str:
    """The command that makes the run of a shipped recipe; for another file, its name and where its values stand."""
    if config.recipe not in recipes():
        return f"recpod run {config.recipe}.yaml, a file with the values under 'config'"
    given, shipped = (_flat(_anywhere(one)) for one in (config, load_config(config.recipe)))
    told = given.keys() - {"description"}
    unlike = {key: value for key, value in given.items() if key in told and shipped.get(key, ...) != value}
    sets = (f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in unlike.items())
    return " ".join([f"recpod run {config.recipe}", *sets])


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and value
        found |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def _plain(text: str) -> str:
    """An argument without the place of a file on this machine."""
    return Path(text).name if Path(text).is_absolute() else text


def write_table(folder: Path) -> Path:
    """Write the table of all results in ``folder`` beside them; its path."""
    path = folder / TABLE
    head = "# Leaderboard\n\nGenerated by `recpod leaderboard` from the files beside it."
    write_text(path, f"{head} {NOTE}\n\n{tables(read_records(folder), heading='##', files='')}\n")
    return path
