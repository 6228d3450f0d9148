"""The project's command line as a child process that can be killed: started, watched until it trains, waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300.0  # seconds until a child counts as hanging


def start(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """``python -m pipelines ARGUMENTS``; everything it says goes to the end of ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def wait_for_training(process: subprocess.Popen[bytes], checkpoints: Path, log: Path) -> float:
    """Waits until a run has its first checkpoint; the time of that.

    Raises:
        SystemExit: the process ends or hangs before.
    """
    deadline = time.monotonic() + PATIENCE
    while not any(checkpoints.glob("step-*")):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise SystemExit(f"the child did not begin to train, see {log}")
        time.sleep(0.005)
    return time.monotonic()


def finish(process: subprocess.Popen[bytes], log: Path, wanted: int = 0) -> None:
    """Waits for the end, which must have the exit code ``wanted``.

    Raises:
        SystemExit: another exit code.
    """
    code = process.wait(timeout=PATIENCE)
    if code != wanted:
        raise SystemExit(f"the child ended with code {code}, expected {wanted}, see {log}")
