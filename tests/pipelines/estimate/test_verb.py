"""``recpod estimate`` from the command line: measures, prints, refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.config import load_config
from pipelines.estimate import throughput
from pipelines.estimate.measure import process_age
from pipelines.machine import usable_cores


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


@pytest.fixture(autouse=True)
def no_shipped_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of these tests go into the test's own data folder, as in an image whose code cannot be written."""
    monkeypatch.setattr(throughput, "SHIPPED", tmp_path / "read-only")
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "data"))


def test_measure_then_estimate(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    code, out, err = run(capsys, "estimate", str(tiny), "--gpu", "cpu", "--measure", "--seconds", "1")
    assert code == 0, err
    assert "measured on this machine" in out and "hours" in out and ": an estimate, nothing was run" in out
    (file,) = throughput.read_all()
    (entry,) = file.measurements
    assert file.path.parent == tiny.parent / "data" / "throughput" and file.device["cores"] == usable_cores()
    assert len(entry.targets_per_s) == 5 and min(entry.targets_per_s) > 0
    assert 0 < entry.step_overhead_s < 10 and 0 < entry.startup_s <= process_age() and entry.save_s > 0
    assert entry.model == load_config(tiny).resolved()["model"] and not list(tiny.parent.glob("runs*"))
    code, out, _ = run(capsys, "estimate", str(tiny), "--gpu", "cpu", "--price-per-hour", "2", "--json")
    found = json.loads(out)
    assert code == 0 and found["measured"] is True and found["memory"]["verdict"] == "fits"
    assert found["dollars"]["middle"] == pytest.approx(2 * found["hours"]["middle"])
    assert found["steps"] == 3 * found["steps_per_epoch"]
    code, out, _ = run(capsys, "estimate", str(tiny), "--gpu", "A100", "--json")
    found = json.loads(out)
    assert code == 0 and found["measured"] is False and "not measured" in found["rests_on"]


def test_a_run_that_does_not_fit_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["--set", "model.hidden=4096", "--set", "loader.tokens_per_batch=400000", "--set", "model.layers=8"]
    code, out, err = run(capsys, "estimate", "ml20m", "--gpu", "A4000", *sets)
    assert code == 0, err
    assert "does not fit" in out


@pytest.mark.parametrize("model", ["sasrec", "sasrec-mhc", "tisasrec", "tisasrec-mhc"])
def test_attention_models_are_answered(capsys: pytest.CaptureFixture[str], model: str) -> None:
    """From published counts; hours are not known as long as no file holds the model, and that is said."""
    code, out, err = run(capsys, "estimate", "sasrec-ml1m", "--gpu", "A100", "--json", "--set", f"model={model}")
    assert code == 0, err
    found = json.loads(out)
    assert found["memory"]["verdict"] == "fits" and found["flops_per_target"] > 1e6
    assert found["hours"] is None and f"no throughput file holds '{model.split('-')[0]}'" in found["reason"]


def test_the_remedy_can_be_taken(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("estimate", "ml20m", "--gpu", "A4000", "--json", "--set")
    code, out, _ = run(capsys, *command, "loader.tokens_per_batch=9000000")
    memory = json.loads(out)["memory"]
    present, largest = memory["limits"]["tokens_per_batch"]
    assert code == 0 and not memory["fits"] and 0 < largest < present == 9_000_000
    assert f"reduce loader.tokens_per_batch from 9,000,000 to {largest:,}" in memory["verdict"]
    assert json.loads(run(capsys, *command, f"loader.tokens_per_batch={largest}")[1])["memory"]["fits"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["quickstart", "--gpu", "H1000"], "--gpu: unknown GPU 'H1000'. did you mean 'H100'?"),
        (["quikstart"], "unknown recipe 'quikstart'. did you mean 'quickstart'?"),
        (["production", "--gpu", "A100"], "run `recpod prepare production` first"),
        (["quickstart", "--gpu", "A100", "--gpus", "0"], "--gpus: 0 of A100"),
        (["quickstart", "--gpu", "A100", "--measure"], "--measure: only this machine can be measured"),
        (["quickstart", "--gpu", "cpu", "--measure", "--seconds", "0"], "--seconds: 0.0 is less than 1"),
        (["quickstart", "--gpu", "A100", "--price-per-hour", "-1"], "--price-per-hour: -1.0 is not positive"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    code, _, err = run(capsys, "estimate", *arguments)
    assert code == 2 and line in err and len(err.strip().splitlines()) == 1
