"""Two runs on the same queries: how much better is the second, and how sure is that?

Both runs must have been asked the same thing: the protocol cards are compared first, and a difference in the
catalogue, the split or the counting is an error that names it. What may differ (the model's window, whether it reads
the time of the request, seeds, code) is printed beside the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from pipelines.errors import RunError
from pipelines.evaluation.significance import bootstrap_interval, paired_test
from pipelines.run_folder import RunFolder, read_json

METRICS = ("HR@10", "NDCG@10", "MRR@10")
# What makes two numbers incomparable, the plainest first: it is the one that is named.
_MUST_AGREE = (
    "catalogue_items",
    "data_hash",
    "split",
    "split_digest",
    "test_queries",
    "ranking",
    "masked",
    "ties",
)
_MAY_DIFFER = ("query_time", "max_length", "validation", "seeds", "commit")
_COLUMNS = ("user_id", "target_item_id", "history_length", "rank")
_REMEDY = "evaluate both runs with this code and one protocol: recpod evaluate RECIPE"


@dataclass(frozen=True)
class Difference:
    """One metric of both runs on the same queries.

    Attributes:
        metric: e.g. ``NDCG@10``.
        a: mean of run A.
        b: mean of run B.
        difference: ``b - a``.
        low: lower end of the difference's 95% bootstrap interval over queries.
        high: upper end.
        p_value: two-sided sign-flip randomisation test; of this test alone, not corrected for the others.
    """

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Slice:
    """The queries whose histories are about equally long.

    Attributes:
        name: the lengths, e.g. ``3 to 17 items``.
        queries: how many.
        differences: one a metric.
    """

    name: str
    queries: int
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Comparison:
    """Run B against run A.

    Attributes:
        run_a: name of A's folder.
        run_b: name of B's folder.
        protocol: the protocol's name; both runs have it in all that matters.
        queries: test queries.
        differences: one a metric, over all queries.
        slices: by length of history, quarters of the queries; empty where all are equally long.
        unlike: ``{field: (of A, of B)}``: what differs on the cards and may.
    """

    run_a: str
    run_b: str
    protocol: str
    queries: int
    differences: tuple[Difference, ...]
    slices: tuple[Slice, ...]
    unlike: dict[str, tuple[Any, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """All metrics over all queries, and NDCG@10 by length of history, for the terminal."""
        notes = [f"{field}: A {a}, B {b}" for field, (a, b) in self.unlike.items()]
        caption = "\n".join([*notes, "p: one paired test each; slices are for looking, not for claims"])
        table = Table(title=f"B {self.run_b} against A {self.run_a} · {self.protocol}", caption=caption)
        table.add_column("metric")
        for heading in ("queries", "A", "B", "B - A", "95% interval", "p"):
            table.add_column(heading, justify="right", no_wrap=True)
        for one in self.differences:
            table.add_row(one.metric, f"{self.queries:,}", *_cells(one))
        for part in self.slices:
            chosen = next(one for one in part.differences if one.metric == "NDCG@10")
            table.add_row(f"NDCG@10, {part.name}", f"{part.queries:,}", *_cells(chosen))
        return table


def _cells(one: Difference) -> tuple[str, ...]:
    interval = f"{one.low:+.4f}..{one.high:+.4f}"
    return f"{one.a:.4f}", f"{one.b:.4f}", f"[bold]{one.difference:+.4f}[/]", interval, f"{one.p_value:.4f}"


def compare_runs(run_a: Path, run_b: Path, *, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two evaluated runs.

    Args:
        run_a: folder of the run compared against.
        run_b: folder of the run in question.
        resamples: sign assignments of each test, and bootstrap resamples of each interval.
        seed: of both.

    Raises:
        RunError: a run that was not evaluated, cards that differ in what matters, or ranks that are not those of the
            card's queries or of the metrics recorded.
    """
    cards = {path: _card(path) for path in (run_a, run_b)}
    a, b = cards[run_a], cards[run_b]
    for field in _MUST_AGREE:
        if a.get(field) != b.get(field):
            what = f"the runs differ in '{field}': {a.get(field)!r} in {run_a.name}, {b.get(field)!r} in {run_b.name}"
            raise RunError(f"{what}; their numbers are not comparable", where=str(run_b), fix=_REMEDY)
    table_a, table_b = _ranks(run_a), _ranks(run_b)
    for column in _COLUMNS[:-1]:
        if not np.array_equal(table_a[column], table_b[column]):
            raise RunError(f"ranks.parquet holds other queries ({column})", where=str(run_b), fix=_REMEDY)
    ranks = table_a["rank"], table_b["rank"]

    def differences(chosen: np.ndarray) -> tuple[Difference, ...]:
        pair = ranks[0][chosen], ranks[1][chosen]
        return tuple(_difference(*pair, metric, resamples, seed) for metric in METRICS)

    everyone = np.ones(len(ranks[0]), dtype=bool)
    return Comparison(
        run_a=run_a.resolve().name,
        run_b=run_b.resolve().name,
        protocol=str(a.get("name")),
        queries=len(everyone),
        differences=differences(everyone),
        slices=tuple(
            Slice(name, int(chosen.sum()), differences(chosen))
            for name, chosen in _quarters(table_a["history_length"]).items()
        ),
        unlike={field: (a.get(field), b.get(field)) for field in _MAY_DIFFER if a.get(field) != b.get(field)},
    )


