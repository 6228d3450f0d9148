"""What the person at the terminal sees: a live line on a terminal, plain lines at intervals elsewhere."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text

_SPEED_WINDOW = 20  # updates over which the time left is estimated: a validation in between should not rule it


class Progress(Protocol):
    """Where a run's events are shown."""

    def update(self, step: int, epoch: int, kind: str, values: Mapping[str, float]) -> None:
        """One event: ``kind`` "train", "valid", "checkpoint", ... with its numbers."""

    def close(self) -> None:
        """The run has ended; may be called twice."""


@dataclass
class Telemetry:
    """Turns events into one line: loss, tokens/s, time left, peak memory, cost so far.

    Attributes:
        total_steps: updates the run may take at most; None when unknown. An event's ``total_steps`` sets it.
        price_per_hour: what the machine costs; None when unknown. A ``cost`` in an event, which counts earlier parts of
            a resumed run as well, goes before it.
        clock: seconds, for tests.
    """

    total_steps: int | None = None
    price_per_hour: float | None = None
    clock: Callable[[], float] = time.monotonic
    latest: dict[str, float] = field(default_factory=dict)
    step: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        self.started = self.clock()
        self._pace: deque[tuple[float, int]] = deque(maxlen=_SPEED_WINDOW)

    def take(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Remember an event's numbers."""
        self.step, self.epoch = step, epoch
        self.latest.update(values)
        if "total_steps" in values:
            self.total_steps = int(values["total_steps"])
        self._pace.append((self.clock(), step))

    def seconds_left(self) -> float | None:
        """At the present pace and without early stopping; None before two steps are known."""
        if self.total_steps is None or len(self._pace) < 2:
            return None
        (then, first), (now, last) = self._pace[0], self._pace[-1]
        return (self.total_steps - last) * (now - then) / (last - first) if last > first else None

    def cost(self) -> float | None:
        """What the run has cost so far, or None."""
        if "cost" in self.latest:
            return self.latest["cost"]
        return None if self.price_per_hour is None else (self.clock() - self.started) / 3600 * self.price_per_hour

    def line(self) -> str:
        """Everything known, in one line."""
        of = f"/{self.total_steps}" if self.total_steps is not None else ""
        parts = [f"epoch {self.epoch}", f"step {self.step}{of}"]
        shown = (("loss", "loss {:.4f}"), ("tokens_per_s", "{:,.0f} tokens/s"), ("mfu", "MFU {:.1%}"))
        for key, text in shown:
            if key in self.latest:
                parts.append(text.format(self.latest[key]))
        left, cost = self.seconds_left(), self.cost()
        if left is not None:
            parts.append(f"{duration(left)} left")
        parts.append(f"peak {peak_memory_gib():.1f} GiB")
        if cost is not None:
            parts.append(f"cost {cost:.2f}")
        return " | ".join(parts)


class LiveProgress:
    """A line that renews itself, on a terminal; validations stay above it.

    Args:
        console: the terminal.
        telemetry: what to show.
    """

    def __init__(self, console: Console, telemetry: Telemetry) -> None:
        self.console, self.telemetry = console, telemetry
        self.live = Live(Text("starting"), console=console, refresh_per_second=4)
        self.live.start()

    def update(self, step: int, epoch: int, kind: str, values: Mapping[str, float]) -> None:
        """Renew the line; a validation is printed for good."""
        if kind == "valid":
            self.console.print(f"  epoch {epoch}: {metrics_text(values)}", markup=False, highlight=False)
            values = {}
        self.telemetry.take(step, epoch, values)
        self.live.update(Text(self.telemetry.line()))

    def close(self) -> None:
        """Leave the last line standing."""
        self.live.stop()


class PlainProgress:
    """One line every ``interval`` seconds, for files and job logs; validations always.

    Args:
        telemetry: what to show.
        interval: seconds between lines.
        write: takes one line without its newline.
    """

    def __init__(
        self, telemetry: Telemetry, interval: float = 30.0, write: Callable[[str], object] | None = None
    ) -> None:
        self.telemetry, self.interval = telemetry, interval
        self.write = write or (lambda line: print(line, file=sys.stdout, flush=True))
        self.next_line = -float("inf")

    def update(self, step: int, epoch: int, kind: str, values: Mapping[str, float]) -> None:
        """Perhaps a line."""
        if kind == "valid":
            self.write(f"  epoch {epoch}: {metrics_text(values)}")
            values = {}
        self.telemetry.take(step, epoch, values)
        if kind == "train" and self.telemetry.clock() >= self.next_line:
            self.next_line = self.telemetry.clock() + self.interval
            self.write(self.telemetry.line())

    def close(self) -> None:
        """Where the run stood in the end."""
        if self.telemetry.step:
            self.write(self.telemetry.line())
            self.telemetry.step = 0


def open_progress(
    console: Console, *, price_per_hour: float | None = None, total_steps: int | None = None, interval: float = 30.0
) -> Progress:
    """The display that suits ``console``.

    Args:
        console: where to show it.
        price_per_hour: of the machine, in whatever currency.
        total_steps: updates at most; None when not known yet.
        interval: seconds between lines where the console is no terminal.
    """
    telemetry = Telemetry(total_steps, price_per_hour)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveProgress(console, telemetry)

    def write(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    return PlainProgress(telemetry, interval, write)


def peak_memory_gib() -> float:
    """The most memory held so far: of the GPU where one is in use, else of this process."""
    if torch.cuda.is_available() and (held := torch.cuda.max_memory_allocated()):
        return held / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m 10s or 2h 05m."""
    whole = max(int(seconds), 0)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {whole % 60:02d}s" if minutes else f"{whole}s"


def metrics_text(values: Mapping[str, Any]) -> str:
    """Metrics side by side; of many only those at 10, which is what a person follows."""
    at_ten = {key: value for key, value in values.items() if key.endswith("@10") and key != "Recall@10"}  # it is HR@10
    if len(values) > 6 and at_ten:
        values = at_ten
    return "  ".join(f"{key} {value:.4f}" for key, value in values.items())
