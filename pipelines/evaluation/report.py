"""report.html: one page about one run, to be read in a minute and kept for years. It loads nothing and hides nothing.

Everything comes from config.yaml, environment.json, events.jsonl and metrics.json of the run folder; what is missing is
named at the top. Every value is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.evaluation.charts import Series, interval_bar, line_chart
from pipelines.evaluation.page import card, cell, definitions, details, duration, figure, interval_text, table, text_of
from pipelines.evaluation.report_style import SCRIPT, STYLE
from pipelines.evaluation.run_record import RunRecord, read_run
from pipelines.run_folder import RunFolder, write_text

_HEADLINE = ("NDCG@10", "HR@10")
_PREDICTED = ("AUC", "GAUC")  # of a model that predicts actions
_LISTS = ("Coverage", "Popularity")


def write_report(run_folder: Path) -> Path:
    """Write ``report.html`` into the run folder, whole or not at all; returns its path.

    Raises:
        RunError: there is no run, or the page cannot be written.
    """
    path = RunFolder(run_folder).report
    write_text(path, render(read_run(run_folder)))
    return path


def results_table(run_folder: Path) -> Table:
    """The metrics of a finished run for the terminal."""
    run = read_run(run_folder)
    (baseline, popularity), intervals = _baseline(run), run.section("intervals").get("test", {})
    table = Table(title=f"{run.name} · {run.section('protocol').get('name', 'unknown protocol')}")
    table.add_column("metric")
    for heading in ("validation", "test", "95% interval", baseline, f"x {baseline}"):
        table.add_column(heading, justify="right")
    for metric, value in _shown(run.section("test")).items():
        base = popularity.get(metric)
        table.add_row(
            metric,
            figure(run.section("valid").get(metric)),
            f"[bold]{value:.4f}[/]",
            interval_text(intervals.get(metric)),
            figure(base),
            f"{value / base:.2f}" if base else "-",
        )
    return table


def render(run: RunRecord) -> str:
    """The page as text."""
    title = escape(run.name)
    body = [
        _header(run),
        _tiles(run),
        '<div class="grid2">',
        card("Training loss", _loss_chart(run)),
        card(
            f"Validation <small>the checkpoint with the best {escape(run.selecting())} is the one tested</small>",
            _metric_chart(run),
        ),
        "</div>",
        _gate(run),
        _metrics(run),
        '<div class="grid2">',
        card("Protocol", definitions(run.section("protocol")), "nothing recorded"),
        card("Environment", _environment(run), "nothing recorded"),
        "</div>",
        '<div class="grid3">',
        *(card(name, _small_chart(run, name, key, log), "not logged") for name, key, log in _WATCHED),
        "</div>",
        _incidents(run),
        details("Configuration", run.config_text),
        f"<footer>Made by RecPod from the run folder {title}. The page loads nothing.</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} · RecPod</title><style>{STYLE}</style></head><body><main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main><script>{SCRIPT}</script></body></html>\n"
    )


_WATCHED = (
    ("Gradient norm", "grad_norm", True),
    ("Learning rate", "lr", False),
    ("Targets per second", "tokens_per_s", False),
)


def _header(run: RunRecord) -> str:
    gate = run.section("gate")
    if not run.metrics:
        verdict = '<span class="pill wait">not evaluated yet</span>'
    elif not gate.get("checks"):
        verdict = '<span class="pill wait">no gate</span>'
    elif gate.get("passed"):
        verdict = '<span class="pill good">✓ gate passed</span>'
    else:
        verdict = '<span class="pill bad">✗ gate missed</span>'
    dataset, model = _name_of(run.config.get("dataset")), _name_of(run.config.get("model") or run.section("model"))
    protocol = run.section("protocol")
    facts = [
        f"{model} on {dataset}" if model and dataset else "",
        f"query time {protocol['query_time']}" if "query_time" in protocol else "",
        f"protocol {protocol['name']}" if "name" in protocol else "",
        f"seed {run.config['seed']}" if "seed" in run.config else "",
        f"commit {str(run.environment['commit'])[:12]}" if run.environment.get("commit") else "",
    ]
    line = " · ".join(escape(fact) for fact in facts if fact)
    description = escape(str(run.config.get("description") or ""))
    head = f'<header><div class="name"><h1>{escape(run.name)}</h1><p class="lead">{line}</p>'
    head += f'<p class="lead">{description}</p>' if description else ""
    head += f"</div>{verdict}</header>"
    if run.problems:
        head += f'<p class="note"><b>Incomplete:</b> {escape("; ".join(run.problems))}.</p>'
    return head


def _tiles(run: RunRecord) -> str:
    tiles: list[tuple[str, str, str]] = []
    (baseline, popularity), intervals = _baseline(run), run.section("intervals").get("test", {})
    test, first = run.section("test"), _headline(run)[0]
    for metric in _headline(run):
        if isinstance(value := test.get(metric), (int, float)):
            interval = interval_text(intervals.get(metric))
            tiles.append((f"{value:.4f}", f"test {metric}", f"95%: {interval}" if interval != "-" else ""))
    if popularity.get(first) and first in test:
        base = popularity[first]
        tiles.append((f"{test[first] / base:.1f} \u00d7", f"{first} of {baseline}", f"which has {base:.4f}"))
    best = run.best_validation()
    if best is not None:
        epochs = max(run.curve("valid", "epoch")[1], default=0)
        tiles.append((f"epoch {best.get('epoch', '?')}", "best validation", f"of {epochs:.0f} trained"))
    seconds, cost = run.seconds(), run.cost()
    if seconds is not None:
        tiles.append((duration(seconds), "training", "" if cost is None else f"cost {cost:.2f}"))
    speed = run.curve("train", "tokens_per_s")[1]
    if speed:
        tiles.append((f"{sorted(speed)[len(speed) // 2]:,.0f}", "targets per second", "median while training"))
    cells = "".join(
        f'<div class="card tile"><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(more)}</span></div>'
        for value, name, more in tiles
    )
    return f'<div class="tiles">{cells}</div>' if cells else ""


def _loss_chart(run: RunRecord) -> str:
    steps, mean = run.curve("epoch", "train_loss"), run.curve("train", "loss")
    series = [
        Series("every logged step", *mean, colour=1, faint=bool(steps[0])),
        Series("mean of an epoch", *steps, colour=1),
    ]
    return line_chart("Training loss by step", series, x_name="step")


def _metric_chart(run: RunRecord) -> str:
    select = run.selecting()
    names = list(dict.fromkeys((select, *_headline(run))))
    series = [
        Series(name, *run.curve("valid", name, "epoch"), colour=colour) for colour, name in enumerate(names, start=1)
    ]
    best, mark = run.best_validation(), None
    if best is not None and isinstance(best.get("epoch"), int):
        mark = (float(best["epoch"]), float(best[select]), f"best {best[select]:.4f}")
    return line_chart("Validation metrics by epoch", series, x_name="epoch", mark=mark)


def _small_chart(run: RunRecord, name: str, key: str, logarithmic: bool) -> str:
    series = [Series(name, *run.curve("train", key), colour=3)]
    return line_chart(f"{name} by step", series, x_name="step", logarithmic=logarithmic, size=(360, 170))


def _gate(run: RunRecord) -> str:
    checks = run.section("gate").get("checks")
    if not isinstance(checks, list) or not checks:
        return ""
    rows = []
    for check in checks:
        mark = (
            '<span class="pill good">✓ met</span>' if check.get("passed") else '<span class="pill bad">✗ missed</span>'
        )
        condition = f"{check.get('operator', '')} {figure(check.get('threshold'))}"
        basis = f" ({check['basis']})" if check.get("basis") else ""
        rows.append(
            [
                cell(check.get("metric")),
                cell(condition + basis),
                cell(figure(check.get("value")), "n"),
                f"<td>{mark}</td>",
            ]
        )
    return card("Gate <small>fixed in the recipe before the run, decided on the test queries</small>",
                 table(["metric", "must be", "is", ""], rows, right=(2,)))  # fmt: skip


def _metrics(run: RunRecord) -> str:
    test, valid = _shown(run.section("test")), run.section("valid")
    (baseline, popularity), intervals = _baseline(run), run.section("intervals").get("test", {})
    if not test:
        return card("Metrics", "", "the run has not been evaluated")
    rows, most = [], max(test.values())
    for metric, value in test.items():
        base, interval = popularity.get(metric), intervals.get(metric)
        bar = interval_bar(value, most, interval=interval, tick=base)
        cells = [
            cell(metric),
            cell(f"{value:.4f}", "n"),
            cell(interval_text(interval), "n soft"),
            f"<td>{bar}</td>",
            cell(figure(base), "n"),
            cell(f"{value / base:.2f}" if base else "-", "n"),
            cell(figure(valid.get(metric)), "n soft"),
        ]
        rows.append(cells)
    headings = ["metric", "test", "95% interval", "", baseline, f"\u00d7 {baseline}", "validation"]
    main = [metric in _headline(run) for metric in test]
    legend = f'<i class="key s2"></i>{escape(baseline)} baseline</span><span>whisker: bootstrap over users'
    content = (
        table(headings, rows, right=(1, 2, 4, 5, 6), main=main) + f'<div class="legend"><span>{legend}</span></div>'
    )
    predicted = _headline(run) == _PREDICTED
    asked = "predictions of what a user does" if predicted else "full ranking over the whole catalogue"
    return card(f"Metrics <small>{asked}</small>", content + _lists(run) + _also(run))


def _lists(run: RunRecord) -> str:
    """What the test queries were shown, beside what they chose."""
    found = run.section("beyond_accuracy")
    lists, targets = (_numbers(found.get(name) or {}) for name in ("test", "targets"))
    cutoffs = [name.partition("@")[2] for name in lists if name.startswith("Coverage@")]
    if not cutoffs:
        return ""
    rows = [
        [cell(f"the best {k}", "soft"), *(cell(figure(lists.get(f"{kind}@{k}")), "n") for kind in _LISTS)]
        for k in cutoffs
    ]
    rows.append([cell("what was chosen", "soft"), *(cell(figure(targets.get(kind)), "n") for kind in _LISTS)])
    note = "share of the catalogue in anybody's list; mean popularity percentile, .5 is random, 1 the head alone"
    title = f"<h3>What it shows <small>{note}</small></h3>"
    return title + table(["list", "coverage", "popularity"], rows, right=(1, 2))


def _also(run: RunRecord) -> str:
    """The same checkpoint under further protocols."""
    rows = []
    for name, found in run.section("also").items():
        for metric in _HEADLINE:
            value, base = found.get("test", {}).get(metric), found.get("popularity", {}).get(metric)
            rows.append([cell(name), cell(metric), cell(figure(value), "n"), cell(figure(base), "n")])
    if not rows:
        return ""
    return "<h3>The same checkpoint, asked otherwise</h3>" + table(
        ["protocol", "metric", "test", "popularity"], rows, right=(2, 3)
    )


def _environment(run: RunRecord) -> str:
    """Kernel paths first: they explain a slow run. Then each group of facts under its name."""
    found = dict(run.environment)
    groups = {"Kernel paths in use": found.pop("kernels", None)}
    groups |= {name.capitalize(): found.pop(name) for name in list(found) if isinstance(found[name], Mapping)}
    groups["Run"] = found
    shown = {name: group if isinstance(group, Mapping) else {"paths": group} for name, group in groups.items() if group}
    return "".join(f"<h3>{escape(name)}</h3>{definitions(group)}" for name, group in shown.items())


def _incidents(run: RunRecord) -> str:
    """Failures, guards and alarms: whatever is not routine."""
    routine = {"train", "valid", "epoch", "checkpoint", "gate", "stage"}
    found = [event for event in run.events if event.get("kind") not in routine]
    rows = [
        [
            cell(event.get("kind")),
            cell(step if isinstance(step := event.get("step"), int) and step >= 0 else "-", "n"),
            cell(event.get("time"), "soft"),
            cell(text_of({key: value for key, value in event.items() if key not in ("kind", "step", "epoch", "time")})),
        ]
        for event in found[-50:]
    ]
    return card("What else happened", table(["kind", "step", "time", ""], rows, right=(1,))) if rows else ""


def _name_of(section: Any) -> str:
    return str(section.get("name", "")) if isinstance(section, Mapping) else str(section or "")


def _headline(run: RunRecord) -> tuple[str, ...]:
    """The metrics that stand out."""
    return _PREDICTED if run.selecting().partition(":")[0] in _PREDICTED else _HEADLINE


def _baseline(run: RunRecord) -> tuple[str, dict[str, float]]:
    """What metrics are held against: popularity, or the one baseline of a run that has another."""
    found = run.section("baselines")
    name = next(iter(found), "popularity") if "popularity" not in found else "popularity"
    values = found.get(name)
    return name, _numbers(values) if isinstance(values, Mapping) else {}


def _numbers(section: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in section.items() if isinstance(value, (int, float))}


def _shown(section: Mapping[str, Any]) -> dict[str, float]:
    """Metrics in the order people look for them, HR first; where all are the same, as at 1, one is shown.

    So is Recall under its name alone where it differs from HR, which it does not with one target a query.
    """
    numbers = _numbers(section)
    numbers = {
        metric: value
        for metric, value in numbers.items()
        if not metric.startswith("Recall@") or value != numbers.get(metric.replace("Recall", "HR"))
    }
    families = list(dict.fromkeys(metric.partition("@")[0] for metric in numbers))
    kept = [metric for metric in numbers if metric.partition("@")[0] == families[0] or not metric.endswith("@1")]
    return {metric: numbers[metric] for metric in sorted(kept, key=lambda m: families.index(m.partition("@")[0]))}
