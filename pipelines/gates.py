"""Gates: what a run must reach on the test queries, fixed in its recipe before the first run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config import Gate, RunConfig, load_config
from pipelines.errors import ConfigError, nearest
from pipelines.run_folder import code_digest, read_json


def apply_gates(
    gates: Sequence[Gate], test: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """The gate section of metrics.json: a check a condition, and whether all passed (None without any condition)."""
    checks = []
    for gate in gates:
        if gate.metric not in test:
            raise ConfigError(f"gate on unknown metric '{gate.metric}'", where="gates", fix=nearest(gate.metric, test))
        value = test[gate.metric]
        if gate.above is not None:
            checks.append(_check(gate.metric, value, ">", gate.above, value > gate.above))
        if gate.times_popularity is not None:
            popular = baselines["popularity"][gate.metric]
            threshold, basis = gate.times_popularity * popular, f"{gate.times_popularity:g} x popularity"
            passed = popular > 0 and value >= threshold  # a multiple of nothing asks for nothing
            checks.append({**_check(gate.metric, value, ">=", threshold, passed), "basis": basis})
    return {"passed": all(check["passed"] for check in checks) if checks else None, "checks": checks}


def _check(metric: str, value: float, operator: str, threshold: float, passed: bool) -> dict[str, Any]:
    return {"metric": metric, "value": value, "operator": operator, "threshold": threshold, "passed": passed}


def missing_predecessor(config: RunConfig) -> str | None:
    """Why the recipe that should have passed before this one does not count, or None when it does.

    It counts when its own gate has passed, on its own data and protocol, with the present code and model options.
    """
    if config.after is None:
        return None
    shipped = load_config(config.after)
    runs = [read_json(path) for path in sorted(config.runs.glob("*/metrics.json"))]
    runs = [metrics for metrics in runs if metrics.get("recipe") == config.after]
    for asked, reason in (
        (None, f"has not been run (no result in {config.runs}/)"),
        ({"terms": gate_terms(shipped)}, "was run on other data, another protocol or another gate"),
        ({"gate": True}, "has a gate that has not passed"),
        ({"model": config.resolved()["model"]}, "passed with another model or other options"),
        ({"code": [code_digest()]}, "passed with other code"),
    ):
        runs = [metrics for metrics in runs if asked is None or _holds(metrics, asked)]
        if not runs:
            return f"'{config.after}' {reason}"
    return None


def gate_terms(config: RunConfig) -> dict[str, Any]:
    """What a gate was passed on: data, protocol and thresholds, for metrics.json."""
    values = config.resolved()
    dataset = {key: value for key, value in values["dataset"].items() if key not in ("cache", "gdrive_id")}
    return {"dataset": dataset, "protocol": config.evaluation.protocol, "gates": values["gates"]}


def _holds(metrics: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    found = {**metrics, "gate": metrics.get("gate", {}).get("passed")}
    return all(found.get(key) == value for key, value in asked.items())
