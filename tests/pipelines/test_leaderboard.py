"""The leaderboard: every recipe with every seed, resumed where it stopped, tables that never mix protocols."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.cli import main
from pipelines.config import RunConfig, load_config
from pipelines.errors import ConfigError, RunError
from pipelines.evaluation.leaderboard_table import read_records
from pipelines.leaderboard import Entry, command_of, leaderboard, parse_seeds
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
    assert "| [1](first-seed-1.json), [2](first-seed-2.json) | " in blind
    assert f"{middle:.4f} ± {spread:.4f} [{low:.4f}, {high:.4f}]" in blind
    assert "*popularity, last 7 days*" in aware and "*popularity, last 7 days*" not in blind
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


@pytest.fixture
def finished(recipes: list[str], tmp_path: Path) -> Path:
    """A run of the first recipe, trained on its own, under its own name."""
    assert inside(["run", recipes[0], "--set", "seed=3", "--set", "optimizer.lr=0.01"]) == 3  # its gate is missed
    return tmp_path / "runs" / "first"


def test_a_finished_run_is_collected_and_nothing_is_trained(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "board"
    copy = shutil.copytree(finished, tmp_path / "from" / "elsewhere", ignore=shutil.ignore_patterns("checkpoints"))
    assert inside(["leaderboard", "--collect", str(copy), "--folder", str(folder)]) == 0
    (one,) = read_records(folder)
    own = json.loads((finished / "metrics.json").read_text())
    assert one["file"] == "first-seed-3.json" and (one["recipe"], one["seed"], one["name"]) == ("first", 3, "first")
    for key in ("test", "valid", "intervals", "baselines", "beyond_accuracy", "protocol", "training", "code"):
        assert one[key] == own[key]
    assert one["config"]["optimizer"]["lr"] == 0.01 and one["config"]["dataset"]["name"] == "clicks.csv"
    assert one["command"] == "recpod run first.yaml, a file with the values under 'config'"
    assert str(tmp_path) not in json.dumps(one)
    assert "| [3](first-seed-3.json) |" in (folder / "leaderboard.md").read_text()
    assert {path.name for path in copy.iterdir()} == {path.name for path in finished.iterdir()} - {"checkpoints"}


def test_what_was_collected_is_not_trained_again_by_a_grid_of_the_same(finished: Path, tmp_path: Path) -> None:
    folder, recipe = tmp_path / "board", str(tmp_path / "first.yaml")
    assert inside(["leaderboard", "--collect", "first", "--folder", str(folder)]) == 0  # a name in runs/
    assert run([recipe], [3], folder, lambda arguments: 1 // 0, sets=("optimizer.lr=0.01",)) == 0
    with pytest.raises(RunError, match="another configuration"):
        run([recipe], [3], folder, lambda arguments: 1 // 0)


def test_a_run_that_is_not_what_its_folder_says_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert inside(["leaderboard", "--collect", str(finished), "--folder", str(tmp_path / "b"), *arguments]) == 2
        return capsys.readouterr().err

    assert "--set" in refused("--set", "seed=1") and not (tmp_path / "b").exists()
    config, metrics = (finished / name for name in ("config.yaml", "metrics.json"))
    texts = {path: path.read_text() for path in (config, metrics)}
    for path, old, new, what in (
        (config, "seed: 3", "seed: 4", "metrics.json is of another seed than config.yaml"),
        (config, "hidden: 8", "hidden: 16", "metrics.json is of another model than config.yaml"),
        (config, "recipe: first", "recipe: other", "metrics.json is of another recipe than config.yaml"),
        (metrics, '"epochs": 1', '"epochs": 2', "metrics.json is of another number of epochs than config.yaml"),
        (config, "\n  epochs: 1\n", "\n  epochs: 2\n", "metrics.json is of another number of epochs than config.yaml"),
        (
            metrics,
            '"1 epochs done"',
            '"7 updates done"',
            "metrics.json is of another number of updates than config.yaml",
        ),
        (metrics, '"intervals"', '"interval"', "metrics.json lacks 'intervals'"),
    ):
        assert old in texts[path]
        path.write_text(texts[path].replace(old, new))
        assert what in refused()
        path.write_text(texts[path])
    metrics.unlink()
    assert "no finished run" in refused()


def test_numbers_from_before_a_further_training_are_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ("seed=3", "optimizer.lr=0.01", "training.epochs=2")
    more = [str(tmp_path / "first.yaml"), *(word for one in sets for word in ("--set", one))]
    asked = ["leaderboard", "--collect", "first", "--folder", str(tmp_path / "board")], ["compare", "first", "first"]
    assert [inside(list(one)) for one in asked] == [0, 0]
    before = (tmp_path / "board" / "first-seed-3.json").read_text()
    assert inside(["train", *more]) == 0
    capsys.readouterr()
    for one in asked:
        assert inside(list(one)) == 2
        error = capsys.readouterr().err
        assert "metrics.json is of a training of " in error and "the newest checkpoint of " in error
    assert (tmp_path / "board" / "first-seed-3.json").read_text() == before
    checkpoints = (finished / "checkpoints").rename(tmp_path / "moved")
    for one in asked:  # a copy without checkpoints
        assert inside(list(one)) == 2 and "another number of epochs than config.yaml" in capsys.readouterr().err
    checkpoints.rename(finished / "checkpoints")
    assert inside(["evaluate", *more]) == 3
    (tmp_path / "board" / "first-seed-3.json").unlink()
    assert [inside(list(one)) for one in asked] == [0, 0]
    assert read_records(tmp_path / "board")[0]["training"]["epochs"] == 2


def test_the_best_checkpoint_alone_may_be_kept_and_old_metrics_have_no_count(finished: Path, tmp_path: Path) -> None:
    collect = ["leaderboard", "--collect", "first", "--folder", str(tmp_path / "board")]
    metrics = json.loads((finished / "metrics.json").read_text())
    best = metrics["training"]["best_step"]
    for steps, found in ((best + 5, 0), (best - 1, 2), (None, 0)):  # the newest one is the best one here
        metrics["training"] |= {"steps": steps, "best_step": best}
        if steps is None:
            del metrics["training"]["steps"]
        (finished / "metrics.json").write_text(json.dumps(metrics))
        assert inside(collect) == found


def test_all_runs_are_checked_before_one_is_written(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = tmp_path / "board"
    (tmp_path / "runs" / "unfinished").mkdir()
    copy = shutil.copytree(finished, tmp_path / "copy")
    other = shutil.copytree(finished, tmp_path / "other")
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("name: first\n", "name: other\n", 1))
    for second, message in (
        ("unfinished", "unfinished: this is no finished run"),
        (str(copy), "copy: its result would take the place of runs/first's"),
        (str(other), "other: first-seed-3.json is a run of the same configuration and seed"),
    ):
        assert inside(["leaderboard", "--collect", "first", second, "--folder", str(board)]) == 2
        assert message in capsys.readouterr().err and not board.exists()
    for seeds in ("1,2", "nonsense", ""):
        assert inside(["leaderboard", "--collect", "first", "--folder", str(board), "--seeds", seeds]) == 2
        assert "--seeds: finished runs are taken as they are" in capsys.readouterr().err and not board.exists()
    assert inside(["leaderboard", "--collect", "first", "--folder", str(board)]) == 0
    assert inside(["leaderboard", "--collect", str(other), "--folder", str(board)]) == 2
    assert [path.name for path in board.glob("*.json")] == ["first-seed-3.json"]


def test_the_command_of_a_shipped_recipe_gives_the_same_run_again() -> None:
    sets = ["seed=5", "model.hidden=32", "evaluation.also=[sampled-100]", "dataset.min_rating=4", "name=odd name"]
    sets = [*sets[:-1], "name=mine-seed-5", "runs=elsewhere", "dataset.cache=/nowhere", "description=other words"]
    config = load_config("quickstart", sets)
    words = shlex.split(command_of(config))
    assert words[:3] == ["recpod", "run", "quickstart"] and not {"elsewhere", "words"} & set(" ".join(words).split())
    again = load_config("quickstart", words[4::2])
    assert set(words[3::2]) == {"--set"} and again.identity() == config.identity()
    assert again.evaluation == config.evaluation and again.name == config.name
    assert command_of(load_config("quickstart")) == "recpod run quickstart"


def test_a_key_that_comes_later_does_not_part_a_result_from_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    def digests(*sets: str) -> tuple[str, str]:
        entry = Entry("quickstart", [], load_config("quickstart", sets), Path("x"))
        return entry.identity, entry.settings

    plain = digests()
    assert digests("seed=2")[0] != plain[0] and digests("seed=2")[1] == plain[1]
    for other in ("training.epochs=99", "evaluation.shuffle_order=true", "engine.model=FPMC", "optimizer.lr=1"):
        assert digests(other)[0] != plain[0] and digests(other)[1] != plain[1]
    resolved = RunConfig.resolved

    def without(config: RunConfig) -> dict[str, Any]:
        """As a version had it that did not know these keys."""
        values = resolved(config)
        del values["evaluation"]["shuffle_order"], values["training"]["keep"], values["engine"]["options"]
        return values

    monkeypatch.setattr(RunConfig, "resolved", without)
    assert digests() == plain


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
    assert long.wait(timeout=60) == 75 and not list((tmp_path / "board").glob("*.json"))
    epochs = json.loads(events.read_text().splitlines()[-1])["epoch"]
    done = subprocess.run([*command, f"training.epochs={epochs + 1}"], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0 and [one["seed"] for one in read_records(tmp_path / "board")] == [1]
    assert read_records(tmp_path / "board")[0]["training"]["epochs"] == epochs + 1


def test_ranking_runs_are_collected_compared_and_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of two seeds of a ranking model, one run collected beside it, and both against each other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "data"))
    rows = [f"{u},{(u * 7 + i) % 12},{1000 * u + i},{(u * 7 + i) % 12 % 3 + 1}" for u in range(40) for i in range(8)]
    (tmp_path / "ratings.csv").write_text("user_id,item_id,timestamp,rating\n" + "\n".join(rows) + "\n")
    (tmp_path / "rated.yaml").write_text(
        f"name: rated\nformat: csv\noptions: {{rating: rating}}\npath: {tmp_path}/ratings.csv\n"
        "prepare: {rating_levels: [1, 2, 3], user_features: [user_id]}\n"
    )
    recipe = tmp_path / "ranked.yaml"
    recipe.write_text(
        f"name: ranked\ndataset: {tmp_path}/rated.yaml\nruns: {tmp_path}/runs\n"
        "model: {name: hstu-ranking, hidden: 8, max_length: 10, head: [8, 3]}\n"
        "loader: {max_length: 10, windows: all, rows_per_batch: 16}\ntraining: {epochs: 1, select: AUC}\n"
        "evaluation: {protocol: ranking-last}\ntracking: {wandb: 'off'}\ndevice: cpu\n"
    )
    folder = tmp_path / "board"
    assert run([str(recipe)], [1, 2], folder) == 0
    assert inside(["run", str(recipe), "--set", "optimizer.lr=0.03", "--set", "name=quick"]) == 0
    assert inside(["leaderboard", "--collect", "quick", "--folder", str(folder)]) == 0
    records = read_records(folder)
    assert len(records) == 3
    for one in records:
        low, high = one["intervals"]["test"]["AUC"]
        assert low <= one["test"]["AUC"] <= high and low < high
    table = (folder / "leaderboard.md").read_text()
    assert table.count("\n## rated.yaml · 12 items · ranking-last · query time blind") == 1
    assert "| recipe (model) | seeds | AUC | GAUC | AUC:1 | AUC:2 | AUC:3 | epochs | minutes |" in table
    assert "[1](ranked-seed-1.json), [2](ranked-seed-2.json)" in table and "| *item average* | - | " in table
    assert inside(["compare", "ranked-seed-*", "quick"]) == 0
    other = ["--set", "evaluation.protocol=ranking-users", "--set", "name=users"]
    assert inside(["run", str(recipe), *other]) == 0
    assert inside(["compare", "quick", "users"]) == 2
