"""Which configuration a finished run's numbers belong to: for what gathers runs (leaderboard) and what pairs them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from pipelines.config import RunConfig, build_config
from pipelines.config_files import read_yaml
from pipelines.errors import RunError
from pipelines.run_folder import RunFolder
from pipelines.training.checkpoint import checkpoint_steps

_REMEDY = "start the run again: it ends with metrics of its present configuration"


def digest(config: RunConfig) -> str:
    """Digest of what decides a run's numbers, its machine and code apart."""
    values = config.resolved()
    parts: list[Any] = [config.identity(), config.recipe]
    for section in ("engine", "evaluation", "training"):  # what is as by default stays out: later keys change nothing
        default = RunConfig.model_fields[section].default
        usual = TypeAdapter(type(default)).dump_python(default, mode="json")
        parts.append({key: value for key, value in values[section].items() if value != usual[key]})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def settings_digest(config: RunConfig) -> str:
    """The same without the seed: runs that share it are the seeds of one configuration."""
    return digest(config.model_copy(update={"seed": 0}))


def configuration_of(folder: RunFolder, metrics: Mapping[str, Any]) -> RunConfig | None:
    """The configuration of config.yaml, which the metrics must be of; None where there is no config.yaml.

    Raises:
        RunError: the metrics are of another, or of other weights than the newest checkpoint's.
        ConfigError: config.yaml is not one of this version's.
    """
    _check_checkpoints(folder, metrics)
    if not folder.config.is_file():
        return None
    config = build_config(read_yaml(folder.config))
    trained = metrics.get("training", {})
    for what, same in (
        ("recipe", metrics.get("recipe") == config.recipe),
        ("seed", metrics.get("protocol", {}).get("seeds") == [config.seed]),
        # Options that came later are not in older metrics.
        ("model", config.engine.name != "recpod" or _agree(metrics.get("model", {}), config.resolved()["model"])),
        ("number of epochs", trained.get("epochs", 0) <= config.training.epochs),
        ("number of epochs", _end(trained, "epochs") in (None, config.training.epochs)),
        ("number of updates", _end(trained, "updates") in (None, config.training.max_steps)),
    ):
        if not same:
            what = f"metrics.json is of another {what} than config.yaml"
            raise RunError(what, where=str(folder.path), fix=_REMEDY)
    return config


def _check_checkpoints(folder: RunFolder, metrics: Mapping[str, Any]) -> None:
    """Refuse metrics from before a training that has gone on; a folder without checkpoints cannot tell.

    Raises:
        RunError: see above.
    """
    trained, steps = metrics.get("training", {}), checkpoint_steps(folder.checkpoints)
    if not steps or "steps" not in trained:
        return
    newest, asked = steps[-1], (trained["steps"], trained.get("best_step"))  # a person may have kept the best alone
    other_engine = "engine" in metrics.get("protocol", {})  # which may end between two checkpoints
    if newest > trained["steps"] or (newest not in asked and not other_engine):
        what = f"metrics.json is of a training of {trained['steps']} updates, the newest checkpoint of {newest}"
        raise RunError(what, where=str(folder.path), fix=_REMEDY)


def _end(trained: Mapping[str, Any], unit: str) -> int | None:
    """The number of epochs or updates at which training ended because it was to end there; None: it ended otherwise."""
    match = re.match(rf"(\d+) {unit}\b", trained.get("ended") or "")
    return int(match[1]) if match else None


def _agree(recorded: Any, present: Any) -> bool:
    """Whether what is recorded holds still; keys that came later are in ``present`` alone."""
    if isinstance(recorded, dict) and isinstance(present, dict):
        return bool(recorded or not present) and all(_agree(value, present.get(key)) for key, value in recorded.items())
    return bool(recorded == present)
