"""Finished runs become claims: seeds are averaged, claims are kept apart, and a miss stays a miss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy
from pipelines.config import recipes
from pipelines.errors import RunError
from pipelines.evaluation.results_readme import read_results


def finished_run(folder: Path, recipe: str, query_time: str, hr: float, ndcg: float) -> str:
    folder.mkdir()
    test, popularity = {"HR@10": hr, "NDCG@10": ndcg}, {"HR@10": 0.04, "NDCG@10": 0.02}
    metrics = {
        "protocol": {"name": "loo-full-masked", "query_time": query_time, "catalogue_items": 3706},
        "recipe": recipe,
        "valid": {"HR@10": 0.3, "NDCG@10": 0.19},
        "test": test,
        "baselines": {"popularity": popularity},
        "also": {"loo-full": {"test": {"HR@10": 0.2, "NDCG@10": 0.1}, "popularity": popularity}},
        "gate": {"passed": False, "checks": []},
        "training": {"epochs": 40, "ended": "no better NDCG@10 in 10 validations", "seconds": 5400.0},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return str(folder)


def claims(folder: Path, *runs: str, tried: int = 1) -> dict[str, dict[str, Any]]:
    accuracy.main([*runs, "--tried", str(tried), "--out", str(folder)])
    return {result["claim"]: result for result in read_results(folder)}


def test_aware_and_blind_are_claims_apart_and_seeds_are_averaged(tmp_path: Path) -> None:
    runs = [
        finished_run(tmp_path / "blind", "ml1m", "blind", 0.30, 0.17),
        finished_run(tmp_path / "aware-1", "ml1m", "aware", 0.34, 0.21),
        finished_run(tmp_path / "aware-2", "ml1m", "aware", 0.36, 0.23),
    ]
    found = claims(tmp_path / "out", *runs, tried=7)
    aware, blind = found["front-ml1m-aware"], found["front-ml1m-blind"]
    assert (aware["value"], aware["met"], blind["value"], blind["met"]) == (0.22, True, 0.17, False)
    said = ("HR@10 0.3500 (0.3400 to 0.3600)", "mean of 2 seed(s)", "7 configuration(s) tried", "1.50/1.50 h")
    assert all(text in aware["unit"] for text in said)
    assert aware["runs"]["configurations_tried"] == 7 and len(aware["runs"]["runs"]) == 2
    assert aware["target"].startswith("> 0.2 (and HR@10 > 0.25)") and "model.query_time=blind" in blind["command"]


def test_both_metrics_are_needed(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", "ml1m", "aware", 0.24, 0.25)
    assert claims(tmp_path / "out", run)["front-ml1m-aware"]["met"] is False


def test_each_catalogue_has_its_own_claim(tmp_path: Path) -> None:
    runs = [
        finished_run(tmp_path / recipe, recipe, "blind", 0.31, 0.178)
        for recipe in ("sasrec-ml1m", "sasrec-ml1m-3416", "sasrec-beauty")
    ]
    found = claims(tmp_path / "out", *runs)
    assert {name: result["met"] for name, result in found.items()} == {
        "sasrec-ml1m-blind": True,
        "sasrec-ml1m-3416-blind": False,
        "sasrec-beauty-blind": True,
    }


def test_every_claim_names_a_recipe_that_is_there() -> None:
    assert {recipe for recipe, _ in accuracy.CLAIMS} <= set(recipes())


def test_what_cannot_be_a_claim_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no metrics.json"):
        claims(tmp_path / "out", str(tmp_path / "empty"))
    with pytest.raises(RunError, match="no claim is made for recipe 'mine'"):
        claims(tmp_path / "out", finished_run(tmp_path / "run", "mine", "blind", 0.3, 0.2))
