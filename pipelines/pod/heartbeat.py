"""The sign of life of a supervised run: one file a session, touched by training's events and by its supervisor."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import MachineError

VARIABLE = "RECPOD_HEARTBEAT"  # training is told the path by it, and touches the file at each event
STALE_SECONDS = 20 * 60.0
_PREFIX = "heartbeat-"


def folder() -> Path:
    """Where the sessions of this user have their files: on this machine, not on the volume, which others may share."""
    return Path(tempfile.gettempdir()) / f"recpod-{os.getuid()}"


@contextlib.contextmanager
def heartbeat() -> Iterator[Path]:
    """The file of this process' session, which is gone when the session is.

    Raises:
        MachineError: it cannot be made.
    """
    path = folder() / f"{_PREFIX}{os.getpid()}"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in path.parent.glob(f"{_PREFIX}*"):  # of sessions that were killed: their numbers will be used again
            if not _runs(left):
                left.unlink(missing_ok=True)
        path.write_text(_birth(os.getpid()))
    except OSError as error:
        fix = "remove what is in the way, make room, or set TMPDIR to a folder that can be written"
        raise MachineError(f"no file can be put there ({error.strerror})", where=str(path.parent), fix=fix) from error
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # somebody has removed the folder, or put a file in its place
            path.unlink()


def _birth(pid: int | str) -> str:
    """What tells a process from a later one of the same number: when it began. Empty without such a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _runs(path: Path) -> bool:
    """Whether the session of this file runs: its process does, and has not just inherited the number."""
    pid = path.name.removeprefix(_PREFIX)
    if not pid.isdigit() or not Path(f"/proc/{pid}").exists():
        return False
    written = path.read_text(errors="replace")
    return written in ("", _birth(pid))  # empty: removed, and touched again by training


def ages(now: float) -> dict[int, float]:
    """Seconds since the last sign of life of each session that runs, by its supervisor's process id.

    Args:
        now: seconds since 1970.
    """
    found = {}
    for path in folder().glob(f"{_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            if _runs(path):
                found[int(path.name.removeprefix(_PREFIX))] = now - path.stat().st_mtime
    return found


def stale(now: float, seconds: float = STALE_SECONDS) -> list[int]:
    """The sessions that have shown no life for ``seconds``: what a container's health check asks."""
    return sorted(pid for pid, age in ages(now).items() if age > seconds)
