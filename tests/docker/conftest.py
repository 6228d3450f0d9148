"""The scripts of docker/ as modules; docker/ is no package, because the SDK of that name is one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from tests.containers.conftest import absent

__all__ = ["ROOT", "absent", "brought", "load"]

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    """docker/NAME.py, imported once."""
    full = f"docker_scripts_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, ROOT / "docker" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module  # dataclasses look their own module up
        spec.loader.exec_module(module)
    return sys.modules[full]


def brought(program: str) -> str:
    """Path of ``program``, or the test is skipped.

    Where nothing may be skipped and root runs the tests, Debian's package of that name is installed.
    """
    required = os.environ.get("RECPOD_CONTAINERS") == "require"
    if shutil.which(program) is None and required and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", program]):
            subprocess.run(["apt-get", "--quiet", *command], env=environment, check=True, stdout=subprocess.DEVNULL)
    return shutil.which(program) or absent(f"no {program} (apt-get install {program})")
