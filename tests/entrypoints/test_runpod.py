"""The front door before any set-up: its help, its flags, and --no-setup on a Python that lacks everything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.pod.flags import LAUNCH_VALUES, POD_SWITCHES, POD_VALUES
from tests.entrypoints.conftest import ROOT

SUPERVISOR = {"--help", *POD_SWITCHES, *POD_VALUES, *LAUNCH_VALUES}  # what training never sees


def front_door(
    *arguments: str, script: str = "runpod_entrypoint.sh", **changes: str
) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / script), *arguments]
    return subprocess.run(command, env=os.environ | changes, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("script", ["runpod_entrypoint.sh", "entrypoints/runpod.sh", "entrypoints/test.sh"])
def test_help_needs_no_environment(script: str, tmp_path: Path) -> None:
    nowhere = tmp_path / "none"
    shown = front_door("--help", script=script, PATH="/usr/bin:/bin", RECPOD_VENV=str(nowhere))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("Usage: ")
    assert not nowhere.exists()


def test_help_and_python_know_the_same_flags() -> None:
    import typer.main

    from pipelines.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    python = {flag for parameter in commands["runbook"].params for flag in parameter.opts if flag.startswith("--")}
    text = front_door("--help").stdout
    described = set(re.findall(r"^  (--[a-z0-9-]+)", text, flags=re.MULTILINE))
    assert described - SUPERVISOR == python - SUPERVISOR
    assert described >= SUPERVISOR
    assert set(re.findall(r"--[a-z0-9-]+", text)) == described  # no flag is named that is not described


def test_no_setup_names_what_is_missing_in_one_line(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    refused = front_door("--no-setup", RECPOD_PYTHON=str(tmp_path / "bare" / "bin" / "python"))
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: --no-setup: ")
    assert " torch" in line
    assert "polars" in line
    assert not (tmp_path / "bare" / ".recpod").exists()


def test_no_setup_on_an_unsupported_python() -> None:
    refused = front_door("--no-setup", RECPOD_PYTHON="/bin/false")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --no-setup: /bin/false is not Python 3.11 to 3.12")


@pytest.mark.parametrize("flags", [["--no-setup"], []])
def test_without_a_python_the_pod_stays_and_it_is_said(flags: list[str], tmp_path: Path) -> None:
    changes = {"RECPOD_PYTHON": "/bin/false", "RECPOD_VENV": str(tmp_path / "none")}
    left = "the pod still runs and costs money: it cannot be stopped from here"
    refused = front_door("--stop-pod-when-done", *flags, **changes)
    assert (refused.returncode, refused.stderr.splitlines()[1:]) == (2, [left])
    assert front_door(*flags, **changes).stderr.count("\n") == 1


def test_no_setup_hands_the_other_arguments_over() -> None:
    refused = front_door("--quickstrt", "--no-setup", RECPOD_PYTHON=sys.executable)
    assert refused.returncode == 2
    assert refused.stderr == "error: unknown flag '--quickstrt'. did you mean '--quickstart'?\n"


def test_no_setup_works_from_any_folder(tmp_path: Path) -> None:
    command = [str(ROOT / "runpod_entrypoint.sh"), "--no-setup", "--dry-run"]
    environment = os.environ | {"RECPOD_PYTHON": sys.executable}
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "quickstart" in shown.stdout
    assert list(tmp_path.iterdir()) == []


TINY = """\
extends: {root}/configs/runs/quickstart.yaml
name: tiny
gates: []
model: {{hidden: 8, s5_state: 4, d_state: 4, layers: 1}}
training: {{epochs: 100000, patience: 0, log_every: 1}}
tracking: {{wandb: off}}
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_supervised_run_stops_and_goes_on_where_it_stood(tmp_path: Path) -> None:
    """Training itself behind the front door: SIGTERM saves and leaves with 75, the next start ends what it began."""
    (tmp_path / "tiny.yaml").write_text(TINY.format(root=ROOT))
    command = [str(ROOT / "runpod_entrypoint.sh"), "--no-setup", "--config", "tiny.yaml"]
    environment = os.environ | {"RECPOD_PYTHON": sys.executable, "RUNPOD_API_KEY": "canary-of-the-pod"}
    events = tmp_path / "runs" / "tiny" / "events.jsonl"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        until = time.monotonic() + 100
        while not (events.exists() and '"kind": "valid"' in events.read_text()):
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.1)
        process.terminate()
        assert process.wait(60) == 75, (tmp_path / "log").read_text()
    assert list((tmp_path / "runs" / "tiny" / "checkpoints").glob("step-*"))
    again = [*command, "--set", "training.epochs=2"]
    done = subprocess.run(
        again, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming from" in done.stdout
    texts = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in [*texts, done.stdout, done.stderr] if "canary-of-the-pod" in text]
