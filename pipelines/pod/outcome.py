"""How a session ended, in a sentence for a person's phone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ENDINGS = {
    0: "done",
    2: "FAILED: a mistake, see the log",
    3: "done, gate MISSED",
    75: "stopped and saved; start it again to go on",
}


def tell_outcome(code: int, runs: Path, since: float) -> str:
    """The ending of a session that wrote to ``runs`` after ``since`` (seconds since 1970), with gate or failure."""
    text = ENDINGS.get(code, f"FAILED with exit code {code}")
    if code in (0, 3):
        return f"{text}{_gate(runs, since)}"
    return text if code == 75 else f"{text}{_failure(runs, since)}"


def _gate(runs: Path, since: float) -> str:
    metrics = _read_json(_newest(runs, "*/metrics.json", since))
    passed = metrics.get("gate", {}).get("passed")
    numbers = {key: metrics.get("test", {}).get(key) for key in ("HR@10", "NDCG@10")}
    said = ", ".join(f"{key} {value:.4f}" for key, value in numbers.items() if isinstance(value, float))
    gate = "" if passed is not True else ", gate passed"
    return gate + (f" (test {said})" if said else "")


def _failure(runs: Path, since: float) -> str:
    path = _newest(runs, "*/events.jsonl", since)
    last = path.read_text(encoding="utf-8", errors="replace").splitlines()[-1:] if path is not None else []
    try:
        event = json.loads(last[0]) if last else {}
    except ValueError:  # torn by the crash
        event = {}
    message = event.get("message") if isinstance(event, dict) and event.get("kind") == "failure" else None
    return f": {str(message)[:300]}" if message else ""


def _newest(runs: Path, pattern: str, since: float) -> Path | None:
    changed = {path: path.stat().st_mtime for path in runs.glob(pattern)}
    recent = [path for path, time in changed.items() if time >= since]
    return max(recent, key=lambda path: changed[path], default=None)


def _read_json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # half-written by a crash: there is no result to tell
        return {}
    return found if isinstance(found, dict) else {}


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m 10s or 2h 05m."""
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 60}m {whole % 60:02d}s" if whole >= 60 else f"{whole}s"
