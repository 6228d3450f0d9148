"""Real containers: an engine, the cpu image built once from a copy of this checkout, and containers that clean up.

Without an engine the tests skip with a line that says so; RECPOD_CONTAINERS=require makes that a failure. The base
image is the pinned one, or RECPOD_TEST_BASE. tests/containers/engine.sh starts an engine and makes such a base.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from docker.errors import DockerException, NotFound

import docker

ROOT = Path(__file__).resolve().parents[2]
TAG = "recpod-test:cpu"
CONTEXT = ("configs", "docker", "entrypoints", "models", "pipelines")
# Told to the builder and to containers in every way a secret can be told; no image, log or run may hold one of them.
CANARIES = {
    "context": "canary-context-4f1c9a",
    "extras": "canary-extras-93be02",
    "build": "canary-build-7a61d8",
    "environment": "canary-environment-c5d2e0",
    "file": "canary-file-1b8846",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the image is marked; its first user waits for the build."""
    for item in items:
        if "image" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.container)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(1500))


def absent(what: str) -> NoReturn:
    """Skip with a line that stands in the summary, or fail where nothing may be skipped."""
    if os.environ.get("RECPOD_CONTAINERS") == "require":
        pytest.fail(f"{what}, and RECPOD_CONTAINERS=require")
    pytest.skip(f"NOT TESTED: {what}")


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    try:
        client = docker.from_env(timeout=300)
        client.ping()
    except DockerException:
        absent("no container engine answers (tests/containers/engine.sh start)")
    yield client
    client.close()


@pytest.fixture(scope="session")
def image(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The cpu image of this checkout, made with secrets lying about where a builder could pick them up."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in CONTEXT:
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "*.whl"))
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "runpod_entrypoint.sh"):
        shutil.copy2(ROOT / name, checkout / name)
    for place in (".env", "configs/.netrc", "docker/secret.txt", "runs/old/wandb-key", "models/.token"):
        (checkout / place).parent.mkdir(parents=True, exist_ok=True)
        (checkout / place).write_text(f"key={CANARIES['context']}\n")
    (checkout / "docker/extras/canary.crt").write_text(f"{CANARIES['extras']}\n")
    command = [str(checkout / "docker/build.sh"), "--tag", TAG, "--pip-settings"]
    if base := os.environ.get("RECPOD_TEST_BASE"):
        command += ["--base", base]
    secrets = dict.fromkeys(("WANDB_API_KEY", "RUNPOD_API_KEY"), CANARIES["build"])
    environment = {**os.environ, **secrets, "RECPOD_COMMIT": "commit-of-the-test"}
    result = subprocess.run(
        [*command, "--", "--network", "host"], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return TAG


def nobody_in_particular() -> int:
    """A user that no image knows; our own where we may not give folders away."""
    return 12345 if os.getuid() == 0 else os.getuid()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A folder to mount at /workspace, of the user that containers run as."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    if os.getuid() == 0:
        os.chown(folder, nobody_in_particular(), 0)
    return folder


Start = Callable[..., Any]


@pytest.fixture
def start(engine: Any, image: str) -> Iterator[Start]:
    """Starts a container as a hardened pod would: any user, read-only root, no network; more by keyword."""
    started: list[Any] = []

    def begin(*command: str, volume: Path | None = None, **options: Any) -> Any:
        settings: dict[str, Any] = {
            "user": f"{nobody_in_particular()}:0",
            "read_only": True,
            "tmpfs": {"/tmp": ""},
            "network_mode": "none",
            "shm_size": "1g",
            "security_opt": ["no-new-privileges"],
            "cap_drop": ["ALL"],
            "volumes": {str(volume): {"bind": "/workspace", "mode": "rw"}} if volume else {},
        }
        started.append(engine.containers.run(image, list(command), detach=True, **(settings | options)))
        return started[-1]

    yield begin
    for container in started:
        with contextlib.suppress(NotFound):
            container.remove(force=True, v=True)


def finish(container: Any, seconds: float = 300) -> tuple[int, str]:
    """Exit code and whole output of a container that ends by itself."""
    code = container.wait(timeout=seconds)["StatusCode"]
    return code, container.logs().decode()


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Returns once ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still no {what} after {seconds} s"
        time.sleep(0.1)
