"""Peers as child processes that take turns: one works while all others wait. Standard library alone, on both sides.

A peer may live in an environment of its own. It trains inside its own loop and stands still between turns, so that a
busy machine slows all alike. Requests go down its standard input, replies come up a pipe, a line of JSON each; what it
prints goes into a log.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300.0  # seconds until a peer counts as hanging


@dataclass(frozen=True)
class Turn:
    """What one turn did: so many targets (or users), in wall seconds and in seconds of the processor, all threads.

    Wall seconds are what is quoted. Those of the processor say how much of that other programs had.
    """

    amount: float
    seconds: float
    cpu_seconds: float

    @classmethod
    def of(cls, work: Callable[[], float]) -> Turn:
        """The turn that ``work`` is; it returns its amount."""
        begin, cpu = time.perf_counter(), time.process_time()
        amount = work()
        return cls(amount, time.perf_counter() - begin, time.process_time() - cpu)

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> Turn:
        """The turn that a peer has answered."""
        return cls(*(float(answer[key]) for key in ("amount", "seconds", "cpu_seconds")))

    @property
    def rate(self) -> float:
        """A second of wall time."""
        return self.amount / self.seconds

    @property
    def cpu_rate(self) -> float:
        """A second of the processor."""
        return self.amount / max(self.cpu_seconds, 1e-9)


class Peer:
    """The parent's side: a running child.

    Args:
        module: what it runs, ``python -m MODULE ... --reply FD``.
        arguments: its further arguments.
        log: where its output goes.
        python: the interpreter of its environment.
        threads: of OpenMP in the child.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], log: Path, *, python: str = sys.executable, threads: int = 2
    ) -> None:
        self.module, self.log = module, log
        self.replies, writing = os.pipe()
        self.unread = b""
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [python, "-m", module, *arguments, "--reply", str(writing)],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
            )
        os.close(writing)

    def ask(self, request: Mapping[str, Any], patience: float = PATIENCE) -> dict[str, Any]:
        """Send a request and wait for its reply.

        Raises:
            SystemExit: the child ends or does not answer in ``patience`` seconds.
        """
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: the reply says so
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        return self.reply(patience)

    def reply(self, patience: float = PATIENCE) -> dict[str, Any]:
        """The next line from the child: after the start, what it has to say of itself.

        Raises:
            SystemExit: the child ends or does not answer in ``patience`` seconds.
        """
        end = time.monotonic() + patience
        while b"\n" not in self.unread:
            ready, _, _ = select.select([self.replies], [], [], max(end - time.monotonic(), 0))
            read = os.read(self.replies, 1 << 16) if ready else b""
            if not read:
                self.close()
                raise SystemExit(
                    f"{self.module} {'ended' if ready else 'hangs'}, see {self.log}:\n{self._last_words()}"
                )
            self.unread += read
        line, self.unread = self.unread.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])

    def close(self) -> None:
        """End the child, wherever it stands."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        if self.replies >= 0:
            os.close(self.replies)
            self.replies = -1

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Turns:
    """The child's side.

    Args:
        descriptor: of the pipe for replies, ``--reply``.
    """

    def __init__(self, descriptor: int) -> None:
        self.pipe = os.fdopen(descriptor, "w", buffering=1)
        self.left = self.targets = 0
        self.started: tuple[float, float] | None = None

    def say(self, **values: Any) -> None:
        """A line up to the parent."""
        self.pipe.write(json.dumps(values) + "\n")

    def say_turn(self, turn: Turn, **values: Any) -> None:
        """What a turn did, up to the parent."""
        self.say(**asdict(turn), **values)

    def requests(self) -> Iterator[dict[str, Any]]:
        """What the parent asks, until it closes."""
        for line in sys.stdin:
            yield json.loads(line)

    def step(self, targets: int) -> None:
        """Called inside a training loop where a step of ``targets`` targets begins: waits for a turn if none is left.

        The clock of a turn runs from here to the same place ``steps`` steps later: forward, backward, update and the
        next batch, each as often as there are steps.

        Raises:
            SystemExit: the parent has closed.
        """
        if self.left == 0:
            if self.started is not None:
                begin, cpu = self.started
                self.say_turn(Turn(self.targets, time.perf_counter() - begin, time.process_time() - cpu))
            request = next(self.requests(), None)
            if request is None:
                raise SystemExit(0)
            self.left, self.targets = int(request["steps"]), 0
            self.started = time.perf_counter(), time.process_time()
        self.left -= 1
        self.targets += targets


def environment_with(folder: Path, packages: Sequence[str]) -> str:
    """The interpreter of an environment in ``folder`` that holds ``packages``; made where there is none.

    Args:
        folder: an environment that is there is taken as it is.
        packages: requirements, in pip's words.
    """
    python, done = folder / "bin" / "python", folder / "recpod-packages.txt"
    wanted = "\n".join(packages) + "\n"
    if not python.exists() or (done.exists() and done.read_text() != wanted):
        print(f"making the environment {folder} with {', '.join(packages)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        done.write_text(wanted)
    return str(python)


def torch_requirement() -> str:
    """The torch of this environment, as a requirement: peers shall run on the same one."""
    from importlib.metadata import version

    assert importlib.util.find_spec("torch") is not None
    return f"torch=={version('torch').partition('+')[0]}"
