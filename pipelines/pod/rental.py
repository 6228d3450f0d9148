"""The watch over a running session: is it idle, what has it cost, and who is told."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.errors import RunError
from pipelines.pod.notices import Notifier
from pipelines.pod.spend import Ledger
from pipelines.pod.watchdog import SignsOfLife

OVERDRAFT = 1.1  # training stops itself at the cap; at so many times the cap everything ends
SAVE_EVERY = 30.0
LOOK_EVERY = 5.0


@dataclass
class Watch:
    """Looks after one session, stage by stage.

    Attributes:
        job: what runs.
        runs: folder of all runs.
        heartbeat: the session's file.
        notifier: tells people.
        ledger: counts the money; None where nothing is rented.
        cap: the most it may cost.
        idle_seconds: how long nothing may move; None for ever.
        clock: seconds, for tests.
    """

    job: str
    runs: Path
    heartbeat: Path
    notifier: Notifier
    ledger: Ledger | None
    cap: float | None
    idle_seconds: float | None
    clock: Callable[[], float] = time.monotonic
    _signs: SignsOfLife | None = field(default=None, repr=False)
    _quarters: int = 0
    _next_look: float = 0.0
    _next_save: float = 0.0
    _ledger_failed: bool = False

    def __post_init__(self) -> None:
        cost = self.ledger.cost() if self.ledger is not None else None
        if self.cap is not None and cost is not None:
            self._quarters = int(4 * cost / self.cap)  # what earlier sessions spent was told by them

    @property
    def look_every(self) -> float:
        """Seconds between two looks at the processes."""
        return LOOK_EVERY if self.idle_seconds is None else min(LOOK_EVERY, self.idle_seconds / 10)

    def begin(self, pid: int) -> None:
        """A stage's process runs."""
        self.end()
        self._signs = SignsOfLife(pid, self.runs, self.heartbeat, clock=self.clock)
        self._next_look = self.clock() + self.look_every

    def end(self) -> None:
        """The stage is over."""
        if self._signs is not None:
            self._signs.gpu.close()
            self._signs = None

    def look(self) -> str | None:
        """Why the session has to end now, or None. Cheap when it is not yet time for a look."""
        now = self.clock()
        if now < self._next_look:
            return None
        self._next_look = now + self.look_every
        return self._idle() or self._overspent(now)

    def _idle(self) -> str | None:
        idle = self._signs.look() if self._signs is not None else 0.0
        if self.idle_seconds is None or idle < self.idle_seconds:
            return None
        return (
            f"idle: nothing has moved for {idle / 60:.3g} minutes (no GPU or processor at work, no event, no "
            "checkpoint; --idle-minutes)"
        )

    def _overspent(self, now: float) -> str | None:
        if self.ledger is None:
            return None
        if now >= self._next_save:
            self._next_save = now + SAVE_EVERY
            self.save()
        cost = self.ledger.cost()
        if self.cap is None or cost is None:
            return None
        self._tell_quarter(cost, self.cap)
        if cost < OVERDRAFT * self.cap:
            return None
        return f"spend: {cost:.2f} of a cap of {self.cap:g} (--max-cost); training has not stopped by itself"

    def _tell_quarter(self, cost: float, cap: float) -> None:
        quarters = int(4 * cost / cap)
        if quarters > self._quarters:
            self.notifier.send(f"'{self.job}' has cost {cost:.2f}, {25 * quarters}% of its cap of {cap:g}")
            self._quarters = quarters

    def save(self) -> None:
        """Bring the ledger up to date. A disk that is full now must not end the training: it is said once."""
        if self.ledger is None:
            return
        try:
            self.ledger.save()
        except RunError as error:
            if not self._ledger_failed:
                print(f"warning: {error}", file=sys.stderr)
            self._ledger_failed = True
