"""docker/compose.yaml and the programs that read it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.docker.conftest import ROOT

FILE = ROOT / "docker" / "compose.yaml"
GPU_FILE = ROOT / "docker" / "compose.gpu.yaml"


def compose(
    program: Sequence[str],
    *arguments: str,
    files: Sequence[Path] = (FILE,),
    settings: Mapping[str, str] | None = None,
    timeout: float = 110,
) -> subprocess.CompletedProcess:
    """``program -f FILE... arguments``, with nothing of this machine's environment but ``settings``."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
    command = [*program, *(f"--file={file}" for file in files), *arguments]
    return subprocess.run(
        command,
        env=environment | dict(settings or {}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
