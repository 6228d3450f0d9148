"""A checkout in small: the real scripts, with lock files of packages that are made here and installed in seconds."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.machine import read_pins

ROOT = Path(__file__).resolve().parents[2]
TORCH = read_pins()["TORCH"]

# What setuptools does for an editable install, without setuptools: the lock of the small checkout does not hold it.
BACKEND = """
import os, zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = "recpod-0.1.0-py3-none-any.whl"
    info = "recpod-0.1.0.dist-info/"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        wheel.writestr("recpod.pth", os.getcwd())
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: recpod\\nVersion: 0.1.0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name

def get_requires_for_build_editable(config_settings=None):
    return []
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def make_wheel(folder: Path, name: str, version: str, code: str) -> str:
    """A wheel with one module; its requirement line with its hash."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for path, text in files.items()
    }
    record = "".join(f"{path},sha256={digests[path]},{len(text.encode())}\n" for path, text in files.items())
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in files.items():
            wheel.writestr(member, text)
        wheel.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return f"{name}=={version.partition('+')[0]} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def torch_code(cuda: str | None) -> str:
    """A module that says of itself what torch would."""
    return f"class version:\n    cuda = {cuda!r}\n__version__ = '{TORCH}'\n"


@dataclass(frozen=True)
class Checkout:
    """The small checkout and how to call its scripts."""

    root: Path
    wheels: Path

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    def environment(self, **changes: str) -> dict[str, str]:
        """pip sees nothing but the wheels made here; a value of "" takes the variable away."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME", "TMPDIR") if name in os.environ}
        pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)}
        values = kept | pip | {"RECPOD_DEVICE": "cpu", "RECPOD_PYTHON": sys.executable} | changes
        return {name: value for name, value in values.items() if value}

    def start(self, *arguments: str, script: str = "entrypoints/setup.sh", **changes: str) -> subprocess.Popen[str]:
        command, pipe = [str(self.root / script), *arguments], subprocess.PIPE
        environment = self.environment(**changes)
        return subprocess.Popen(
            command, cwd=self.root, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def run(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **changes)
        out, err = process.communicate(timeout=100)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def imports(self, module: str) -> bool:
        """Whether the environment has ``module``."""
        command = [str(self.venv / "bin" / "python"), "-c", f"import {module}"]
        return subprocess.run(command, cwd="/", capture_output=True, check=False).returncode == 0


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A fresh small checkout without an environment."""
    root, wheels = tmp_path / "checkout", tmp_path / "wheels"
    (root / "docker" / "locks").mkdir(parents=True)
    (root / "pipelines").mkdir()
    wheels.mkdir()
    shutil.copytree(ROOT / "entrypoints", root / "entrypoints")
    for name in ("docker/versions.env", "pipelines/__init__.py", "pipelines/errors.py", "pipelines/machine.py"):
        shutil.copy(ROOT / name, root / name)
    kernels = root / "models" / "kernels"
    kernels.mkdir(parents=True)
    (kernels / "__init__.py").write_text("def self_check():\n    open('compiled', 'a').write('once ')\n")
    (root / "backend.py").write_text(BACKEND)
    (root / "pyproject.toml").write_text(PROJECT)
    locks = root / "docker" / "locks"
    (locks / "cpu.txt").write_text(make_wheel(wheels, "core_package", "1.0", "VALUE = 1\n"))
    (locks / "torch-cpu.txt").write_text(make_wheel(wheels, "torch", f"{TORCH}+cpu", torch_code(cuda=None)))
    (locks / "test.txt").write_text(make_wheel(wheels, "test_package", "1.0", "VALUE = 2\n"))
    (locks / "hstu.txt").write_text(make_wheel(wheels, "hstu_package", "1.0", "VALUE = 3\n"))
    return Checkout(root, wheels)
