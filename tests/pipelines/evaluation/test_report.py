"""report.html on complete, partial and hostile run folders."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.errors import RunError
from pipelines.evaluation.charts import Series, line_chart, number, ticks
from pipelines.evaluation.report import duration, results_table, write_report


class Page(HTMLParser):
    """Checks that tags close in order, and keeps the text, the tags and what they refer to."""

    VOID = {"meta", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def charts(self) -> list[dict[str, Any]]:
        return [json.loads(value) for name, value in self.attributes if name == "data-points"]


def write_run(folder: Path, *, metrics: dict[str, Any] | None = None, config: str = "seed: 7\n") -> Path:
    folder.mkdir()
    events: list[dict[str, Any]] = []
    for epoch in (1, 2, 3):
        step = epoch * 100
        event = {"step": step, "time": f"2026-01-01T00:0{epoch}:00+00:00"}
        values = {
            "loss": 8.0 - epoch,
            "lr": 0.001,
            "grad_norm": 1.5,
            "tokens_per_s": 1000.0 * epoch,
            "cost": 0.5 * epoch,
        }
        events.append({"kind": "train", "epoch": epoch - 1, **event, **values})
        events.append({"kind": "epoch", "epoch": epoch, **event, "train_loss": 8.25 - epoch, "seconds": 60.0 * epoch})
        events.append(
            {"kind": "valid", "epoch": epoch, **event, "HR@10": 0.1 * epoch, "NDCG@10": 0.09 - abs(epoch - 2) * 0.01}
        )
    events.append({"kind": "guard", "step": 250, "epoch": 2, "time": "x", "message": "gradient over 10000"})
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "config.yaml").write_text(config)
    (folder / "environment.json").write_text(
        json.dumps({"machine": {"cores": 2}, "kernels": {"selective_scan": "numba"}, "versions": {"torch": "2.13.0"}})
    )
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


METRICS = {
    "protocol": {"name": "loo-full-masked", "ties": "worst", "catalogue_items": 1682, "split_digest": "ab" * 32},
    "valid": {"HR@10": 0.2222, "NDCG@10": 0.1111},
    "test": {"HR@10": 0.2526, "NDCG@10": 0.1406},
    "intervals": {"test": {"HR@10": [0.2418, 0.2634], "NDCG@10": [0.1339, 0.1473]}},
    "baselines": {"popularity": {"HR@10": 0.0812, "NDCG@10": 0.0401}},
    "also": {
        "loo-full": {"test": {"NDCG@10": 0.1301, "HR@10": 0.2404}, "popularity": {"NDCG@10": 0.0333, "HR@10": 0.0707}}
    },
    "gate": {
        "passed": False,
        "checks": [
            {"metric": "HR@10", "value": 0.2526, "operator": ">", "threshold": 0.25, "passed": True},
            {
                "metric": "NDCG@10",
                "value": 0.1406,
                "operator": ">",
                "threshold": 0.2,
                "passed": False,
                "basis": "the plan",
            },
        ],
    },
    "training": {"seconds": 7620.0, "cost": 1.25},
}


def test_the_page_tells_the_run(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path / "ml1m", metrics=METRICS))
    assert path == tmp_path / "ml1m" / "report.html"
    page = Page(path.read_text())
    for piece in (
        "ml1m", "gate missed", "✓ met", "✗ missed", "> 0.2000 (the plan)",
        "0.2526", "0.2418\u20130.2634", "0.1406", "0.0401", "3.51", "0.2222", "0.1301",
        "loo-full-masked", "catalogue items 1682", "ab" * 32,
        "selective scan numba", "cores 2", "torch 2.13.0",
        "epoch 2", "of 3 trained", "2 h 7 min", "cost 1.25", "2,000", "gradient over 10000", "seed 7",
    ):  # fmt: skip
        assert piece in page.text, piece
    assert "Incomplete" not in page.text


def test_charts_carry_the_logged_points(tmp_path: Path) -> None:
    charts = Page(write_report(write_run(tmp_path / "run", metrics=METRICS)).read_text()).charts()
    found = {series["name"]: [(p[2], p[3]) for p in series["points"]] for chart in charts for series in chart["series"]}
    assert found["every logged step"] == [(100, "7"), (200, "6"), (300, "5")]
    assert found["mean of an epoch"] == [(100, "7.25"), (200, "6.25"), (300, "5.25")]
    assert found["NDCG@10"] == [(1, "0.0800"), (2, "0.0900"), (3, "0.0800")]
    assert found["Learning rate"][0] == (100, "0.0010")
    assert set(found) >= {"HR@10", "Gradient norm", "Targets per second"}


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    text = write_report(write_run(tmp_path / "run", metrics=METRICS)).read_text()
    page = Page(text)
    assert page.references == []
    assert not {"link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(|\bimport\b|fetch\(|XMLHttpRequest", text)
    assert len(text) < 200_000


def test_what_it_shows_stands_beside_what_was_chosen(tmp_path: Path) -> None:
    """A run from before has no such section; Recall is a row of its own where it says something else than HR."""
    assert "What it shows" not in Page(write_report(write_run(tmp_path / "old", metrics=METRICS)).read_text()).text
    lists = {"Coverage@10": 0.3125, "Popularity@10": 0.8765, "Coverage@50": 0.6125, "Popularity@50": 0.7654}
    more = {"beyond_accuracy": {"test": lists, "targets": {"Coverage": 0.4321, "Popularity": 0.6789}}}
    recall = {**METRICS["test"], "Recall@10": 0.2526, "HR@20": 0.31, "Recall@20": 0.2999}
    page = Page(write_report(write_run(tmp_path / "new", metrics={**METRICS, **more, "test": recall})).read_text())
    shown = page.text[page.text.index("What it shows") :]
    for row in ("the best 10 0.3125 0.8765", "the best 50 0.6125 0.7654", "what was chosen 0.4321 0.6789"):
        assert row in " ".join(shown.split())
    assert "Recall@10" not in page.text and "Recall@20" in page.text


def test_everything_is_escaped(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    metrics = json.loads(json.dumps(METRICS))
    metrics["protocol"][evil] = metrics["protocol"]["name"] = evil
    metrics["test"][evil] = 0.5
    metrics["also"] = {evil: {"test": {}, "popularity": {}}}
    metrics["gate"]["checks"][0] |= {"metric": evil, "operator": evil, "basis": evil}
    config = (
        f"description: '{evil}'\ndataset: {{name: '{evil}'}}\nmodel: {{name: '{evil}'}}\n"
        f"training: {{select: '{evil}'}}\nseed: '{evil}'\n"
    )
    folder = write_run(tmp_path / "<script>alert(3)<script>", metrics=metrics, config=config)
    (folder / "environment.json").write_text(json.dumps({"commit": evil, "kernels": {evil: evil}, evil: {evil: evil}}))
    with (folder / "events.jsonl").open("a") as events:
        events.write(json.dumps({"kind": evil, "step": 1, "message": evil}) + "\n")
        events.write(json.dumps({"kind": "valid", "step": 1, "epoch": 4, evil: 0.5}) + "\n")
    page = Page(write_report(folder).read_text())
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "<script>alert(3)<script>" in page.text and evil in page.text


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "environment.json").write_text('{"cut off')
    (folder / "config.yaml").unlink()
    with (folder / "events.jsonl").open("a") as events:
        events.write('{"kind": "odd", "step": "x", "epoch": null}\n{"kind": "valid", "step": null, "epoch": "y"}\n')
        events.write('{"kind": "train", "st')
    page = Page(write_report(folder).read_text())
    for piece in (
        "not evaluated yet", "config.yaml is missing", "metrics.json is missing", "environment.json cannot be read",
        "1 of 13 lines of events.jsonl cannot be read", "3 min 0 s", "cost 1.50",
    ):  # fmt: skip
        assert piece in page.text, piece
    (folder / "events.jsonl").unlink()
    assert "events.jsonl is missing" in Page(write_report(folder).read_text()).text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        write_report(tmp_path)


def test_the_terminal_table_has_the_same_numbers(tmp_path: Path) -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(results_table(write_run(tmp_path / "run", metrics=METRICS)))
    text = console.export_text()
    row = next(line for line in text.splitlines() if "NDCG@10" in line)
    assert re.findall(r"\d+\.\d+", row) == ["0.1111", "0.1406", "0.1339", "0.1473", "0.0401", "3.51"]


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(-0.03, 0.37) == [0, 0.1, 0.2, 0.3]
    assert ticks(4.2, 12.9) == [5, 7.5, 10, 12.5]
    assert ticks(5, 5) == [5]


def test_figures_and_durations_as_people_write_them() -> None:
    assert [number(x) for x in (0.25, 0, 12.3456, 45678, 1e-5)] == ["0.2500", "0.0000", "12.35", "45,678", "1e-05"]
    assert [duration(s) for s in (42, 185, 3177, 3599.9, 7620)] == [
        "42 s",
        "3 min 5 s",
        "53 min",
        "1 h 0 min",
        "2 h 7 min",
    ]


def test_a_long_curve_keeps_its_spikes_and_nothing_infinite() -> None:
    y = [1.0] * 10_000
    y[1234], y[7777], y[50] = 99.0, -5.0, math.nan
    kept = Series("loss", range(10_000), y).points()
    assert len(kept) <= 502
    assert (1234, 99.0) in kept and (7777, -5.0) in kept
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
    assert line_chart("loss", [Series("loss", [1, 2], [math.inf, math.nan])], x_name="step") == ""
    for series in (Series("one", [3], [2.0]), Series("flat", [1, 2], [0.0, 0.0]), Series("small", [0, 1], [1.1, 1.2])):
        for logarithmic in (False, True):
            assert "nan" not in line_chart("x", [series], x_name="step", logarithmic=logarithmic)
