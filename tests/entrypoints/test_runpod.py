"""The front door before any set-up: its help, its flags, and --no-setup on a Python that lacks everything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.entrypoints.conftest import ROOT

SHELL_ONLY = {"--help", "--no-setup"}


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
    assert described - SHELL_ONLY == python - SHELL_ONLY
    assert described >= SHELL_ONLY
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
