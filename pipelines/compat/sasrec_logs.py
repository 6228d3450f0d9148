"""The files that the SASRec family's scripts leave, written from a run's own record.

``log.txt``: a heading, notes that begin with ``#``, and a line for each validation: ``epoch (val_ndcg, val_hr)
(test_ndcg, test_hr)`` at 10, ``nan`` where the test was not asked: it is asked for the chosen epoch alone.
``step_log.csv``: a line for each update: ``epoch,step,loss,lr``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import RunError
from pipelines.run_folder import RunFolder, read_json, write_text
from pipelines.training.events import read_events

HEADING = "epoch (val_ndcg, val_hr) (test_ndcg, test_hr)"
_UNKNOWN = {"NDCG@10": math.nan, "HR@10": math.nan}


def log_line(epoch: int, valid: Mapping[str, float] | None, test: Mapping[str, float] | None) -> str:
    """A line of ``log.txt``."""
    pairs = [(part["NDCG@10"], part["HR@10"]) for part in (valid or _UNKNOWN, test or _UNKNOWN)]
    return f"{epoch} {pairs[0]} {pairs[1]}"


def write_log(folder: Path, notes: Sequence[str], lines: Sequence[str]) -> None:
    """``log.txt``, whole."""
    write_text(folder / "log.txt", "\n".join([HEADING, *(f"# {note}" for note in notes), *lines]) + "\n")


def add_to_log(folder: Path, notes: Sequence[str], line: str) -> None:
    """One line more in ``log.txt``, behind those of the run whose folder it is, and the notes that are not yet there.

    Raises:
        RunError: the file cannot be read or written.
    """
    path = folder / "log.txt"
    try:
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, ValueError) as error:
        raise RunError(f"cannot be read ({error})", where=str(path), fix="move it away") from error
    said = [text.removeprefix("# ") for text in before if text.startswith("#")]
    lines = [text for text in before if not text.startswith("#") and text != HEADING]
    write_log(folder, [*said, *(note for note in notes if note not in said)], [*lines, line])


def write_logs(folder: Path, notes: Sequence[str]) -> None:
    """``log.txt`` and ``step_log.csv`` of a run as far as it has come; nothing where none has begun.

    Raises:
        RunError: the files cannot be written, or the run's own are damaged.
    """
    run = RunFolder(folder)
    if not run.events.exists():
        return
    events = read_events(run.events)
    metrics: dict[str, Any] = read_json(run.metrics)
    best = metrics.get("training", {}).get("best_step")
    lines = [
        log_line(event["epoch"], event, metrics["test"] if event["step"] == best else None)
        for event in events
        if event["kind"] == "valid"
    ]
    write_log(folder, notes, lines)
    steps = [
        f"{event['epoch'] + 1},{event['step']},{event['loss']},{event['lr']}"
        for event in events
        if event["kind"] == "train"
    ]
    write_text(folder / "step_log.csv", "\n".join(["epoch,step,loss,lr", *steps]) + "\n")
