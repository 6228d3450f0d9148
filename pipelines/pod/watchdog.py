"""Does the run still move? Processor, GPU and events of the whole process tree, seen every few seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

BUSY_CORES = 0.02  # of one core: what a waiting process with its trackers stays below
_TICKS = os.sysconf("SC_CLK_TCK")
_SMI = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]


def process_table() -> dict[int, tuple[int, int]]:
    """Parent, and processor ticks used (its own and those of children that have ended), of every process."""
    table = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        table[int(entry.name)] = (int(fields[1]), sum(int(value) for value in fields[11:15]))
    return table


def family(pid: int, table: dict[int, tuple[int, int]]) -> list[int]:
    """``pid`` and its descendants, in whatever session they are; parents first."""
    children: dict[int, list[int]] = {}
    for child, (parent, _) in table.items():
        children.setdefault(parent, []).append(child)
    found = [pid] if pid in table else []
    for member in found:  # grows while it is walked
        found += children.get(member, [])
    return found


def processor_seconds(pid: int) -> float:
    """Processor time that ``pid`` and its descendants have used."""
    table = process_table()
    return sum(table[member][1] for member in family(pid, table)) / _TICKS


class GpuProbe:
    """Asks nvidia-smi without waiting for it: a question now, its answer at one of the next looks."""

    def __init__(self, command: list[str] | None = None) -> None:
        self._command = command or _SMI
        self._there = shutil.which(self._command[0]) is not None
        self._asked: subprocess.Popen[str] | None = None
        self._since = 0.0

    def busy(self) -> bool:
        """Whether the question asked last was answered with a GPU at work; asks the next one."""
        answer = ""
        if self._asked is not None and self._asked.poll() is not None:
            answer = self._asked.communicate()[0]
            self._asked = None
        if self._asked is not None and time.monotonic() - self._since > 20:  # a driver that hangs
            self._asked.kill()
        elif self._asked is None and self._there:
            pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
            self._asked = subprocess.Popen(self._command, stdin=nothing, stdout=pipe, stderr=nothing, text=True)
            self._since = time.monotonic()
        return any(int(word) > 0 for word in answer.split() if word.isdigit())

    def close(self) -> None:
        """Leave no process behind, without waiting for one that a broken driver holds."""
        if self._asked is not None:
            self._asked.kill()
            if self._asked.stdout is not None:
                self._asked.stdout.close()
            self._asked.poll()
            self._asked = None


@dataclass
class SignsOfLife:
    """When a process tree last did something. Files on the volume are no sign: other pods' runs write there as well.

    Attributes:
        pid: the tree's first process.
        heartbeat: the session's own file, which training touches at every event (a checkpoint is one); it is touched
            here as well when another sign is seen, so that its age says how long nothing has happened.
        gpu: asked when there is no other sign.
        clock: seconds, for tests.
        told: training has told of an event: it has begun.
    """

    pid: int
    heartbeat: Path
    gpu: GpuProbe = field(default_factory=GpuProbe)
    clock: Callable[[], float] = time.monotonic
    told: bool = False

    def __post_init__(self) -> None:
        self.last_life = self._looked = self.clock()
        self._processor = processor_seconds(self.pid)
        self._beat = _changed(self.heartbeat)

    def listen(self) -> bool:
        """Whether training has told of an event since the last look."""
        beat = _changed(self.heartbeat)
        heard, self._beat = beat > self._beat, beat
        self.told |= heard
        return heard

    def look(self) -> float:
        """Look now; seconds since the last sign of life.

        Raises:
            OSError: the heartbeat cannot be renewed. What was seen is kept: the next look goes on from it.
        """
        now, processor = self.clock(), processor_seconds(self.pid)
        worked = processor - self._processor >= BUSY_CORES * max(now - self._looked, 1e-9)
        alive = self.listen() or worked or self.gpu.busy()
        self._processor, self._looked = processor, now
        if alive:
            self.last_life = now
            self.heartbeat.touch()
            self._beat = _changed(self.heartbeat)
        return now - self.last_life


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # not there yet, or just replaced
        return 0
