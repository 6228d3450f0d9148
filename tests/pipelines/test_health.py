"""The fast form of preflight: quick, without torch, and ill where a run could not go on."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import health
from pipelines.errors import MachineError
from pipelines.machine import read_pins
from pipelines.pod import heartbeat
from pipelines.preflight import Check


def verdicts(folder: Path, environ: dict[str, str] | None = None, now: float | None = None) -> dict[str, Check]:
    return {check.name: check for check in health.fast_checks(folder, environ or {}, now)}


@pytest.fixture(autouse=True)
def no_sessions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sessions of other tests on this machine are none of ours."""
    folder = tmp_path / "sessions"
    monkeypatch.setattr(heartbeat, "folder", lambda: folder)
    return folder


def test_this_machine_is_well(tmp_path: Path) -> None:
    found = verdicts(tmp_path, {"RECPOD_IMAGE": "cpu"})
    assert {check.verdict for check in found.values()} <= {"ok", "warn"}
    assert found["torch"].pinned == read_pins()["TORCH"] and found["torch"].verdict == "ok"


def test_it_takes_less_than_a_second_and_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pipelines.cli import main\n"
        "try:\n    main(['preflight', '--fast'])\n"
        "finally:\n    assert not {'torch', 'numpy', 'polars', 'numba'} & set(sys.modules)"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(health.__file__).parents[1]), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stdout + result.stderr
    # Of the processor: others may be using it too.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_the_cuda_image_wants_its_gpu_and_its_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pipelines.pod.driver.gpus", list)
    monkeypatch.setattr("pipelines.pod.driver.has_gpu", lambda: False)
    found = verdicts(tmp_path, {"RECPOD_IMAGE": "cuda"})
    assert found["GPU"].verdict == "fail" and "--gpus all" in found["GPU"].remedy
    assert found["torch"].pinned == read_pins()["CUDA_TORCH"]


def test_a_driver_that_is_too_old_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> list[str]:
        raise MachineError("driver 470 is too old", where="NVIDIA driver", fix="take another machine")

    monkeypatch.setattr(health, "check_driver", refuse)
    check = verdicts(tmp_path)["NVIDIA driver"]
    assert (check.verdict, check.remedy) == ("fail", "take another machine")


def test_a_missing_package_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(health, "missing_packages", lambda: ["polars"])
    assert verdicts(tmp_path)["packages"] == Check("packages", "fail", "missing: polars", remedy=health.SET_UP)


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert verdicts(tmp_path / "file" / "runs")["disk"].verdict == "fail"


def test_little_memory_is_no_ill_health(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pipelines.preflight.available_memory_bytes", lambda: 10_000_000)
    assert verdicts(tmp_path)["memory"].verdict == "warn"


def test_a_session_is_ill_when_its_heartbeat_is_old(no_sessions: Path, tmp_path: Path) -> None:
    no_sessions.mkdir()
    beat = no_sessions / f"heartbeat-{os.getpid()}"
    beat.touch()
    name, now = f"session {os.getpid()}", beat.stat().st_mtime
    assert verdicts(tmp_path, now=now + 5)[name].verdict == "ok"
    late = verdicts(tmp_path, now=now + heartbeat.STALE_SECONDS + 5)[name]
    assert late.verdict == "fail" and late.remedy
