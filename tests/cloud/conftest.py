"""An environment with SkyPilot and dstack, apart from the one that tests run in: their packages fit no other's pins."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "docker" / "locks" / "cloud.txt"
HERE = Path(__file__).parent
PROBE = "h11==0.16.0"  # a small package of the lock: can it be had, then it is not the network that failed
Says = Callable[..., dict[str, Any]]


def pip(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pip as it is configured here, without a terminal."""
    environment = os.environ | {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [str(python), "-m", "pip", *arguments, "--no-input", "--quiet"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def reachable(python: Path) -> bool:
    """Whether packages can be had at all."""
    with tempfile.TemporaryDirectory() as folder:
        return pip(python, "download", "--no-deps", "--dest", folder, PROBE).returncode == 0


def install(folder: Path) -> None:
    """Make the environment from the lock, checked sums and all; a half-made one is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    # cursor, which dstack asks for, is published as source only.
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--no-binary=cursor", "--no-compile"]
    done = pip(python, "install", *options, "-r", str(LOCK))
    if done.returncode:
        shutil.rmtree(folder / "lib")  # not to be taken for whole
        if reachable(Path(sys.executable)):
            pytest.fail(f"docker/locks/cloud.txt cannot be installed:\n{done.stderr[-2000:]}")
        skip("NO NETWORK: configs/cloud was not checked with SkyPilot and dstack")
    (folder / "whole").touch()


def skip(why: str) -> None:
    """Skip on a laptop; where containers must run, and so the network be there, fail."""
    if os.environ.get("RECPOD_CONTAINERS") == "require":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def cloud_python() -> Path:
    """The Python that has SkyPilot and dstack; kept under build/ until the lock or this Python changes."""
    key = hashlib.sha256(LOCK.read_bytes() + platform.python_version().encode()).hexdigest()[:12]
    folder = ROOT / "build" / f"cloud-{key}"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "cloud.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # pytest-xdist: one makes it, the others wait
        if not (folder / "whole").exists():
            install(folder)
    return folder / "bin" / "python"


@contextmanager
def asked(script: str, python: Path, home: Path) -> Iterator[Says]:
    """A function that puts arguments to ``script`` and returns its answer; the process runs as long as the block."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    own = {"HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "WANDB_API_KEY": "from-the-shell"}
    command, pipe = [str(python), str(HERE / script)], subprocess.PIPE
    errors = home / "errors"
    with (
        errors.open("w") as file,
        subprocess.Popen(command, cwd=ROOT, env=kept | own, stdin=pipe, stdout=pipe, stderr=file, text=True) as process,
    ):
        assert process.stdin and process.stdout
        questions, answers = process.stdin, process.stdout

        def says(*arguments: str) -> dict[str, Any]:
            print(json.dumps(arguments), file=questions, flush=True)
            line = answers.readline()
            assert line, errors.read_text()[-2000:]
            return json.loads(line)

        yield says
        questions.close()


@pytest.fixture(scope="session")
def skypilot(cloud_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Says]:
    """Ask SkyPilot: the arguments of ``sky jobs launch``."""
    with asked("skypilot_says.py", cloud_python, tmp_path_factory.mktemp("skypilot")) as says:
        yield says


@pytest.fixture(scope="session")
def dstack(cloud_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Says]:
    """Ask dstack: the arguments of ``dstack apply``."""
    with asked("dstack_says.py", cloud_python, tmp_path_factory.mktemp("dstack")) as says:
        yield says