def _difference(ranks_a: np.ndarray, ranks_b: np.ndarray, metric: str, resamples: int, seed: int) -> Difference:
    test = paired_test(ranks_a, ranks_b, metric, resamples=resamples, seed=seed)
    a, b = (bootstrap_interval(ranks, metric, resamples=1).mean for ranks in (ranks_a, ranks_b))
    return Difference(metric, a, b, test.difference, test.low, test.high, test.p_value)


def _quarters(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Up to four groups of about equally many queries, by length; equal lengths stay together."""
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75], method="lower"))
    group = np.searchsorted(edges, lengths, side="left")
    parts = {}
    for number in np.unique(group):
        chosen = group == number
        low, high = int(lengths[chosen].min()), int(lengths[chosen].max())
        parts[f"{low} items" if low == high else f"{low} to {high} items"] = chosen
    return parts if len(parts) > 1 else {}


def _card(path: Path) -> Mapping[str, Any]:
    """The protocol card of an evaluated run."""
    card = read_json(RunFolder(path).metrics).get("protocol")
    if not isinstance(card, dict):
        raise RunError("there is no evaluated run here (metrics.json with a protocol)", where=str(path), fix=_REMEDY)
    missing = [field for field in _MUST_AGREE if field not in card]
    if missing:
        raise RunError(f"the protocol card does not say '{missing[0]}'", where=str(path), fix=_REMEDY)
    return card


def _ranks(path: Path) -> dict[str, np.ndarray]:
    """The columns of ranks.parquet, checked against metrics.json."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    file = RunFolder(path).ranks
    try:
        table = parquet.read_table(file, columns=list(_COLUMNS))
    except (OSError, arrow.ArrowException) as error:
        raise RunError(f"the ranks cannot be read ({error})", where=str(file), fix=_REMEDY) from None
    columns = {name: np.array(table[name].to_numpy()) for name in table.column_names}  # writable: torch reads them
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        raise RunError(f"ranks.parquet lacks the column {missing[0]}", where=str(file), fix=_REMEDY)
    recorded = read_json(RunFolder(path).metrics).get("test", {})
    for metric in METRICS:
        found = bootstrap_interval(columns["rank"], metric, resamples=1).mean
        if metric in recorded and abs(found - recorded[metric]) > 1e-9:
            what = f"ranks.parquet gives {metric} {found:.6f}, metrics.json says {recorded[metric]:.6f}"
            raise RunError(what, where=str(path), fix=_REMEDY)
    return columns


def find_run(run: str, runs: Path = Path("runs")) -> Path:
    """The folder of a run, given as a path or as a name in ``runs``.

    Raises:
        RunError: there is neither.
    """
    for path in (Path(run), runs / run):
        if path.is_dir():
            return path
    names = sorted(path.parent.name for path in runs.glob("*/metrics.json"))
    fix = f"evaluated runs: {', '.join(names)}" if names else "give the folder of an evaluated run"
    raise RunError("no such run", where=run, fix=fix)
