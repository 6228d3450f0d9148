"""Trackers: W&B and MLflow behind one small interface. A tracker that fails never takes the training with it.

The record of a run is its own folder; trackers are copies for looking at. Metrics carry the training step as
``global_step``, so that a resumed run, which tells a few steps again, draws over what it drew before. Secrets come from
the environment alone; configuration values that contain one are blotted out before they leave the process.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pipelines.errors import ConfigError, MachineError, nearest
from pipelines.training.events import EventLog

Status = Literal["finished", "failed", "interrupted"]
_WANDB_MODES = ("auto", "online", "offline", "off")
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|WEBHOOK\w*)$")
_RETRY_SECONDS = 60.0  # a tracker that failed is tried again this often; what was logged meanwhile is kept for it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackingOptions:
    """Where the numbers of a run are shown."""

    wandb: str = "auto"
    """``online``, ``offline`` (a folder that `wandb sync` uploads later), ``off``, or ``auto``: online when
    WANDB_API_KEY is set, else offline. Nothing ever waits for a key to be typed."""
    mlflow: str = "off"
    """``off`` or a tracking address, such as ``sqlite:///mlruns.sqlite`` or ``http://host:5000``."""
    project: str = "recpod"
    """W&B project and MLflow experiment."""
    entity: str | None = None
    """W&B user or team; default: the key's own."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        if self.wandb not in _WANDB_MODES:
            raise ConfigError(
                f"unknown mode '{self.wandb}'", where="tracking.wandb", fix=nearest(self.wandb, _WANDB_MODES)
            )
        if self.mlflow != "off" and ("://" not in self.mlflow or self.mlflow.startswith("file:")):
            raise ConfigError(
                f"'{self.mlflow}' is no address MLflow can track to",
                where="tracking.mlflow",
                fix="use sqlite:///mlruns.sqlite",
            )


class Tracker(Protocol):
    """What a run tells a tracker."""

    @property
    def run_ids(self) -> dict[str, str]:
        """Tracker name to the id of this run there; goes into the checkpoint."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a training step."""

    def summary(self, values: Mapping[str, float]) -> None:
        """Final numbers of the run."""

    def finish(self, status: Status) -> None:
        """The run's fate; nothing is logged afterwards."""


def open_trackers(
    options: TrackingOptions,
    *,
    run_name: str,
    config: Mapping[str, Any],
    folder: Path,
    resume_ids: Mapping[str, str],
) -> Tracker:
    """Start, or go on with, the trackers that ``options`` asks for.

    Args:
        options: which trackers.
        run_name: shown there.
        config: resolved configuration, nested; secrets are blotted out.
        folder: the run's folder: W&B writes into it, failures are recorded in its events.jsonl.
        resume_ids: ``run_ids`` of the checkpoint that is resumed; empty for a new run.

    Returns:
        One tracker that passes everything on, also to none at all.

    Raises:
        ConfigError: online tracking without a key, or a key that is not accepted.
        MachineError: a package that is asked for is not installed.
    """
    config = without_secrets(config)
    events = folder / "events.jsonl"
    trackers: dict[str, Tracker] = {}
    mode = wandb_mode(options)
    if mode != "off":
        require("wandb")
        from pipelines.training.tracking_wandb import open_wandb

        trackers["wandb"] = open_wandb(
            options, mode=mode, run_name=run_name, config=config, folder=folder, run_id=resume_ids.get("wandb")
        )
    if options.mlflow != "off":
        require("mlflow")
        from pipelines.training.tracking_mlflow import open_mlflow

        trackers["mlflow"] = open_mlflow(options, run_name=run_name, config=config, run_id=resume_ids.get("mlflow"))
    return Trackers({name: PatientTracker(name, tracker, events) for name, tracker in trackers.items()})


