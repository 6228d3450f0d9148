"""Where a run writes what happens: the event file, the trackers and the progress display, behind one ``write``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.training.events import EventLog
from pipelines.training.progress import Progress
from pipelines.training.tracking import Tracker

_TRACKED = {"train": "train/", "epoch": "epoch/", "valid": "valid/"}


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

    def write(self, kind: str, *, step: int, epoch: int, **values: float | str) -> None:
        """Record one event at ``step`` (updates done) and ``epoch`` (epochs finished)."""
        self.events.write(kind, step=step, epoch=epoch, **values)
        numbers = {key: float(value) for key, value in values.items() if not isinstance(value, str)}
        if kind in _TRACKED:
            self.tracker.log(step, {_TRACKED[kind] + key: value for key, value in numbers.items()})
        self.progress.update(step, epoch, kind, numbers)
