"""One child process under supervision: in a session of its own, told of signals once, never left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from pipelines.pod.watchdog import family, process_table

STOPPED = 75
_PR_SET_PDEATHSIG = 1
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LIBC = ctypes.CDLL(None)


@dataclass
class Ending:
    """How a child ended.

    Attributes:
        code: exit code as a shell gives it: 128 and more for a signal.
        asked_by: the name of the first signal from outside, if one came.
        stopped_for: the supervisor's own reason to stop it, if it had one.
        killed: it did not end in time and was killed.
    """

    code: int = 0
    asked_by: str | None = None
    stopped_for: str | None = None
    killed: bool = False


def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    look: Callable[[], str | None],
    begun: Callable[[int], None] = lambda pid: None,
    tick: float = 1.0,
    grace: float | None = None,
    patience: float = 60.0,
    whole_group: bool = False,
) -> Ending:
    """Run ``command`` on this terminal to its end.

    The child has its own session, so that a signal to this process' group reaches it once: from here. It gets SIGTERM
    when this process dies in whatever way. Signals are taken in turn, not by handlers, and stay blocked afterwards: the
    caller is about to end.

    Args:
        command: program and arguments.
        environment: its whole environment.
        look: called every ``tick``; a reason ends the child.
        begun: called with the child's process id once it runs.
        tick: seconds between two looks.
        grace: seconds after a signal from outside until the child is killed; None waits.
        patience: seconds between a SIGTERM of our own and the kill.
        whole_group: signals go to the child's whole group, not to it alone.
    """
    watched = {number for number in _STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN}  # nohup stays in force
    watched |= {signal.SIGCHLD, signal.SIGTSTP}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    child = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_tie(os.getpid()))
    try:
        begun(child.pid)
        return _attend(child, watched, look=look, tick=tick, grace=grace, patience=patience, whole_group=whole_group)
    except BaseException:  # of our own making: nothing may go on unwatched
        _end(child, patience, whole_group)
        raise


def _attend(
    child: subprocess.Popen[bytes],
    watched: Collection[signal.Signals],
    *,
    look: Callable[[], str | None],
    tick: float,
    grace: float | None,
    patience: float,
    whole_group: bool,
) -> Ending:
    """Hand signals on and look, until the child has ended; see :func:`supervise`."""
    ending, kill_at = Ending(), float("inf")
    while child.poll() is None:
        caught = signal.sigtimedwait(watched, min(tick, max(kill_at - time.monotonic(), 0.01)))
        number = caught.si_signo if caught is not None else None
        if number == signal.SIGTSTP:
            _pause(child.pid)
        elif number in _STOP_SIGNALS:
            ending.asked_by = ending.asked_by or signal.Signals(number).name
            _tell(child.pid, number, whole_group)
            if grace is not None:
                kill_at = min(kill_at, time.monotonic() + grace)
        elif ending.stopped_for is None:  # after a signal as well: who does not end goes on costing
            ending.stopped_for = look()
            if ending.stopped_for is not None:
                _tell(child.pid, signal.SIGTERM, whole_group)
                kill_at = min(kill_at, time.monotonic() + patience)
        if time.monotonic() >= kill_at:
            ending.killed = True
            kill_family(child.pid)
    ending.code = _code(child.returncode, ending)
    return ending


def _end(child: subprocess.Popen[bytes], patience: float, whole_group: bool) -> None:
    """End a child that nobody looks after any more: it may save, then it is killed."""
    if child.poll() is None:
        _tell(child.pid, signal.SIGTERM, whole_group)
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            kill_family(child.pid)


def _code(returned: int, ending: Ending) -> int:
    """A child that a signal of ours ended, before it could answer it or too late, was stopped: it can be resumed."""
    if returned >= 0:
        return returned
    return STOPPED if ending.asked_by or ending.stopped_for else 128 - returned


def _tie(parent: int) -> Callable[[], None]:
    """What runs in the child before its program: tied to the parent's life, signals as usual."""

    def tie() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died in between
            os._exit(STOPPED)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    return tie


def _tell(pid: int, number: int, whole_group: bool) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        if whole_group:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def _pause(pid: int) -> None:
    """Ctrl-Z: the child, which the terminal does not reach, stands still as long as this process does."""
    table = process_table()
    members = family(pid, table)
    for member in members:
        _tell(member, signal.SIGSTOP, False)
    os.kill(os.getpid(), signal.SIGSTOP)
    for member in members:
        _tell(member, signal.SIGCONT, False)


def kill_family(pid: int) -> None:
    """Kill ``pid`` and all its descendants, in whatever session they are."""
    for member in family(pid, process_table()):
        _tell(member, signal.SIGKILL, False)