@dataclass
class Trackers:
    """Any number of trackers as one."""

    trackers: Mapping[str, Tracker]

    @property
    def run_ids(self) -> dict[str, str]:
        """The ids of all."""
        return {name: run_id for tracker in self.trackers.values() for name, run_id in tracker.run_ids.items()}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Pass on to all."""
        for tracker in self.trackers.values():
            tracker.log(step, values)

    def summary(self, values: Mapping[str, float]) -> None:
        """Pass on to all."""
        for tracker in self.trackers.values():
            tracker.summary(values)

    def finish(self, status: Status) -> None:
        """Pass on to all."""
        for tracker in self.trackers.values():
            tracker.finish(status)


@dataclass
class PatientTracker:
    """A tracker whose failures are told, recorded and got over: training goes on.

    What cannot be delivered is kept and delivered, in order, when the tracker works again; it is tried once a minute
    and at the end. The first failure of an outage gives one warning line and an event "tracker" in the run's event
    file; so do a recovery and numbers that were never delivered.

    Attributes:
        name: of the tracker.
        tracker: the tracker itself.
        events: the run's event file.
        pending: deliveries that failed, oldest first.
        retry_at: monotonic time before which nothing is tried.
    """

    name: str
    tracker: Tracker
    events: Path
    pending: list[tuple[int, Callable[[], None]]] = field(default_factory=list)
    retry_at: float = -math.inf

    @property
    def run_ids(self) -> dict[str, str]:
        """The tracker's own."""
        return self.tracker.run_ids

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Deliver, or keep for later."""
        values = dict(values)
        self._deliver(step, lambda: self.tracker.log(step, values))

    def summary(self, values: Mapping[str, float]) -> None:
        """Deliver, or keep for later."""
        values = dict(values)
        self._deliver(-1, lambda: self.tracker.summary(values))

    def finish(self, status: Status) -> None:
        """Try everything a last time."""
        self.retry_at = -math.inf
        self._deliver(-1, lambda: self.tracker.finish(status))
        if self.pending:
            self._tell(-1, f"{len(self.pending)} deliveries were lost; the numbers are in {self.events}")

    def _deliver(self, step: int, delivery: Callable[[], None]) -> None:
        failing = bool(self.pending)
        self.pending.append((step, delivery))
        if time.monotonic() < self.retry_at:
            return
        try:
            while self.pending:
                self.pending[0][1]()
                self.pending.pop(0)
        except Exception as error:
            self.retry_at = time.monotonic() + _RETRY_SECONDS
            if not failing:
                self._tell(step, f"failed ({describe_error(error)}); training goes on and keeps the numbers")
        else:
            if failing:
                self._tell(step, "works again; nothing was lost")

    def _tell(self, step: int, message: str) -> None:
        logger.warning("%s %s", self.name, message)
        events = EventLog(self.events)
        events.write("tracker", step=step, epoch=-1, tracker=self.name, message=message)
        events.close()


def wandb_mode(options: TrackingOptions) -> str:
    """``online``, ``offline`` or ``off``: what ``auto`` means here, said in one line where it is not online.

    Raises:
        ConfigError: online without a key.
    """
    key = os.environ.get("WANDB_API_KEY")
    if options.wandb == "online" and not key:
        raise ConfigError(
            "online tracking needs a key", where="tracking.wandb", fix="set WANDB_API_KEY, or use offline or off"
        )
    if options.wandb != "auto":
        return options.wandb
    if key:
        return "online"
    if not installed("wandb"):
        logger.warning("wandb: not installed, so nothing is tracked there")
        return "off"
    logger.warning(
        "wandb: no WANDB_API_KEY, so tracking offline; `wandb sync` uploads it later, --no-wandb switches it off"
    )
    return "offline"


def installed(package: str) -> bool:
    """Whether ``package`` can be imported; a folder of that name in the working directory, as W&B makes, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def require(package: str) -> None:
    """Make sure that a tracker's package is installed, without importing it.

    Raises:
        MachineError: it is not.
    """
    if not installed(package):
        raise MachineError(
            f"the package {package} is not installed",
            where=f"tracking.{package}",
            fix="pip install 'recpod[tracking]', or switch it off",
        )


def without_secrets(value: Any) -> Any:
    """``value`` with every secret of the environment blotted out of its strings, and passwords out of addresses.

    Secrets are variables whose names end in KEY, TOKEN, SECRET, PASSWORD or WEBHOOK(_URL).
    """
    if isinstance(value, Mapping):
        return {key: without_secrets(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(entry) for entry in value]
    if not isinstance(value, str):
        return value
    for name, secret in os.environ.items():
        if _SECRET_NAME.search(name) and len(secret) >= 6:
            value = value.replace(secret, "***")
    return re.sub(r"(?<=://)[^/@\s]*:[^/@\s]*(?=@)", "***", value)


def describe_error(error: BaseException) -> str:
    """An error as half a line, free of secrets."""
    text = " ".join(str(without_secrets(str(error))).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
