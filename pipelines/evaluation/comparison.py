"""What comes out of comparing two runs: see :mod:`pipelines.evaluation.compare`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Difference:
    """One metric of both runs on the same queries.

    Attributes:
        metric: e.g. ``NDCG@10``.
        a: mean of run A.
        b: mean of run B.
        difference: ``b - a``.
        low: lower end of the difference's 95% bootstrap interval over queries; of AUC over users.
        high: upper end.
        p_value: two-sided sign-flip randomisation test, of AUC that of the bootstrap; of this test alone, not corrected
            for the others.
        spread_a: standard deviation between A's seeds; None for one.
        spread_b: likewise of B.
    """

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float
    spread_a: float | None = None
    spread_b: float | None = None


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
        run_a: name of A's folder, or names of its seeds'.
        run_b: likewise of B.
        protocol: the protocol's name; both runs have it in all that matters.
        queries: test queries.
        differences: one a metric, over all queries.
        slices: by length of history, quarters of the queries; empty where all are equally long, and of ranking models.
        unlike: ``{field: (of A, of B)}``: what differs on the cards and may.
        events: that a ranking model was asked about; None for retrieval.
    """

    run_a: str
    run_b: str
    protocol: str
    queries: int
    differences: tuple[Difference, ...]
    slices: tuple[Slice, ...]
    unlike: dict[str, tuple[Any, Any]]
    events: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """All metrics over all queries, and NDCG@10 by length of history, for the terminal."""
        notes = [f"{field}: A {a}, B {b}" for field, (a, b) in self.unlike.items()]
        for side, spread in (("A", "spread_a"), ("B", "spread_b")):
            found = {one.metric: getattr(one, spread) for one in self.differences}
            if None not in found.values():
                parts = ", ".join(f"{metric} {value:.4f}" for metric, value in found.items())
                notes.append(f"{side} is the mean of several seeds; standard deviation between them: {parts}")
        if self.events is None:
            notes.append("p: one paired test each; slices are for looking, not for claims")
        else:
            notes.append(f"{self.events:,} events; intervals and p by resampling users, one test each")
        table = Table(title=f"B {self.run_b} against A {self.run_a} · {self.protocol}", caption="\n".join(notes))
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
