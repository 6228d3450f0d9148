"""Where a run writes what happens: the event file, the trackers and the progress display, behind one ``write``.

Each event also renews the heartbeat (the file RECPOD_HEARTBEAT), by whose age a supervisor knows that training moves.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.training.events import EventLog
from pipelines.training.progress import Progress
from pipelines.training.tracking import Tracker

_TRACKED = {"train": "train/", "epoch": "epoch/", "valid": "valid/"}


def beat() -> None:
    """Renew the heartbeat, where one is asked for."""
    path = os.environ.get("RECPOD_HEARTBEAT")
    if path:
        with contextlib.suppress(OSError):  # one that cannot be renewed grows old, and that is noticed
            Path(path).touch()


@dataclass
class RunLog:
    """One event to all who want it.

    Attributes:
        events: ``events.jsonl``: every event, the record of the run.
        tracker: W&B and MLflow: the numbers of training and validation.
        progress: what the person at the terminal sees.
    """

    events: EventLog
    tracker: Tracker
    progress: Progress

    @property
    def tracker_ids(self) -> Mapping[str, str]:
        """Ids under which the trackers know this run; a resumed run goes on under them."""
        return self.tracker.run_ids

    def summary(self, values: Mapping[str, float]) -> None:
        """The run's final numbers, for the trackers."""
        self.tracker.summary(values)

    def write(self, kind: str, *, step: int, epoch: int, **values: float | str) -> None:
        """Record one event at ``step`` (updates done) and ``epoch`` (epochs finished)."""
        beat()
        self.events.write(kind, step=step, epoch=epoch, **values)
        numbers = {key: float(value) for key, value in values.items() if not isinstance(value, str)}
        if kind in _TRACKED:
            self.tracker.log(step, {_TRACKED[kind] + key: value for key, value in numbers.items()})
        self.progress.update(step, epoch, kind, numbers)


@dataclass(frozen=True)
class SilentLog:
    """The log of every process but the first: what happens is said once."""

    tracker_ids: Mapping[str, str] = field(default_factory=dict)

    def summary(self, values: Mapping[str, float]) -> None:
        """Nothing."""

    def write(self, kind: str, *, step: int, epoch: int, **values: float | str) -> None:
        """Nothing."""
