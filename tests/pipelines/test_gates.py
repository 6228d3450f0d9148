"""Gates by hand, and recipes that ask for the one before."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import Gate, load_config
from pipelines.errors import ConfigError
from pipelines.gates import apply_gates, gate_terms, missing_predecessor
from pipelines.run_folder import code_digest


def test_above_is_strict_and_popularity_is_a_multiple() -> None:
    gates = [Gate(metric="HR@10", above=0.25), Gate(metric="NDCG@10", times_popularity=2)]
    passed = apply_gates(gates, {"HR@10": 0.26, "NDCG@10": 0.2}, {"popularity": {"NDCG@10": 0.1}})
    missed = apply_gates(gates, {"HR@10": 0.25, "NDCG@10": 0.19}, {"popularity": {"NDCG@10": 0.1}})
    assert passed["passed"] and [check["passed"] for check in passed["checks"]] == [True, True]
    assert not missed["passed"] and [check["passed"] for check in missed["checks"]] == [False, False]
    assert missed["checks"][1] == {
        "metric": "NDCG@10",
        "value": 0.19,
        "operator": ">=",
        "threshold": 0.2,
        "passed": False,
        "basis": "2 x popularity",
    }


def test_a_gate_on_a_metric_that_is_not_measured() -> None:
    with pytest.raises(ConfigError, match=r"unknown metric 'NDGC@10'. did you mean 'NDCG@10'\?"):
        apply_gates([Gate(metric="NDGC@10", above=1)], {"NDCG@10": 1.0}, {})


def test_no_condition_is_not_a_pass_and_a_multiple_of_nothing_neither() -> None:
    assert apply_gates([], {"HR@10": 1.0}, {})["passed"] is None
    nothing = apply_gates([Gate(metric="HR@10", times_popularity=2)], {"HR@10": 0.0}, {"popularity": {"HR@10": 0.0}})
    assert nothing["passed"] is False
    with pytest.raises(ValueError, match="has no threshold"):
        Gate(metric="HR@10")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"gate": {"passed": False}}, "has not passed"),
        ({"gate": {"passed": None}}, "has not passed"),
        ({"code": ["other", code_digest()]}, "with other code"),
        ({"model": {"name": "ss4rec", "hidden": 3}}, "with another model"),
        ({"terms": {"dataset": {"name": "clicks.csv"}}}, "other data"),
        ({"recipe": "ml20m"}, "has not been run"),
    ],
)
def test_the_recipe_before_must_have_passed_as_shipped_with_this_code_and_model(
    tmp_path: Path, change: dict[str, Any], reason: str | None
) -> None:
    config = load_config("ml20m", [f"runs={tmp_path}"])
    metrics = {
        "gate": {"passed": True},
        "code": [code_digest()],
        "model": config.resolved()["model"],
        "recipe": "ml1m",
        "terms": json.loads(json.dumps(gate_terms(load_config("ml1m")))),
        **change,
    }
    (tmp_path / "any-name").mkdir()
    (tmp_path / "any-name" / "metrics.json").write_text(json.dumps(metrics))
    missing = missing_predecessor(config)
    assert missing is None if reason is None else missing is not None and reason in missing
