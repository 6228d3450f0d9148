"""The leaderboard: every recipe with every seed, resumed where it stopped, tables that never mix protocols."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.cli import main
from pipelines.config import load_config
from pipelines.errors import ConfigError, RunError
from pipelines.leaderboard import leaderboard, markdown, parse_seeds, read_records
from pipelines.run_folder import ROOT
from pipelines.training.signals import Interrupted

RECIPE = """
name: {name}
dataset: {data}
model: {{name: {model}, hidden: 8}}
loader: {{max_length: 10, windows: all, rows_per_batch: 16}}
training: {{epochs: 1}}
tracking: {{wandb: "off"}}
runs: {runs}
gates: [{{metric: NDCG@10, above: 0.999}}]
"""


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two recipes on one file; their gates cannot be passed."""
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    rows = [f"{u},{(u * 7 + i + (i % 5 == 4) * u) % 40},{1000 * u + 60 * i}" for u in range(60) for i in range(14)]
    (tmp_path / "clicks.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    paths = []
    for name, model in (("first", "sasrec"), ("second", "ss4rec")):
        text = RECIPE.format(name=name, model=model, data=tmp_path / "clicks.csv", runs=tmp_path / "runs")
        (tmp_path / f"{name}.yaml").write_text(text)
        paths.append(str(tmp_path / f"{name}.yaml"))
    return paths


def inside(arguments: list[str]) -> int:
    """``recpod`` in this process: quicker than one of its own."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0)


def run(recipes: list[str], seeds: list[int], folder: Path, start: Any = inside, sets: tuple[str, ...] = ()) -> int:
    return leaderboard(recipes, seeds, sets, load=load_config, folder=folder, console=Console(quiet=True), start=start)


def test_a_grid_is_run_once_and_its_table_says_how_sure_it_is(recipes: list[str], tmp_path: Path) -> None:
    folder, started = tmp_path / "board", []

    def stopped_at_the_third(arguments: list[str]) -> int:
        started.append(arguments[1])
        return 75 if len(started) == 3 else inside(arguments)

    with pytest.raises(Interrupted, match="first-seed-2"):
        run(recipes, [1, 2], folder, stopped_at_the_third)
    assert started == [recipes[0], recipes[1], recipes[0]]  # a seed for everybody before the next one
    assert {path.name for path in folder.glob("*.json")} == {"first-seed-1.json", "second-seed-1.json"}
    again: list[str] = []
    assert run(recipes, [1, 2], folder, lambda arguments: again.append(arguments[1]) or inside(arguments)) == 0
    assert again == recipes
    records = read_records(folder)
    assert [(one["recipe"], one["seed"]) for one in records] == [(r, s) for r in ("first", "second") for s in (1, 2)]
    one = records[0]
    assert one["protocol"]["seeds"] == [1] and one["commit"] and one["machine"] and one["versions"]
    assert str(tmp_path) not in json.dumps(one)
    own = json.loads((tmp_path / "runs" / "first-seed-1" / "metrics.json").read_text())
    assert one["test"] == own["test"] and one["intervals"] == own["intervals"]
    assert records[0]["test"] != records[1]["test"]  # another seed, another run

    table = (folder / "leaderboard.md").read_text()
    assert table.count("## clicks.csv · 40 items · loo-full-masked · query time") == 2
    blind, aware = sorted(table.split("\n## ")[1:], key=lambda part: "query time aware" in part)
    assert "first (sasrec)" in blind and "second" not in blind and "second (ss4rec)" in aware and "first" not in aware
    values = [one["test"]["NDCG@10"] for one in records[:2]]
    middle, spread = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    low, high = (sum(one["intervals"]["test"]["NDCG@10"][end] for one in records[:2]) / 2 for end in (0, 1))
    assert "| 1, 2 | " in blind and f"{middle:.4f} ± {spread:.4f} [{low:.4f}, {high:.4f}]" in blind
    assert f"| *popularity* | - | {one['baselines']['popularity']['HR@10']:.4f} |" in blind


def test_what_must_not_be_mixed_is_refused(recipes: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "board"
    assert run(recipes[:1], [1], folder) == 0
    with pytest.raises(RunError, match="first-seed-1.json: this result is of another configuration"):
        run(recipes[:1], [1], folder, sets=("optimizer.lr=0.5",))
    with pytest.raises(ConfigError, match="two of the runs have one name"):
        run([recipes[0], recipes[0]], [1], folder)
    with pytest.raises(RunError, match="first-seed-3: the run has ended with exit code 2"):
        run(recipes[:1], [3], folder, lambda arguments: 2)
    assert run(recipes[:1], [1], folder, lambda arguments: 1 // 0) == 0  # finished: nothing starts


def result(**changes: Any) -> dict[str, Any]:
    card = {"catalogue_items": 10, "name": "loo-full", "query_time": "blind", "ranking": "full", "masked": "nothing"}
    card |= {"ties": "worst", "test_queries": 5, "split_digest": "a" * 64}
    found = {"HR@10": 0.5, "NDCG@10": 0.25}
    base = {"recipe": "r", "dataset": "d", "seed": 1, "model": {"name": "m"}, "test": found, "baselines": {}}
    base["intervals"] = {"test": {metric: [0.1, 0.9] for metric in found}}
    base["protocol"] = card | {key: changes.pop(key) for key in list(changes) if key in card or key == "engine"}
    return base | changes


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "e"},
        {"catalogue_items": 11},
        {"name": "loo-full-masked"},
        {"query_time": "aware"},
        {"split_digest": "b" * 64},
        {"ranking": "sampled"},
    ],
)
def test_numbers_asked_for_differently_never_share_a_table(change: dict[str, Any]) -> None:
    assert markdown([result(), result(seed=2)]).count("\n## ") == 1
    assert markdown([result(), result(**change)]).count("\n## ") == 2


def test_engines_share_a_table_and_are_named() -> None:
    table = markdown([result(), result(engine="recbole", test={"HR@10": 0.6, "NDCG@10": 0.3})])
    assert table.count("\n## ") == 1 and table.index("r (recbole m)") < table.index("r (m)")
    assert "0.3000 [0.1000, 0.9000]" in table  # one seed has no spread


@pytest.mark.parametrize("text", ["", "1,", "1,x", "1,1", "-1", "1;2"])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds(text)


def test_seeds_are_a_list() -> None:
    assert parse_seeds("3, 1") == [3, 1]


@pytest.mark.slow  # starts real processes
def test_the_verb_runs_processes_and_a_signal_stops_them_saved(recipes: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "leaderboard", recipes[0], "--seeds", "1", "--folder"]
    command += [str(tmp_path / "board"), "--set", "training.patience=0", "--set"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    long = subprocess.Popen([*command, "training.epochs=100000"], cwd=tmp_path, env=environment)
    events = tmp_path / "runs" / "first-seed-1" / "events.jsonl"
    deadline = time.monotonic() + 90
    while not (events.exists() and '"valid"' in events.read_text()):
        assert time.monotonic() < deadline and long.poll() is None
        time.sleep(0.1)
    long.send_signal(signal.SIGTERM)
    assert long.wait(timeout=30) == 75 and not list((tmp_path / "board").glob("*.json"))
    epochs = json.loads(events.read_text().splitlines()[-1])["epoch"]
    done = subprocess.run([*command, f"training.epochs={epochs + 1}"], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0 and [one["seed"] for one in read_records(tmp_path / "board")] == [1]
    assert read_records(tmp_path / "board")[0]["training"]["epochs"] == epochs + 1
