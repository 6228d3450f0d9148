"""Images and containers for the benchmarks: built by docker/build.sh, run as a hardened pod would run them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from docker.errors import DockerException, ImageNotFound

import docker

ROOT = Path(__file__).resolve().parents[1]
TAG = "recpod:cpu"
USER = "12345:0"  # somebody whom the image does not know
PATIENCE = 600.0  # seconds until a container counts as hanging


def engine() -> Any:
    """A client of the container engine.

    Raises:
        SystemExit: none answers.
    """
    try:
        client = docker.from_env(timeout=300)
        client.ping()
    except DockerException as error:
        raise SystemExit(f"no container engine answers ({error}): tests/containers/engine.sh start") from error
    return client


def build(tag: str, options: Sequence[str], *, root: Path = ROOT, cached: bool = True) -> float:
    """Build the cpu image from the checkout ``root`` and return the seconds that it took.

    Args:
        tag: name of the image.
        options: of docker/build.sh, such as ``--base IMAGE`` and ``--pip-settings``.
        root: a checkout.
        cached: layers of earlier builds may be used.
    """
    command = [str(root / "docker" / "build.sh"), "--tag", tag, *options, "--", "--network", "host"]
    begin = time.perf_counter()
    result = subprocess.run(command + ([] if cached else ["--no-cache"]), capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}\n{(result.stdout + result.stderr)[-3000:]}")
    return time.perf_counter() - begin


def existing(client: Any, tag: str) -> Any:
    """The image ``tag``.

    Raises:
        SystemExit: it has not been built.
    """
    try:
        return client.images.get(tag)
    except ImageNotFound as error:
        raise SystemExit(f"there is no image {tag}: docker/build.sh --tag {tag}") from error


@contextmanager
def container(client: Any, tag: str, arguments: Sequence[str], volume: Path, **options: Any) -> Iterator[Any]:
    """A container of any user, with a read-only root and no network; removed at the end, whatever it is."""
    settings: dict[str, Any] = {
        "user": USER,
        "read_only": True,
        "tmpfs": {"/tmp": ""},
        "network_mode": "none",
        "shm_size": "1g",
        "volumes": {str(volume): {"bind": "/workspace", "mode": "rw"}},
    }
    running = client.containers.run(tag, list(arguments), detach=True, **(settings | options))
    try:
        yield running
    finally:
        running.remove(force=True, v=True)


def finish(running: Any, wanted: Sequence[int]) -> None:
    """Wait for a container's end, which must have one of the exit codes ``wanted``.

    Raises:
        SystemExit: another exit code; with what it said last.
    """
    code = running.wait(timeout=PATIENCE)["StatusCode"]
    if code not in wanted:
        raise SystemExit(f"the container ended with code {code}:\n{running.logs(tail=30).decode()}")


def give_to_user(folder: Path) -> Path:
    """``folder``, made if it is not there, writable for the containers' user."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.getuid() == 0:
        os.chown(folder, int(USER.partition(":")[0]), 0)
    else:
        folder.chmod(0o777)
    return folder
