"""The event file: what happened in a run, one JSON object a line, readable after any crash. Standard library only."""

from __future__ import annotations

import datetime
import errno
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import RunError

# JSON has no such numbers; json.dumps would write bare words that no other reader takes.
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class EventLog:
    """Appends events to a file; each is one write of one whole line, so that a killed process tears at most the last.

    Two logs may append to one file at a time (the operating system puts each line at the end); ``cut_back`` is for the
    start of a run, when nobody else writes.

    Args:
        path: the file; folders are made, a torn last line left by a killed process is cut off.

    Raises:
        RunError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise _cannot_write(path, error) from error
        self._cut_torn_line()

    def write(self, kind: str, *, step: int, epoch: int, **values: Any) -> None:
        """Append one event with the present time (UTC, ISO 8601).

        Args:
            kind: what happened: "train", "valid", "checkpoint", ...
            step: updates done; -1 for what belongs to no step.
            epoch: epochs finished.
            **values: numbers, strings, lists and dicts of them; numbers that are not finite come back as they were.

        Raises:
            RunError: the disk is full or read-only.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        event = {"kind": kind, "step": step, "epoch": epoch, "time": now, **values}
        line = json.dumps(_writable(event), ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self._append(line.encode())
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def cut_back(self, step: int) -> int:
        """Drop the first event after ``step`` and everything behind it: a resumed run tells that part again.

        One truncation, so a process killed here leaves the file as it was or as it should be.

        Returns:
            Events dropped.
        """
        end, dropped = None, 0
        for start, event in _lines(self.path):
            if end is None and event.get("step", -1) > step:
                end = start
            dropped += end is not None
        if end is not None:
            os.ftruncate(self._file, end)
            os.fsync(self._file)
        return dropped

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, line: bytes) -> None:
        """All of ``line`` or, with an error, none of it: a disk that fills up takes a part, then refuses the rest."""
        left = line
        try:
            while left:
                written = os.write(self._file, left)
                if not written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                left = left[written:]
        except OSError:
            if len(left) < len(line):
                self._cut_torn_line()
            raise

    def _cut_torn_line(self) -> None:
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            content = self.path.read_bytes()
            os.ftruncate(self._file, content.rfind(b"\n") + 1)


def read_events(path: Path) -> list[dict[str, Any]]:
    """All whole events of a file, oldest first; empty when there is no file. A torn last line is left out.

    Raises:
        RunError: a line that is not the last is no event.
    """
    return [event for _, event in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Byte offset and event of each whole line."""
    if not path.exists():
        return
    offset = 0
    for number, line in enumerate(
        path.read_bytes().split(b"\n")[:-1], start=1
    ):  # what follows the last newline is torn
        try:
            event = json.loads(line)
            if not isinstance(event, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            raise RunError(f"not an event ({error})", where=f"{path}:{number}", fix="delete the line") from error
        yield offset, {key: _readable(value) for key, value in event.items()}
        offset += len(line) + 1


def _writable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _writable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_writable(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _readable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _readable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_readable(entry) for entry in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(f"cannot be written ({error.strerror})", where=str(path), fix="free space or choose another folder")
