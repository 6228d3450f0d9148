"""Gates: what a run must reach on the test queries, fixed in its recipe before the first run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config import Gate, RunConfig
from pipelines.errors import ConfigError, nearest
from pipelines.run_folder import code_digest, read_json


def apply_gates(
    gates: Sequence[Gate], test: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """The gate section of metrics.json: ``passed`` and a check a condition, each with its value and threshold."""
    checks = []
    for gate in gates:
        if gate.metric not in test:
            raise ConfigError(f"gate on unknown metric '{gate.metric}'", where="gates", fix=nearest(gate.metric, test))
        value = test[gate.metric]
        if gate.above is not None:
            checks.append(_check(gate.metric, value, ">", gate.above, value > gate.above))
        if gate.times_popularity is not None:
            threshold = gate.times_popularity * baselines["popularity"][gate.metric]
            basis = f"{gate.times_popularity:g} x popularity"
            checks.append({**_check(gate.metric, value, ">=", threshold, value >= threshold), "basis": basis})
    return {"passed": all(check["passed"] for check in checks), "checks": checks}


def _check(metric: str, value: float, operator: str, threshold: float, passed: bool) -> dict[str, Any]:
    return {"metric": metric, "value": value, "operator": operator, "threshold": threshold, "passed": passed}


def missing_predecessor(config: RunConfig) -> str | None:
    """Why the recipe that should have passed before this one does not count, or None when it does.

    It counts when its gate has passed with this code and with the same model options.
    """
    if config.after is None:
        return None
    runs = [read_json(path) for path in sorted(config.runs.glob("*/metrics.json"))]
    runs = [metrics for metrics in runs if metrics.get("recipe") == config.after]
    if not runs:
        return f"'{config.after}' has not been run (no result in {config.runs}/)"
    runs = [metrics for metrics in runs if metrics.get("gate", {}).get("passed")]
    if not runs:
        return f"the gate of '{config.after}' has not passed"
    runs = [metrics for metrics in runs if metrics.get("model") == config.resolved()["model"]]
    if not runs:
        return f"the gate of '{config.after}' passed with another model or other options"
    if not any(metrics.get("code") == code_digest() for metrics in runs):
        return f"the gate of '{config.after}' passed with other code"
    return None
