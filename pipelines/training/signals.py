"""SIGTERM, SIGINT and SIGHUP: what a scheduler, a person or a lost terminal sends before the machine goes away."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType

_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(Exception):
    """The run was asked to stop and has saved what it had. The exit code tells a scheduler to start it again."""

    exit_code = 75


class StopSignal:
    """Turns SIGTERM, SIGINT and SIGHUP into :class:`Interrupted`, at once or when the training loop next looks.

    Outside :meth:`deferred` a signal raises at once: there is nothing to save. Inside it the first signal only sets
    ``requested``, so that the loop can finish its step and write a checkpoint; a second one raises at once.

    Args:
        alone: False for one process of several: it may not leave before the others know, so the first signal waits
            everywhere but inside :meth:`at_once`.
    """

    def __init__(self, alone: bool = True) -> None:
        self.requested = False
        self.alone = alone
        self._deferred = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        for number in _STOPS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: the terminal may go
            self._previous[number] = previous = signal.signal(number, self._handle)
            outer = getattr(previous, "__self__", None)
            if isinstance(outer, StopSignal):  # a request that nobody has acted on yet stays one
                self.requested = self.requested or outer.requested
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def deferred(self) -> _Deferred:
        """A context in which the first signal waits for :meth:`raise_if_requested`."""
        return _Deferred(self)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A context in which one process of several acts like one alone: who asks for it tells the others."""
        before = self.alone
        try:
            self.alone = True
            if not self._deferred:
                self.raise_if_requested()
            yield
        finally:
            self.alone = before

    def raise_if_requested(self) -> None:
        """Raise :class:`Interrupted` when a signal has come."""
        if self.requested:
            raise Interrupted("stopped on request")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        if not (first and (self._deferred or not self.alone)):
            raise Interrupted(f"stopped by {signal.Signals(number).name}")


def current_stop() -> StopSignal:
    """The stop signal that is in force; without any, one that never comes."""
    owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return owner if isinstance(owner, StopSignal) else StopSignal()


class _Deferred:
    def __init__(self, stop: StopSignal) -> None:
        self.stop = stop

    def __enter__(self) -> None:
        self.stop._deferred += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop._deferred -= 1
