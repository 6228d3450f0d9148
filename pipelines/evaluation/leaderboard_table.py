"""The leaderboard's tables, made from its result files: one JSON a run, see :mod:`pipelines.leaderboard`.

A table holds numbers that were asked for in one way alone: the same data, catalogue, protocol and query time. So models
that are told when they are asked stand in tables of their own, and models on another catalogue too. A row is a
configuration; its seeds are its runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pipelines.errors import RunError
from pipelines.evaluation.baselines import RECENT
from pipelines.run_folder import read_json

METRICS = ("HR@10", "NDCG@10")
# What the protocol card says that must be equal inside a table, beside the dataset.
_ASKED = ("catalogue_items", "name", "query_time", "ranking", "masked", "ties", "test_queries", "split_digest")
_KEYS = {"recipe", "dataset", "model", "seed", "test", "intervals", "baselines", "protocol", "settings", "name"}
NOTE = (
    "Mean over seeds ± standard deviation between them [95% bootstrap interval over the test queries of one run, its "
    "ends averaged over the seeds]. Rows of a table were asked the same questions about the same catalogue; whether "
    "two of them differ is for `recpod compare`, which pairs them query by query. Baselines stand below, in italics; "
    "one that is told when it is asked stands below models that are told it too, and nowhere else."
)

Record = dict[str, Any]


def read_records(folder: Path) -> list[Record]:
    """All results of ``folder``, by name of their files, which each gets as ``file``.

    Raises:
        RunError: a file that is no result, or two of one configuration and seed.
    """
    records: list[Record] = []
    taken: dict[tuple[str, int], str] = {}
    for path in sorted(folder.glob("*.json")):
        found = read_json(path)
        if missing := _KEYS - found.keys():
            raise RunError(f"this is no leaderboard result, it lacks '{min(missing)}'", where=str(path))
        other = taken.setdefault((found["settings"], found["seed"]), path.name)
        if other != path.name:
            what = f"{other} is a run of the same configuration and seed"
            raise RunError(what, where=str(path), fix="a seed counts once: delete one of the two")
        records.append({**found, "file": path.name})
    return records


def tables(records: Sequence[Record], *, heading: str, files: str) -> str:
    """Markdown: one table for each way of asking, best NDCG@10 first, baselines of the same queries last.

    Args:
        records: of :func:`read_records`.
        heading: what a table's title begins with, such as ``##``.
        files: where the results lie, seen from the page; ends with a slash, or is empty.
    """
    groups: dict[str, list[Record]] = {}
    for one in records:
        groups.setdefault(_asked(one), []).append(one)
    return "\n\n".join(_table(groups[key], heading, files) for key in sorted(groups))


def _asked(one: Record) -> str:
    return json.dumps([one["dataset"], *(one["protocol"].get(field) for field in _ASKED)])


def _table(records: list[Record], heading: str, files: str) -> str:
    card = records[0]["protocol"]
    items, queries, time = card["catalogue_items"], card["test_queries"], card["query_time"]
    title = f"{records[0]['dataset']} · {items:,} items · {card['name']} · query time {time}"
    note = f"{queries:,} test queries, ranking {card['ranking']}, masked: {card['masked']}; ties {card['ties']}; split "
    rows: dict[tuple[str, str], list[Record]] = {}
    for one in records:
        rows.setdefault((_label(one), one["settings"]), []).append(one)
    alike = Counter(label for label, _ in rows)
    ordered = sorted(rows.items(), key=lambda row: -mean(one["test"]["NDCG@10"] for one in row[1]))
    lines = []
    for (label, _), runs in ordered:
        shown = label if alike[label] == 1 else f"{label}, {runs[0]['name']}"
        lines.append(f"| {' | '.join(_row(shown, runs, files))} |")
    baselines = {name: found for one in records for name, found in one["baselines"].items()}  # of the same queries
    for name, found in baselines.items():
        if name != RECENT or time == "aware":  # it is told the time: among blind models it would be compared wrongly
            lines.append(f"| *{name}* | - | {' | '.join(f'{found[metric]:.4f}' for metric in METRICS)} | - | - |")
    head = f"| recipe (model) | seeds | {' | '.join(METRICS)} | epochs | minutes |\n|---|---|---|---|---|---|"
    return f"{heading} {title}\n\n{note}`{card['split_digest'][:12]}`.\n\n{head}\n" + "\n".join(lines)


def _label(one: Record) -> str:
    engine = f"{one['protocol']['engine']} " if "engine" in one["protocol"] else ""
    return f"{one['recipe']} ({engine}{one['model']['name']})"


def _row(label: str, runs: list[Record], files: str) -> list[str]:
    """The cells of one configuration's runs."""
    runs = sorted(runs, key=lambda one: int(one["seed"]))
    cells = [label, ", ".join(f"[{one['seed']}]({files}{one['file']})" for one in runs)]
    for metric in METRICS:
        values = [one["test"][metric] for one in runs]
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        low, high = (mean(one["intervals"]["test"][metric][end] for one in runs) for end in (0, 1))
        cells.append(f"{mean(values):.4f}{spread} [{low:.4f}, {high:.4f}]")
    trained = [one.get("training", {}) for one in runs]
    cells.append(f"{mean(one.get('epochs', 0) for one in trained):.0f}")
    cells.append(f"{mean(one.get('seconds', 0) for one in trained) / 60:.1f}")
    return cells
