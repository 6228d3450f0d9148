"""A run's folder: where its files lie, who may write them, and what code wrote them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import RunError

ROOT = Path(__file__).resolve().parent.parent
_DECISIVE = (
    "models/**/*.py",
    "pipelines/data/**/*.py",
    *(
        f"pipelines/training/{name}.py"
        for name in ("trainer", "state", "distributed", "optimizers", "checkpoint", "guards", "graphed", "compiled")
    ),
    "pipelines/training/sparse/*.py",
    "pipelines/training/dense/*.py",
    *(f"pipelines/evaluation/{name}.py" for name in ("evaluator", "ranking", "protocols", "sampled", "baselines")),
    *(f"pipelines/evaluation/{name}.py" for name in ("beyond_accuracy", "shuffled_order")),
    "pipelines/evaluation/ranking_*.py",
    "pipelines/ranking_stages.py",
    "pipelines/engines/*.py",
    *(f"pipelines/{name}.py" for name in ("stages", "training_stage", "run_evaluation", "gates", "config")),
    *(f"pipelines/{name}.py" for name in ("spread_config", "config_identity")),
)


@dataclass(frozen=True)
class RunFolder:
    """Paths inside ``runs/<name>/``."""

    path: Path

    @property
    def config(self) -> Path:
        """The fully resolved configuration."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Machine, versions, commit."""
        return self.path / "environment.json"

    @property
    def events(self) -> Path:
        """What happened, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        """Protocol, metrics, baselines, gate."""
        return self.path / "metrics.json"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.path / "checkpoints"

    @property
    def ranks(self) -> Path:
        """Rank of every test query's target, for significance and slices."""
        return self.path / "ranks.parquet"

    @property
    def predictions(self) -> Path:
        """What a ranking run predicted of every test event."""
        return self.path / "predictions.parquet"

    @property
    def report(self) -> Path:
        """The page a person reads."""
        return self.path / "report.html"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            RunError: another process holds it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = (self.path / ".lock").open("a+")
        except OSError as error:
            raise RunError(
                f"the run folder cannot be written ({error.strerror})",
                where=str(self.path),
                fix="choose another with --set runs=DIR",
            ) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                handle.seek(0)
                raise RunError(
                    f"another process is using this run (pid {handle.read().strip() or 'unknown'})",
                    where=str(self.path),
                    fix="wait for it, stop it, or choose another name with --set name=NAME",
                ) from error
            handle.truncate(0)
            handle.write(f"{os.getpid()} on {socket.gethostname()}")
            handle.flush()
            yield

    def set_aside(self) -> Path | None:
        """Rename an existing folder so that a new run can start clean; returns its new path. Nothing is deleted."""
        if not any(child.name != ".lock" for child in self.path.glob("*")):
            return None
        number = 1
        while (target := self.path.with_name(f"{self.path.name}-before-{number}")).exists():
            number += 1
        self.path.rename(target)
        return target


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; empty when the file is not there.

    Raises:
        RunError: the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"not valid JSON ({error})", where=str(path), fix="delete it and run the stage again") from error
    if not isinstance(value, dict):
        raise RunError("not a JSON object", where=str(path), fix="delete it and run the stage again")
    return value


def write_text(path: Path, text: str) -> None:
    """Write ``path`` whole or not at all.

    Raises:
        RunError: the disk is full or read-only.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise RunError(
            f"cannot be written ({error.strerror})", where=str(path), fix="free space or choose another folder"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def commit() -> str:
    """The commit of this checkout, with ``-dirty`` when files differ from it; ``unknown`` outside a checkout."""

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return result.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("RECPOD_COMMIT", "unknown")


def code_digest() -> str:
    """SHA-256 of the code that decides a number; how a report looks is not among it."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _DECISIVE for path in ROOT.glob(pattern)}):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
