"""What the rental has cost: a ledger on the volume, one entry a session, from the pod's start and over all restarts.

A pod costs money from its start, not from the first training step. A session pays from the pod's start, or from the end
of the session before it on the same pod, until its own end: the sum over all sessions is the rental, and nothing is
counted twice. What has been spent stays in the sum, however a run is begun: only the ledger file's removal, by hand,
takes it out.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, RunError


@dataclass
class Entry:
    """One session's part of a rental.

    Attributes:
        session: a name of its own.
        job: what it ran; entries of one job add up.
        rental: the pod's run that it was part of.
        begin: when it began to pay, seconds since 1970.
        end: until when it has paid.
        price_per_hour: what an hour cost; None when nobody said.
    """

    session: str
    job: str
    rental: str
    begin: float
    end: float
    price_per_hour: float | None = None


@dataclass
class Ledger:
    """This session in the ledger file, and what its job has paid.

    Attributes:
        path: the file.
        own: this session's entry.
        earlier: the job's other entries.
        price_per_hour: for entries that name no price.
        clock: seconds since 1970, for tests.
    """

    path: Path
    own: Entry
    earlier: list[Entry]
    price_per_hour: float | None
    clock: Callable[[], float] = field(default=time.time, repr=False)

    def seconds(self) -> float:
        """Seconds paid for this job until now, all sessions together."""
        self.own.end = max(self.own.end, self.clock())
        return sum(entry.end - entry.begin for entry in (*self.earlier, self.own))

    def cost(self) -> float | None:
        """What they cost, each at its own price; None when no price is known."""
        self.seconds()
        if self.price_per_hour is None:
            return None
        return sum(self._cost_of(entry) for entry in (*self.earlier, self.own))

    def _cost_of(self, entry: Entry) -> float:
        price = self.price_per_hour if entry.price_per_hour is None else entry.price_per_hour
        return (entry.end - entry.begin) / 3600 * (price or 0.0)

    def save(self) -> None:
        """Write this session's entry beside the others, whole or not at all.

        Raises:
            RunError: the file cannot be written, or is no ledger.
        """
        self.seconds()
        with _locked(self.path) as entries:
            entries[:] = [entry for entry in entries if entry.session != self.own.session] + [self.own]

    def check_cap(self, cap: float | None) -> None:
        """Refuse to start what may not go on.

        Raises:
            ConfigError: the cap is reached, or there is no price to count with.
        """
        if cap is None:
            return
        cost = self.cost()
        if cost is None:
            fix = "add --price-per-hour"
            raise ConfigError("--max-cost needs the price of an hour", where="guards.max_cost", fix=fix)
        if cost >= cap:
            what = f"'{self.own.job}' has cost {cost:.2f} already (rental and earlier sessions, {self.path})"
            own = f"{self._cost_of(self.own):.2f}"
            fix = f"raise it, or delete that file to count from zero again (this pod alone has cost {own})"
            raise ConfigError(what, where=f"--max-cost {cap:g}", fix=fix)


def open_ledger(
    runs: Path,
    job: str,
    *,
    price_per_hour: float | None,
    contained: bool,
    clock: Callable[[], float] = time.time,
) -> Ledger:
    """Begin a session of ``job`` in the ledger of the ``runs`` folder.

    Args:
        runs: folder of all runs.
        job: what is run.
        price_per_hour: of this machine.
        contained: this is a container or pod, which is paid for from its start; else payment begins now.
        clock: seconds since 1970.

    Raises:
        RunError: the file cannot be read or written.
    """
    now = clock()
    rental, begin = pod_start(now) if contained else (f"{socket.gethostname()}-{uuid.uuid4().hex[:12]}", now)
    path = runs / ".pod" / "spend.json"
    with _locked(path) as entries:
        begin = max([begin, *(entry.end for entry in entries if entry.rental == rental)])
        own = Entry(uuid.uuid4().hex, job, rental, min(begin, now), now, price_per_hour)
        earlier = [entry for entry in entries if entry.job == job]
        entries.append(own)
    return Ledger(path, own, earlier, price_per_hour, clock)


def pod_start(now: float, proc: Path = Path("/proc"), pid: int = 1) -> tuple[str, float]:
    """A name for this run of the container, and when it began: the start of its process 1.

    The name is made of what does not change while it runs; the clock may be set meanwhile.
    """
    try:
        ticks = int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
        uptime = float((proc / "uptime").read_text().split()[0])
        boot = (proc / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
    except (OSError, ValueError, IndexError):  # a sandbox that hides process 1: its time cannot be known
        return f"{socket.gethostname()}-{uuid.uuid4().hex[:12]}", now
    age = uptime - ticks / os.sysconf("SC_CLK_TCK")
    return f"{socket.gethostname()}-{boot[:8]}-{ticks}", now - max(age, 0.0)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[list[Entry]]:
    """The entries of the file, for one process at a time; what the caller leaves in the list is written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = _read(path)
            yield entries
            new = path.with_suffix(".new")
            new.write_text(json.dumps({"sessions": [asdict(entry) for entry in entries]}, indent=1) + "\n")
            new.replace(path)
    except OSError as error:
        fix = "free space, or make it writable"
        raise RunError(f"the spend ledger cannot be written ({error.strerror})", where=str(path), fix=fix) from error


def _entry(row: Any) -> Entry:
    """One entry of the file, of which nothing is believed; fields that are not known are left out.

    Raises:
        KeyError: a field is missing.
        TypeError: ``row`` is no object, or a field is of another kind.
    """
    entry = Entry(row["session"], row["job"], row["rental"], row["begin"], row["end"], row.get("price_per_hour"))
    words = (entry.session, entry.job, entry.rental)
    numbers = (entry.begin, entry.end, entry.price_per_hour or 0.0)
    usual = all(isinstance(word, str) for word in words)
    usual = usual and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
    if not usual or entry.end < entry.begin or (entry.price_per_hour or 0.0) < 0:
        raise TypeError(row)
    return entry


def _read(path: Path) -> list[Entry]:
    if not path.exists():
        return []
    try:
        return [_entry(row) for row in json.loads(path.read_text(encoding="utf-8"))["sessions"]]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        fix = "move it away; what was spent so far is then no longer counted"
        raise RunError("this is no spend ledger", where=str(path), fix=fix) from error
