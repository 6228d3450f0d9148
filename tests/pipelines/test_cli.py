"""The command line: one line and exit code 2 for mistakes; every verb on a tiny run; resume, gate and refusal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.run_folder import ROOT
from pipelines.training.checkpoint import checkpoint_path, checkpoint_steps

TINY = """
name: tiny
dataset: {data}
model: {{name: ss4rec, hidden: 16, s5_state: 4, d_state: 4, layers: 1}}
loader: {{max_length: 10, windows: all, rows_per_batch: 16}}
training: {{epochs: 2, log_every: 1}}
tracking: {{wandb: "off"}}
runs: {runs}
gates: [{{metric: NDCG@10, above: {gate}}}]
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe on a generated file in which item i is mostly followed by item i + 1."""
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "data"))
    data = tmp_path / "clicks.csv"
    rows = [f"{u},{(u * 7 + i + (i % 5 == 4) * u) % 40},{1000 * u + 60 * i}" for u in range(60) for i in range(14)]
    data.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY.format(data=data, runs=tmp_path / "runs", gate=0.0))
    return recipe


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["runbook", "--test-ml1"], "unknown flag '--test-ml1'. did you mean '--test-ml1m'?"),
        (["runbok"], "unknown verb 'runbok'. did you mean 'runbook'?"),
        (["runbook", "--model", "ss4rek", "--dry-run"], "--model: unknown model 'ss4rek'. did you mean 'ss4rec'?"),
        (["runbook", "--dataset", "ml-1n", "--dry-run"], "did you mean 'ml-1m'?"),
        (["runbook", "--test-ml1m", "--quickstart"], "--quickstart and --test-ml1m name different recipes"),
        (["runbook", "--max-cost", "3", "--dry-run"], "add --price-per-hour"),
        (["run", "ml1n"], "unknown recipe 'ml1n'. did you mean 'ml1m'?"),
        (["run", "nosuch.yaml"], "nosuch.yaml: cannot be read"),
        (["runbook", "--set", "seed", "--dry-run"], "'seed' is not of the form"),
        (["runbook", "--max-hours", "soon"], "valid"),
        (["report", "nosuch"], "no such run folder"),
        (
            ["runbook", "--production", "--set", "runs=nosuch"],
            "'production' comes after 'ml20m': 'ml20m' has not been run",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2 and line in err and len(err.strip().splitlines()) == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "dry run of quickstart"),
        (["--quickstart"], "dataset ml-100k"),
        (["--test-ml1m", "--debug"], "NDCG@10 > 0.2"),
        (["--test-ml20m", "--debug"], "NDCG@10 > 0.25"),
        (["--model", "ss4rec-official"], "dataset ml-32m-past"),
        (["--model", "ss4rec-official", "--dataset", "ml-20m", "--debug"], "dry run of ss4rec-official-ml-20m"),
        (["--model", "ss4rec-official", "--production"], "NDCG@10 > 0.25"),
        (["--config", "configs/official/ss4rec_ml1m.yaml", "--no-wandb"], "wandb: 'off'"),
        (["--max-hours", "2", "--max-cost", "5", "--price-per-hour", "2.5"], "max_cost: 5.0"),
    ],
)
def test_front_door_flags_mean_these_recipes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str], expected: str
) -> None:
    monkeypatch.chdir(ROOT)
    code, out, _ = run(capsys, "runbook", "--dry-run", *flags)
    assert code == 0 and expected in out


def test_debug_never_shortens_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    plain, debug = (run(capsys, "runbook", "--dry-run", "--test-ml1m", *flags)[1] for flags in ([], ["--debug"]))
    assert [line for line in debug.splitlines() if line not in plain.splitlines()] == ["debug: true"]


def test_a_run_from_nothing_to_its_report_and_again(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    folder = tiny.parent / "runs" / "tiny"
    code, out, err = run(capsys, "run", str(tiny))
    assert code == 0, err
    assert {path.name for path in folder.iterdir()} >= {
        *("config.yaml", "environment.json", "events.jsonl", "metrics.json"),
        *("ranks.parquet", "checkpoints", "report.html"),
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["protocol"]["query_time"] == "aware" and metrics["protocol"]["mask_seen"]
    assert metrics["gate"]["passed"] and "popularity" in out
    before = (folder / "metrics.json").stat().st_mtime_ns
    assert run(capsys, "run", str(tiny))[0] == 0  # nothing is left to do
    assert (folder / "metrics.json").stat().st_mtime_ns == before
    assert run(capsys, "evaluate", str(tiny))[0] == 0 and run(capsys, "report", str(folder))[0] == 0


def test_a_missed_gate_exits_3_and_is_published(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    tiny.write_text(tiny.read_text().replace("above: 0.0", "above: 0.999"))
    code, out, _ = run(capsys, "run", str(tiny))
    metrics = json.loads((tiny.parent / "runs" / "tiny" / "metrics.json").read_text())
    assert code == 3 and "missed" in out and metrics["gate"]["passed"] is False
    assert (tiny.parent / "runs" / "tiny" / "report.html").exists()


def test_stages_one_by_one(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    assert "clicks.csv" in run(capsys, "fetch", str(tiny))[1]
    assert "60 users, 40 items, 840 events" in run(capsys, "prepare", str(tiny))[1]
    code, _, err = run(capsys, "evaluate", str(tiny))
    assert code == 2 and "no checkpoint to evaluate" in err
    assert run(capsys, "train", str(tiny))[0] == 0
    assert run(capsys, "evaluate", str(tiny))[0] == 0


def test_another_configuration_in_the_same_folder_is_refused(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    assert run(capsys, "train", str(tiny))[0] == 0
    folder = tiny.parent / "runs" / "tiny"
    before = {name: (folder / name).read_bytes() for name in ("config.yaml", "environment.json", "events.jsonl")}
    code, _, err = run(capsys, "train", str(tiny), "--set", "seed=2")
    assert code == 2 and "another configuration" in err
    assert before == {name: (folder / name).read_bytes() for name in before}  # the record is as it was
    assert run(capsys, "train", str(folder / "config.yaml"))[0] == 0  # and its own configuration still fits
    code, out, _ = run(capsys, "train", str(tiny), "--set", "seed=2", "--resume", "never")
    assert code == 0 and "set aside" in out and (tiny.parent / "runs" / "tiny-before-1" / "checkpoints").is_dir()


def test_resuming_from_another_runs_checkpoint_takes_its_best_along(
    capsys: pytest.CaptureFixture[str], tiny: Path
) -> None:
    assert run(capsys, "train", str(tiny))[0] == 0
    other = tiny.parent / "runs" / "tiny"
    code, out, err = run(capsys, "run", str(tiny), "--set", "name=second", "--resume", str(other))
    assert code == 0 and "resuming from" in out, err
    assert checkpoint_steps(tiny.parent / "runs" / "second" / "checkpoints")


def test_resuming_from_an_older_checkpoint_sets_the_newer_ones_aside(
    capsys: pytest.CaptureFixture[str], tiny: Path
) -> None:
    assert run(capsys, "train", str(tiny), "--set", "training.keep=9")[0] == 0
    folder = tiny.parent / "runs" / "tiny" / "checkpoints"
    oldest, newest = checkpoint_steps(folder)[0], checkpoint_steps(folder)[-1]
    assert oldest < newest
    code, out, _ = run(capsys, "train", str(tiny), "--resume", str(checkpoint_path(folder, oldest)))
    assert code == 0 and "set aside" in out and checkpoint_steps(folder)[-1] == newest  # trained again
    assert checkpoint_steps(folder.with_name("checkpoints-before-1"))[-1] == newest


def test_a_stop_before_training_leaves_with_75(tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom pipelines import cli\n"
        "cli.app.command('wait')(lambda: os.kill(os.getpid(), signal.SIGTERM))\ncli.main(['wait'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 75 and "start the same command again" in done.stderr


@pytest.mark.parametrize(
    "bad",
    [
        "gates=[{metric: HR@0, above: 0.1}]",
        "evaluation.also=[loo-ful]",
        "evaluation.protocol=global-time",
        "training.select=NDGC@10",
        "training.select=Coverage@10",
        "evaluation.ks=[0]",
        "training.grad_clip=-1",
        "optimizer.lr=.nan",
        "optimizer.beta1=2",
        "model.layers=0",
        "model.dt_min=1",
        "guards.max_hours=-1",
    ],
)
def test_values_that_make_no_sense_are_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    code, _, err = run(capsys, "run", "quickstart", "--dry-run", "--set", bad)
    assert code == 2 and len(err.strip().splitlines()) == 1 and "Traceback" not in err


def test_every_recipe_has_a_folder_of_its_own_whatever_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "ss4rec-official"]
    flags = [["--test-ml1m", *model], ["--test-ml20m", *model], ["--production", *model], model, ["--production"]]
    names = {run(capsys, "runbook", "--dry-run", *given)[1].splitlines()[0] for given in flags}
    names |= {run(capsys, "runbook", "--dry-run", *given, "--dataset", "ml-10m")[1].splitlines()[0] for given in flags}
    assert len(names) == 2 * len(flags)


def test_a_corrupt_checkpoint_is_one_line_and_nothing_is_lost(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    assert run(capsys, "train", str(tiny))[0] == 0
    folder = tiny.parent / "runs" / "tiny" / "checkpoints"
    newest = checkpoint_path(folder, checkpoint_steps(folder)[-1])
    (newest / "state.pt").write_bytes(b"torn")
    code, _, err = run(capsys, "train", str(tiny))
    assert code == 2 and "corrupt" in err and newest.is_dir()


def test_sigterm_leaves_a_checkpoint_and_exit_code_75_and_the_next_start_resumes(
    capsys: pytest.CaptureFixture[str], tiny: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "pipelines",
        "train",
        str(tiny),
        "--set",
        "training.epochs=100000",
        "--set",
        "training.patience=0",
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    events = tiny.parent / "runs" / "tiny" / "events.jsonl"
    deadline = time.monotonic() + 150
    while not events.exists() or '"valid"' not in events.read_text():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "start the same command again" in err
    done = max(json.loads(line)["epoch"] for line in events.read_text().splitlines())
    code, out, err = run(
        capsys, "train", str(tiny), "--set", f"training.epochs={done + 1}", "--set", "training.patience=0"
    )
    assert code == 0 and "resuming from" in out, err


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "config", "schema")
    assert code == 0 and json.loads(out)["properties"]["seed"]["minimum"] == 0


def test_show_prints_what_load_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "shown.yaml"
    path.write_text(run(capsys, "config", "show", "quickstart")[1])
    assert (
        run(capsys, "config", "show", str(path))[1].replace("recipe: shown", "recipe: quickstart") == path.read_text()
    )
