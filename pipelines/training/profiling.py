"""A window of updates under torch.profiler, as a trace that chrome://tracing and Perfetto show."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from pipelines.training.options import TrainingOptions


class ProfileWindow:
    """Profiles the updates ``profile_from`` to ``profile_until`` of a training; a context around the loop.

    Args:
        options: says which window, if any.
        folder: where ``steps-FROM-UNTIL-rank-R.json.gz`` goes.
        rank: this process.
    """

    def __init__(self, options: TrainingOptions, folder: Path, rank: int) -> None:
        self.start, self.stop, self.folder, self.rank = options.profile_from, options.profile_until, folder, rank
        self.running: Any = None
        self.since = self.now = 0

    def __enter__(self) -> ProfileWindow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def before(self, step: int) -> None:
        """Called before update number ``step``, from 0."""
        self.now = step
        if self.running is not None and step >= self.stop:
            self._end()
        if self.running is None and self.start <= step < self.stop:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self.running, self.since = torch.profiler.profile(activities=activities), step
            self.running.start()

    def _end(self) -> None:
        """Write what has been seen; a training that ends inside the window leaves a shorter one."""
        if self.running is None:
            return
        running, self.running = self.running, None
        running.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        until = self.stop if self.now >= self.stop else self.now + 1
        running.export_chrome_trace(str(self.folder / f"steps-{self.since}-{until}-rank-{self.rank}.json.gz"))
