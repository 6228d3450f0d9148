"""The one writer of benchmarks/results: one JSON file a claim, with what was measured where, and on which code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.machine import describe_machine, package_versions
from pipelines.run_folder import commit

RESULTS = Path(__file__).resolve().parent / "results"
PARTS = ("front", "container", "sasrec", "hstu", "sid", "scaling", "drift")


def write_result(
    *,
    claim: str,
    value: float,
    unit: str,
    target: str,
    met: bool,
    peer: str,
    command: str,
    runs: Sequence[Any] | Mapping[str, Any],
    folder: Path = RESULTS,
) -> Path:
    """Write ``folder/CLAIM.json`` and return its path.

    Args:
        claim: ``PART-what``, such as ``front-setup-seconds``; also the file's name.
        value: the figure that is quoted.
        unit: of the value, and how it comes from the runs.
        target: what was asked for, with its direction: ``<= 360``.
        met: whether the value reaches the target; a miss is written down like a hit.
        peer: what it was measured against in the same run.
        command: how to repeat it; a local mirror's path in it becomes ``$RECPOD_MIRROR``.
        runs: every raw value, every seed.
        folder: where to.

    Raises:
        ConfigError: a claim of no known part, or a target without a direction.
    """
    if claim.partition("-")[0] not in PARTS or not claim.replace("-", "").isalnum():
        raise ConfigError(f"'{claim}' is no claim's name", where="claim", fix=f"begin with one of {', '.join(PARTS)}")
    if not target.startswith((">", "<", "=")):
        raise ConfigError(f"'{target}' has no direction", where="target", fix="begin with <=, <, >=, > or =")
    mirror = os.environ.get("RECPOD_MIRROR")
    result = {
        "claim": claim,
        "value": value,
        "unit": unit,
        "target": target,
        "met": bool(met),
        "peer": peer,
        "command": command.replace(mirror, "$RECPOD_MIRROR") if mirror else command,
        "machine": describe_machine(),
        "versions": package_versions(),
        "commit": commit(),
        "runs": runs,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{claim}.json"
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path
