"""The leaderboard: recipes x seeds, one after another, one JSON a run, and a table of them that can be made again.

Each run is a process of its own, ``recpod run RECIPE`` with another seed and name, so that none pays for another's time
or memory. A run whose file is there is not run again; one that was stopped goes on where it stood.

A table holds numbers that were asked for in one way alone: the same data, catalogue, protocol and query time. Its
intervals are bootstrap intervals over the test queries of a single run, the ends averaged over the seeds; the spread is
the standard deviation between seeds.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console

from pipelines.config import RunConfig
from pipelines.errors import ConfigError, RunError
from pipelines.run_folder import ROOT, RunFolder, read_json, write_json, write_text
from pipelines.runbook import GATE_MISSED
from pipelines.training.signals import Interrupted

FOLDER = Path("benchmarks/results/leaderboard")
TABLE = "leaderboard.md"
METRICS = ("HR@10", "NDCG@10")
# What the protocol card says that must be equal inside a table, beside the dataset.
_ASKED = ("catalogue_items", "name", "query_time", "ranking", "masked", "ties", "test_queries", "split_digest")

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
        config = self.config
        values = config.resolved()
        parts = [config.identity(), values["engine"], values["evaluation"], values["training"], config.recipe]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def leaderboard(
    recipes: Sequence[str],
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
        recipes: names or files.
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
    entries = [plan(recipe, seed, sets, load, folder) for seed in seeds for recipe in recipes]
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
        write_json(entry.file, record(entry, arguments))
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


def record(entry: Entry, arguments: Sequence[str]) -> dict[str, Any]:
    """What is kept of a run.

    Raises:
        RunError: the run has left no metrics.
    """
    folder = RunFolder(entry.config.folder)
    metrics, environment = read_json(folder.metrics), read_json(folder.environment)
    if not metrics:
        raise RunError("the run has left no metrics.json", where=str(folder.path))
    return {
        "recipe": entry.config.recipe,
        "dataset": Path(entry.config.dataset.name).name,
        "model": metrics["model"],
        "seed": entry.config.seed,
        **{key: metrics[key] for key in ("test", "valid", "intervals", "baselines", "protocol", "gate", "training")},
        "command": f"recpod run {' '.join(_plain(text) for text in arguments[1:])}",
        "machine": environment.get("machine"),
        "versions": environment.get("versions"),
        "commit": metrics["protocol"].get("commit"),
        "code": metrics["code"],
        "identity": entry.identity,
    }


def _plain(text: str) -> str:
    """An argument without the place of a file on this machine."""
    return Path(text).name if Path(text).is_absolute() else text


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All results of ``folder``, by name.

    Raises:
        RunError: a file that is no result.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        found = read_json(path)
        missing = {"recipe", "dataset", "model", "seed", "test", "intervals", "baselines", "protocol"} - found.keys()
        if missing:
            raise RunError(f"this is no leaderboard result, it lacks '{min(missing)}'", where=str(path))
        records.append(found)
    return records


def write_table(folder: Path) -> Path:
    """Write the table of all results in ``folder`` beside them; its path."""
    path = folder / TABLE
    write_text(path, markdown(read_records(folder)))
    return path


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: one table for each way of asking, best NDCG@10 first, baselines of the same queries last."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in records:
        groups.setdefault(_asked(one), []).append(one)
    parts = ["# Leaderboard", "Generated by `recpod leaderboard` from the files beside it."]
    parts += [_table(groups[key]) for key in sorted(groups)]
    return "\n\n".join(parts) + "\n"


def _asked(one: dict[str, Any]) -> str:
    return json.dumps([one["dataset"], *(one["protocol"].get(field) for field in _ASKED)])


def _table(records: list[dict[str, Any]]) -> str:
    card = records[0]["protocol"]
    items, queries = card["catalogue_items"], card["test_queries"]
    title = f"{records[0]['dataset']} · {items:,} items · {card['name']} · query time {card['query_time']}"
    note = (
        f"{queries:,} test queries, ranking {card['ranking']}, split `{card['split_digest'][:12]}`. Mean over seeds ± "
        "standard deviation between them [95% bootstrap interval over queries of one run]."
    )
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in records:
        engine = f"{one['protocol']['engine']} " if "engine" in one["protocol"] else ""
        name = f"{one['recipe']} ({engine}{one['model']['name']})"
        rows.setdefault((name, json.dumps(one["model"], sort_keys=True)), []).append(one)
    ordered = sorted(rows.items(), key=lambda row: -mean(one["test"]["NDCG@10"] for one in row[1]))
    lines = [f"| {' | '.join(_row(name, runs))} |" for (name, _), runs in ordered]
    for name, found in records[0]["baselines"].items():
        lines.append(f"| *{name}* | - | {' | '.join(f'{found[metric]:.4f}' for metric in METRICS)} | - | - |")
    head = f"| recipe (model) | seeds | {' | '.join(METRICS)} | epochs | minutes |\n|---|---|---|---|---|---|"
    return f"## {title}\n\n{note}\n\n{head}\n" + "\n".join(lines)


def _row(name: str, runs: list[dict[str, Any]]) -> list[str]:
    """The cells of one recipe's runs."""
    cells = [name, ", ".join(str(seed) for seed in sorted(one["seed"] for one in runs))]
    for metric in METRICS:
        values = [one["test"][metric] for one in runs]
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        low, high = (mean(one["intervals"]["test"][metric][end] for one in runs) for end in (0, 1))
        cells.append(f"{mean(values):.4f}{spread} [{low:.4f}, {high:.4f}]")
    trained = [one.get("training", {}) for one in runs]
    cells.append(f"{mean(one.get('epochs', 0) for one in trained):.0f}")
    cells.append(f"{mean(one.get('seconds', 0) for one in trained) / 60:.1f}")
    return cells
