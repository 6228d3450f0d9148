"""The watch over a running session: is it idle, what has it cost, and who is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pipelines.errors import RecPodError
from pipelines.pod.notices import Notifier, say
from pipelines.pod.spend import Ledger
from pipelines.pod.watchdog import SignsOfLife

OVERDRAFT = 1.1  # training stops itself at the cap; at so many times the cap everything ends
SAVE_EVERY = 30.0
LOOK_EVERY = 5.0
Seen = TypeVar("Seen")


@dataclass
class Watch:
    """Looks after one session, stage by stage.

    Attributes:
        job: what runs.
        heartbeat: the session's file.
        notifier: tells people.
        ledger: counts the money; None where nothing is rented.
        cap: the most it may cost.
        idle_seconds: how long nothing may move; None for ever.
        clock: seconds, for tests.
        trained: training has told of an event: it had begun.
    """

    job: str
    heartbeat: Path
    notifier: Notifier
    ledger: Ledger | None
    cap: float | None
    idle_seconds: float | None
    clock: Callable[[], float] = time.monotonic
    trained: bool = False
    _signs: SignsOfLife | None = field(default=None, repr=False)
    _quarters: int = 0
    _next_look: float = 0.0
    _next_save: float = 0.0
    _failed: set[str] = field(default_factory=set, repr=False)

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
        self._signs = SignsOfLife(pid, self.heartbeat, clock=self.clock)
        self._next_look = self.clock() + self.look_every

    def end(self) -> None:
        """The stage is over."""
        if self._signs is not None:
            self._signs.listen()
            self.trained |= self._signs.told
            self._signs.gpu.close()
            self._signs = None

    def look(self) -> str | None:
        """Why the session has to end now, or None. Cheap when it is not yet time for a look.

        A look that fails, whatever the reason, must not end the run or leave it without the other: it is said once.
        """
        now = self.clock()
        if now < self._next_look:
            return None
        self._next_look = now + self.look_every
        idle = self._try("the idle watchdog", self._idle)
        return idle or self._try("the watch over the spend", lambda: self._overspent(now))

    def _try(self, what: str, look: Callable[[], Seen]) -> Seen | None:
        try:
            return look()
        except Exception as error:
            if what not in self._failed:
                self._failed.add(what)
                told = str(error) if isinstance(error, RecPodError) else f"{type(error).__name__}: {error}"
                say(f"warning: {what} failed ({told}); the run goes on")
            return None

    def _idle(self) -> str | None:
        idle = self._signs.look() if self._signs is not None else 0.0
        if self.idle_seconds is None or idle < self.idle_seconds:
            return None
        return (
            f"idle: nothing has moved for {idle / 60:.3g} minutes (no GPU or processor at work, no event; "
            "--idle-minutes)"
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
        return f"spend: {cost:.2f} of a cap of {self.cap:g} (--max-cost); {OVERDRAFT:g} times the cap, and no end yet"

    def _tell_quarter(self, cost: float, cap: float) -> None:
        quarters = int(4 * cost / cap)
        if quarters > self._quarters:
            self.notifier.send(f"'{self.job}' has cost {cost:.2f}, {25 * quarters}% of its cap of {cap:g}")
            self._quarters = quarters

    def save(self) -> None:
        """Bring the ledger up to date. A disk that is full now must not end the training: it is said once."""
        if self.ledger is not None:
            self._try("the ledger", self.ledger.save)
