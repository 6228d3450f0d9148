"""What a run folder says about its run, read without trust: a file may be missing, cut off or from an older version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import RunError
from pipelines.run_folder import RunFolder, read_json


@dataclass(frozen=True)
class RunRecord:
    """A run folder, read.

    Attributes:
        name: of the folder.
        config: the resolved configuration; empty when it is missing.
        config_text: the same as it stands in the file.
        environment: machine, versions, commit, kernels.
        metrics: protocol, valid, test, baselines, gate and more.
        events: every readable event, in order.
        problems: what is missing or cannot be read, one phrase each.
    """

    name: str
    config: Mapping[str, Any]
    config_text: str
    environment: Mapping[str, Any]
    metrics: Mapping[str, Any]
    events: list[dict[str, Any]]
    problems: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [event for event in self.events if event.get("kind") == kind]

    def curve(self, kind: str, key: str, x: str = "step") -> tuple[list[float], list[float]]:
        """``key`` over ``x`` of the events of one kind, where both are numbers."""
        pairs = [(event.get(x), event.get(key)) for event in self.of_kind(kind)]
        numbers = [
            (float(a), float(b)) for a, b in pairs if isinstance(a, (int, float)) and isinstance(b, (int, float))
        ]
        return [a for a, _ in numbers], [b for _, b in numbers]

    def best_validation(self) -> dict[str, Any] | None:
        """The validation event that chose the checkpoint: the first with the best value of the selecting metric."""
        select = self.selecting()
        scored = [event for event in self.of_kind("valid") if isinstance(event.get(select), (int, float))]
        return max(scored, key=lambda event: float(event[select])) if scored else None

    def selecting(self) -> str:
        """The metric that chooses the checkpoint."""
        training = self.config.get("training")
        return str(training.get("select", "NDCG@10")) if isinstance(training, Mapping) else "NDCG@10"

    def seconds(self) -> float | None:
        """Seconds of training over all resumes; while it runs, from the first event to the last."""
        recorded = self.section("training").get("seconds")
        if isinstance(recorded, (int, float)):
            return float(recorded)
        epochs = [event["seconds"] for event in self.of_kind("epoch") if isinstance(event.get("seconds"), (int, float))]
        if epochs:
            return float(epochs[-1])
        times = [time for event in self.events if (time := _moment(event.get("time"))) is not None]
        return times[-1] - times[0] if len(times) > 1 else None

    def cost(self) -> float | None:
        """What the training cost, when a price was given."""
        recorded = [self.section("training").get("cost"), *(event.get("cost") for event in reversed(self.events))]
        return next((float(value) for value in recorded if isinstance(value, (int, float))), None)

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of metrics.json, empty when it is not there."""
        value = self.metrics.get(name)
        return value if isinstance(value, Mapping) else {}


def read_run(path: Path) -> RunRecord:
    """Read the folder at ``path``.

    Raises:
        RunError: there is no such folder, or it holds nothing of a run.
    """
    folder = RunFolder(path)
    files = (folder.config, folder.environment, folder.events, folder.metrics)
    if not any(file.is_file() for file in files):
        names = ", ".join(file.name for file in files)
        raise RunError(f"this is not a run folder (none of {names})", where=str(path), fix="give the folder of a run")
    problems = [f"{file.name} is missing" for file in files if not file.is_file()]
    config_text = folder.config.read_text(encoding="utf-8", errors="replace") if folder.config.is_file() else ""
    try:
        config = yaml.safe_load(config_text)
    except yaml.YAMLError:
        config = None
        problems.append(f"{folder.config.name} is not valid YAML")
    return RunRecord(
        name=path.resolve().name,
        config=config if isinstance(config, dict) else {},
        config_text=config_text,
        environment=_json(folder.environment, problems),
        metrics=_json(folder.metrics, problems),
        events=_events(folder.events, problems),
        problems=problems,
    )


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return read_json(path)
    except RunError as error:
        problems.append(f"{path.name} cannot be read ({error.what})")
        return {}


def _events(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    events, unreadable = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict):
            events.append(event)
        else:
            unreadable += 1
    if unreadable:
        problems.append(f"{unreadable} of {unreadable + len(events)} lines of {path.name} cannot be read")
    return events


def _moment(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None
