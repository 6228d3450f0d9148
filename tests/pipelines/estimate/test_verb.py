"""``recpod estimate`` from the command line: measures, prints, refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.batch import SequenceBatch
from pipelines import stages
from pipelines.cli import main
from pipelines.config import load_config
from pipelines.data.resident import ResidentEvents
from pipelines.estimate import throughput
from pipelines.estimate.measure import _small_step, endless_batches, make_trainer, process_age
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


def test_a_measurement_says_where_batches_were_made(
    capsys: pytest.CaptureFixture[str], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And makes them there, those of training and those of queries."""
    asked: list[bool] = []
    on, gather = ["--set", "loader.resident=on"], ResidentEvents.gather

    def counted(self: ResidentEvents, *batch: Any, last_target_only: bool = False) -> SequenceBatch:
        asked.append(last_target_only)
        return gather(self, *batch, last_target_only=last_target_only)

    monkeypatch.setattr(ResidentEvents, "gather", counted)
    monkeypatch.setattr("pipelines.estimate.measure.check_machine", lambda *_: None)  # slow, and tested above
    code, _, err = run(capsys, "estimate", str(tiny), "--gpu", "cpu", "--measure", "--seconds", "1", *on)
    assert code == 0, err
    assert asked.count(False) >= 26 and asked.count(True) == 1  # a step, five rounds, 20 small steps; 60 queries
    (entry,) = throughput.read_all()[0].measurements
    assert (entry.resident, entry.compile, entry.cuda_graph) == (True, False, False)
    for sets, measured in ((on, True), ([], False)):
        found = json.loads(run(capsys, "estimate", str(tiny), "--gpu", "cpu", "--json", *sets)[1])
        assert found["measured"] is measured and (found["memory"]["resident"] > 0) is measured


@pytest.mark.parametrize("captured", [True, False])
def test_what_a_step_costs_the_host_is_timed_on_a_full_batch_where_it_is_captured(
    tiny: Path, tmp_path: Path, captured: bool
) -> None:
    """One of a token would not be replayed: it would be computed as without a graph."""

    class Graph:
        def run(self, batch: SequenceBatch) -> None:
            """No common shape: computed as it is."""

    sizes: list[int] = []
    config = load_config(tiny)
    trainer = make_trainer(config, stages.prepare(config), tmp_path / "work")
    trainer.graphed = Graph() if captured else None  # type: ignore[assignment]
    trainer.speed.count = lambda batch: sizes.append(batch.num_tokens)  # type: ignore[method-assign]
    full = next(batches := endless_batches(trainer)).num_tokens
    assert _small_step(trainer, batches, trainer.device) > 0
    assert (sizes[0] > full / 2 > 5) if captured else (sizes == [1])


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
