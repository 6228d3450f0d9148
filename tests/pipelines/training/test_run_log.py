"""Every event renews the heartbeat; what cannot be renewed is not a reason to stop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.training.events import EventLog, read_events
from pipelines.training.progress import open_progress
from pipelines.training.run_log import RunLog, SilentLog, beat
from pipelines.training.tracking import Trackers


def log(folder: Path) -> RunLog:
    return RunLog(EventLog(folder / "events.jsonl"), Trackers({}), open_progress(Console(quiet=True)))


def test_an_event_renews_the_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulse = tmp_path / "heartbeat"
    monkeypatch.setenv("RECPOD_HEARTBEAT", str(pulse))
    log(tmp_path).write("train", step=1, epoch=0, loss=1.0)
    os.utime(pulse, (0, 0))
    log(tmp_path).write("train", step=2, epoch=0, loss=1.0)
    assert pulse.stat().st_mtime > 1e9


def test_a_heartbeat_that_cannot_be_renewed_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPOD_HEARTBEAT", str(tmp_path / "no" / "such" / "folder"))
    log(tmp_path).write("train", step=1, epoch=0, loss=1.0)
    assert len(read_events(tmp_path / "events.jsonl")) == 1
    monkeypatch.delenv("RECPOD_HEARTBEAT")
    beat()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.jsonl"]


def test_the_other_processes_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPOD_HEARTBEAT", str(tmp_path / "heartbeat"))
    silent = SilentLog()
    silent.write("train", step=1, epoch=0, loss=1.0)
    silent.summary({"test/NDCG@10": 1.0})
    assert list(tmp_path.iterdir()) == [] and silent.tracker_ids == {}
