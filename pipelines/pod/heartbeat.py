"""The sign of life of a supervised run: one file a session, touched by training's events and by its supervisor."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "RECPOD_HEARTBEAT"  # training is told the path by it, and touches the file at each event
STALE_SECONDS = 20 * 60.0
_PREFIX = "heartbeat-"


def folder() -> Path:
    """Where the sessions of this user have their files: on this machine, not on the volume, which others may share."""
    return Path(tempfile.gettempdir()) / f"recpod-{os.getuid()}"


@contextlib.contextmanager
def heartbeat() -> Iterator[Path]:
    """The file of this process' session, which is gone when the session is."""
    path = folder() / f"{_PREFIX}{os.getpid()}"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in path.parent.glob(f"{_PREFIX}*"):  # of sessions that were killed: their numbers will be used again
        if not Path(f"/proc/{left.name.removeprefix(_PREFIX)}").exists():
            left.unlink(missing_ok=True)
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def ages(now: float) -> dict[int, float]:
    """Seconds since the last sign of life of each session that runs, by its supervisor's process id.

    Args:
        now: seconds since 1970.
    """
    found = {}
    for path in folder().glob(f"{_PREFIX}*"):
        pid = path.name.removeprefix(_PREFIX)
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            if pid.isdigit() and Path(f"/proc/{pid}").exists():
                found[int(pid)] = now - path.stat().st_mtime
    return found


def stale(now: float, seconds: float = STALE_SECONDS) -> list[int]:
    """The sessions that have shown no life for ``seconds``: what a container's health check asks."""
    return sorted(pid for pid, age in ages(now).items() if age > seconds)
