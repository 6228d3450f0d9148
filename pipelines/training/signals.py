"""SIGTERM and SIGINT: what a scheduler or a person sends before it takes the machine away."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class Interrupted(Exception):
    """The run was asked to stop and has saved what it had. The exit code tells a scheduler to start it again."""

    exit_code = 75


class StopSignal:
    """Turns SIGTERM and SIGINT into :class:`Interrupted`, at once or when the training loop next looks.

    Outside :meth:`deferred` a signal raises at once: there is nothing to save. Inside it the first signal only sets
    ``requested``, so that the loop can finish its step and write a checkpoint; a second one raises at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferred = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def deferred(self) -> _Deferred:
        """A context in which the first signal waits for :meth:`raise_if_requested`."""
        return _Deferred(self)

    def raise_if_requested(self) -> None:
        """Raise :class:`Interrupted` when a signal has come."""
        if self.requested:
            raise Interrupted("stopped on request")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        if not (self._deferred and first):
            raise Interrupted(f"stopped by {signal.Signals(number).name}")


class _Deferred:
    def __init__(self, stop: StopSignal) -> None:
        self.stop = stop

    def __enter__(self) -> None:
        self.stop._deferred += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop._deferred -= 1
