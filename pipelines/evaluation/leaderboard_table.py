"""The leaderboard's tables, made from its result files: one JSON a run, see :mod:`pipelines.leaderboard`.

A table holds numbers that were asked for in one way alone: the same data, catalogue, protocol and query time. So models
that are told when they are asked stand in tables of their own, and models on another catalogue too. A row is a
configuration; its seeds are its runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pipelines.errors import RunError
from pipelines.evaluation.baselines import RECENT
from pipelines.run_folder import read_json

METRICS = ("HR@10", "NDCG@10")
RANKING_METRICS = ("AUC", "GAUC")
_RANKING = ("actions", "asked_events", "asked_at_most")
# What the protocol card says that must be equal inside a table, beside the dataset; the last of ranking models.
_ASKED = (
    "catalogue_items",
    "name",
    "query_time",
    "ranking",
    "masked",
    "ties",
    "test_queries",
    "split_digest",
    *_RANKING,
)
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
    """Markdown: one table for each way of asking, best NDCG@10 (ranking models: AUC) first, baselines last.

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


@dataclass(frozen=True)
class _Columns:
    """What a table shows of its runs.

    Attributes:
        metrics: each with its interval.
        parts: of them, by task, without.
        sort: rows stand by it, the best first.
        about: what was asked, beside the title.
    """

    metrics: tuple[str, ...]
    parts: tuple[str, ...]
    sort: str
    about: str


def _columns(records: list[Record]) -> _Columns:
    card = records[0]["protocol"]
    queries, ties, split = card["test_queries"], card["ties"], card["split_digest"][:12]
    if not card.get("actions"):
        about = f"{queries:,} test queries, ranking {card['ranking']}, masked: {card['masked']}; ties {ties}; "
        return _Columns(METRICS, (), "NDCG@10", f"{about}split `{split}`.")
    found = {metric for one in records for metric in one["test"]}
    tasks = [name for name in card["actions"]["names"] if f"AUC:{name}" in found]
    about = f"{queries:,} test users, asked about {card['asked_events']} (at most {card.get('asked_at_most')} events); "
    about += f"AUC of each of the {card['actions']['kind']} against the rest, and their mean; intervals over users; "
    about += f"ties {ties}; "
    return _Columns(RANKING_METRICS, tuple(f"AUC:{name}" for name in tasks), "AUC", f"{about}split `{split}`.")


def _table(records: list[Record], heading: str, files: str) -> str:
    card, columns = records[0]["protocol"], _columns(records)
    items, time = card["catalogue_items"], card["query_time"]
    title = f"{records[0]['dataset']} · {items:,} items · {card['name']} · query time {time}"
    rows: dict[tuple[str, str], list[Record]] = {}
    for one in records:
        rows.setdefault((_label(one), one["settings"]), []).append(one)
    alike = Counter(label for label, _ in rows)
    ordered = sorted(rows.items(), key=lambda row: -mean(one["test"][columns.sort] for one in row[1]))
    lines = []
    for (label, _), runs in ordered:
        shown = label if alike[label] == 1 else f"{label}, {runs[0]['name']}"
        lines.append(f"| {' | '.join(_row(shown, runs, files, columns))} |")
    names = [*columns.metrics, *columns.parts]
    baselines = {name: found for one in records for name, found in one["baselines"].items()}  # of the same queries
    for name, found in baselines.items():
        if name != RECENT or time == "aware":  # it is told the time: among blind models it would be compared wrongly
            cells = (f"{found[metric]:.4f}" if metric in found else "-" for metric in names)
            lines.append(f"| *{name}* | - | {' | '.join(cells)} | - | - |")
    head = f"| recipe (model) | seeds | {' | '.join(names)} | epochs | minutes |\n|{'---|' * (4 + len(names))}"
    return f"{heading} {title}\n\n{columns.about}\n\n{head}\n" + "\n".join(lines)


def _label(one: Record) -> str:
    engine = f"{one['protocol']['engine']} " if "engine" in one["protocol"] else ""
    return f"{one['recipe']} ({engine}{one['model']['name']})"


def _row(label: str, runs: list[Record], files: str, columns: _Columns) -> list[str]:
    """The cells of one configuration's runs."""
    runs = sorted(runs, key=lambda one: int(one["seed"]))
    cells = [label, ", ".join(f"[{one['seed']}]({files}{one['file']})" for one in runs)]
    for metric in (*columns.metrics, *columns.parts):
        values = [one["test"][metric] for one in runs if metric in one["test"]]
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        found = [one["intervals"]["test"][metric] for one in runs if metric in one["intervals"]["test"]]
        low, high = (mean(one[end] for one in found) for end in (0, 1)) if found else (None, None)
        interval = f" [{low:.4f}, {high:.4f}]" if metric in columns.metrics and found else ""
        cells.append(f"{mean(values):.4f}{spread}{interval}" if values else "-")
    trained = [one.get("training", {}) for one in runs]
    cells.append(f"{mean(one.get('epochs', 0) for one in trained):.0f}")
    cells.append(f"{mean(one.get('seconds', 0) for one in trained) / 60:.1f}")
    return cells
