"""The depth study in a tiny mode: equal parameters, cells that are kept, and what counts as a collapse."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import mhc_depth
from models.registry import build_model
from pipelines.errors import ConfigError


def clicks(folder: Path) -> Path:
    rng = random.Random(0)
    rows = [f"{u},{min(int(rng.expovariate(0.1)), 59)},{1000 * u + 60 * i}" for u in range(40) for i in range(14)]
    path = folder / "clicks.csv"
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return path


def small(tmp_path: Path, *more: str) -> list[str]:
    sizes = ["--hidden", "16", "--length", "10", "--rows", "16", "--epochs", "1", "--eval-every", "1"]
    grid = ["--depths", "1", "2", "--forms", "pre", "mhc-pre", "--losses", "softmax", "--seeds", "1"]
    data = ["--dataset", str(clicks(tmp_path)), "--set", f"dataset.cache={tmp_path / 'cache'}"]
    return [*sizes, *grid, *data, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), *more]


@pytest.mark.parametrize("hidden", [32, 64])
@pytest.mark.parametrize("depth", [2, 8])
def test_forms_of_one_depth_have_equal_parameters(hidden: int, depth: int) -> None:
    options = mhc_depth.parse_arguments(["--hidden", str(hidden)])
    counts = []
    for form in mhc_depth.FORMS:
        config = mhc_depth.config_of(mhc_depth.Cell("ml-100k", "softmax", form, depth, 1), options)
        task = build_model("sasrec", 1682, config.model_options())
        counts.append(sum(parameter.numel() for parameter in task.parameters()))
    assert max(counts) / min(counts) < 1.01


def test_the_study_writes_its_result_and_runs_no_cell_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mhc_depth.main(small(tmp_path, "--part", "1/2"))
    assert not (tmp_path / "out").exists()  # the other half is missing
    mhc_depth.main(small(tmp_path))
    result = json.loads((tmp_path / "out" / "sasrec-mhc-depth.json").read_text())
    cells, lines = result["runs"]["cells"], result["runs"]["summary"]
    assert [(line["depth"], line["form"]) for line in lines] == [(d, f) for d in (1, 2) for f in ("mhc-pre", "pre")]
    for cell in cells:
        assert len(cell["before"]["gradient_norms"]) == len(cell["after"]["gradient_norms"]) == cell["depth"]
        assert all(norm > 0 for norm in cell["before"]["gradient_norms"]) and -1 <= cell["after"]["state_cosine"] <= 1
        assert cell["collapsed"] == (cell["NDCG@10"] < 1.1 * cell["popularity_NDCG@10"])
        assert len(cell["epoch_losses"]) == 1
    deepest = {line["form"]: line["NDCG@10"] for line in lines if line["depth"] == 2}
    assert result["value"] == pytest.approx(deepest["mhc-pre"] / max(deepest["pre"], 1e-9), abs=1e-3)
    monkeypatch.setattr(mhc_depth, "_trained", lambda *_: pytest.fail("a finished cell was run again"))
    mhc_depth.main(small(tmp_path))


def test_a_cell_of_other_settings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "work" / "runs" / "ml-100k-softmax-pre-2-seed-1"
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text('{"identity": "other"}')
    grid = ["--depths", "2", "--forms", "pre", "mhc-pre", "--losses", "softmax", "--seeds", "1"]
    with pytest.raises(SystemExit) as stopped:
        mhc_depth.main([*grid, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2 and "run with other settings" in capsys.readouterr().err


def cell(form: str, depth: int, ndcg: float, collapsed: bool, seed: int = 1) -> dict[str, Any]:
    return {
        "dataset": "made-up", "loss": "softmax", "form": form, "depth": depth, "seed": seed, "parameters": 1000,
        "NDCG@10": ndcg, "HR@10": 2 * ndcg, "valid_NDCG@10": ndcg, "collapsed": collapsed, "epoch_losses": [3.0, 2.0],
        "cpu_seconds": 1.0,
    }  # fmt: skip


def test_the_value_is_the_better_form_of_each_at_the_greatest_depth(tmp_path: Path) -> None:
    cells = [cell("post", 8, 0.02, True), cell("pre", 8, 0.05, False), cell("mhc-pre", 8, 0.06, False)]
    cells += [cell("pre", 2, 0.09, False), cell("mhc-pre", 2, 0.01, True)]
    result = json.loads(mhc_depth.report(cells, "python -m benchmarks.mhc_depth", tmp_path).read_text())
    assert result["value"] == pytest.approx(1.2) and result["met"] is True
    assert "post 1 of 1" in result["unit"] and "mhc-pre 0 of 1" in result["unit"]
    # a run that was not finite has no metric: it counts 0
    lost = cell("mhc-pre", 8, 0.06, True, seed=2)
    for key in ("NDCG@10", "HR@10", "valid_NDCG@10"):
        del lost[key]
    result = json.loads(mhc_depth.report([*cells, lost], "python -m benchmarks.mhc_depth", tmp_path).read_text())
    assert result["value"] == pytest.approx(0.6) and result["met"] is False


def test_a_grid_without_anything_to_compare_and_a_wrong_part_are_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mhc_depth.main(["--forms", "pre", "post"])
    assert "nothing to compare" in capsys.readouterr().err
    for wrong in ("3/2", "0/2", "half"):
        with pytest.raises(ConfigError, match="no part of a whole"):
            mhc_depth.parse_part(wrong)
