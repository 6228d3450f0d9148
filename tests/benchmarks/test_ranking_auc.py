"""Claims of ranking runs: the mean over seeds beside the baseline of the same runs; what is no such run is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ranking_auc
from pipelines.errors import RunError


def finished_run(folder: Path, auc: float, recipe: str = "ranking-ml1m", baseline: float = 0.7) -> str:
    folder.mkdir(parents=True)
    metrics: dict[str, Any] = {
        "recipe": recipe,
        "protocol": {"name": "ranking-last", "asked_events": "the newest 1", "users": 6040, "query_time": "blind"},
        "test": {"AUC": auc, "GAUC": 0.6},
        "valid": {"AUC": auc + 0.01},
        "intervals": {"test": {"AUC": [auc - 0.01, auc + 0.01]}},
        "baselines": {"item average": {"AUC": baseline, "GAUC": 0.55}},
        "asked": {"test": 6040},
        "model": {"name": "hstu-ranking"},
        "training": {"epochs": 7, "seconds": 1800.0},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return str(folder)


def test_the_mean_over_seeds_is_held_against_the_baseline(tmp_path: Path) -> None:
    runs = [finished_run(tmp_path / "one", 0.80), finished_run(tmp_path / "two", 0.82)]
    ranking_auc.main([*runs, "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out" / "hstu-ml1m-ranking-auc.json").read_text())
    assert (result["value"], result["met"]) == (0.81, True)
    assert "GAUC 0.6000" in result["unit"] and "mean of 2 seed(s)" in result["unit"] and "7/7 epochs" in result["unit"]
    assert result["target"].startswith("> 0.7000") and "item average" in result["peer"]
    assert len(result["runs"]["runs"]) == 2


def test_a_baseline_that_is_better_is_said(tmp_path: Path) -> None:
    ranking_auc.main([finished_run(tmp_path / "one", 0.80, baseline=0.81), "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "hstu-ml1m-ranking-auc.json").read_text())["met"] is False


def test_what_cannot_be_a_claim_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"no metrics\.json"):
        ranking_auc.main([str(tmp_path / "empty")])
    with pytest.raises(RunError, match="no claim is made for recipe 'mine'"):
        ranking_auc.main([finished_run(tmp_path / "run", 0.8, recipe="mine")])
