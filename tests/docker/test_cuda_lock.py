"""The CUDA locks, which no machine without a GPU installs, can still be resolved and installed: dry, in seconds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from pipelines.machine import package_pins, read_pins
from tests.docker.conftest import ROOT, absent, load

LOCKS = ROOT / "docker" / "locks"
PINS = read_pins()
# What uv and pip say when there is nobody to ask.
NO_NETWORK = re.compile(
    r"dns error|name or service|temporary failure|connection|connect error|timed? ?out|unreachable", re.I
)


@pytest.fixture(scope="module")
def uv(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program ``uv``: the one on PATH, or the pinned one in a folder of its own."""
    found = shutil.which("uv")
    if found:
        return found
    folder = tmp_path_factory.mktemp("uv")
    base = Path(sys.base_prefix) / "bin" / "python3"  # an environment need not have pip
    command = [str(base), "-m", "venv", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", f"uv=={PINS['LOCK_UV']}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        absent(f"the CUDA locks: the package index does not give uv ({done.stderr.strip()[-200:]})")
    return str(folder / "bin" / "uv")


def run(uv: str, *arguments: str) -> subprocess.CompletedProcess:
    """uv's answer; a missing network skips, everything else is the caller's."""
    done = subprocess.run([uv, *arguments], capture_output=True, text=True, check=False, timeout=100)
    if done.returncode and NO_NETWORK.search(done.stderr):
        absent(f"the CUDA locks: no package index ({done.stderr.strip()[-200:]})")
    return done


def dry_install(uv: str, lock: Path, folder: Path, python: str = PINS["PYTHON_MAX"]) -> subprocess.CompletedProcess:
    """What installing ``lock`` on a Linux machine with a GPU would take: wheels are looked up, none is fetched."""
    place = ["--python-version", python, "--python-platform", "x86_64-manylinux_2_28", "--target", str(folder)]
    how = ["--dry-run", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    return run(uv, "pip", "install", *how, *place, "-r", str(lock))


def locked(text: str) -> dict[str, set[str]]:
    """Requirement to hashes, of a lock's text."""
    found = re.findall(r"^([a-z0-9]\S*(?: ;[^\\\n]*)?) \\\n((?:    --hash=\S+(?: \\)?\n)+)", text, flags=re.MULTILINE)
    return {name.strip(): set(re.findall(r"--hash=(\S+)", lines)) for name, lines in found}


def lost(lock: dict[str, set[str]], fresh: dict[str, set[str]]) -> list[str]:
    """What is locked and can no longer be had: a requirement, or a file of it."""
    return [name for name, hashes in lock.items() if name not in fresh or hashes - fresh[name]]


def requirements() -> list[str]:
    """What docker/lock.py resolves for cuda.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return load("lock").pinned(
        [*project["dependencies"], *extras["tracking"], *extras["data"], *extras["cuda"]], "cuda"
    )


@pytest.fixture
def script(uv: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docker/lock.py, which finds uv."""
    monkeypatch.setenv("PATH", f"{Path(uv).parent}{os.pathsep}{os.environ['PATH']}")
    return load("lock")


@pytest.mark.parametrize("python", [PINS["PYTHON_MIN"], PINS["PYTHON_MAX"]])
@pytest.mark.parametrize("name", ["cuda", "cuda-test"])
def test_a_machine_with_a_gpu_finds_a_wheel_of_every_package(uv: str, name: str, python: str, tmp_path: Path) -> None:
    done = dry_install(uv, LOCKS / f"{name}.txt", tmp_path, python)
    assert done.returncode == 0, done.stderr[-1500:]
    lines = [Requirement(line) for line in locked((LOCKS / f"{name}.txt").read_text(encoding="utf-8"))]
    machine = {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": "x86_64"}
    wanted = {line.name for line in lines if line.marker is None or line.marker.evaluate(machine)}
    assert set(re.findall(r"^ \+ ([\w.-]+)==", done.stderr, flags=re.MULTILINE)) == wanted
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".whl", ".so", ".py")], "dry"


def test_a_version_that_is_gone_is_noticed(uv: str, tmp_path: Path) -> None:
    text = (LOCKS / "cuda.txt").read_text(encoding="utf-8")
    (tmp_path / "lock.txt").write_text(text.replace(f"torch=={PINS['CUDA_TORCH']} ", "torch==2.10.999 "))
    done = dry_install(uv, tmp_path / "lock.txt", tmp_path)
    assert done.returncode != 0 and "torch==2.10.999" in done.stderr


def test_the_pins_still_resolve_to_the_locked_files(script: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    """The index is asked for everything; versions stay where they fit, hashes are the index's own."""
    lock = locked((LOCKS / "cuda.txt").read_text(encoding="utf-8"))
    try:
        entries = script.Resolver("cuda").resolve(requirements(), "\n".join(lock))
    except subprocess.CalledProcessError:
        said = capfd.readouterr().err
        if NO_NETWORK.search(said):
            absent("the CUDA locks: no package index")
        pytest.fail(f"the CUDA pins no longer resolve:\n{said[-1500:]}")
    fresh = locked("".join(f"{entry.requirement} \\\n{entry.lines}" for entry in entries))
    assert len(fresh) > 100 and fresh.keys() == lock.keys()
    assert lost(lock, fresh) == []
    torch = f"torch=={PINS['CUDA_TORCH']}"
    assert lost(lock | {torch: {"sha256:" + "0" * 64}}, fresh) == [torch], "a file that is not there is noticed"


def test_pins_that_contradict_each_other_do_not_resolve(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """torch 2.10 wants Triton 3.6: pinned to another one, the resolution has to fail."""
    monkeypatch.setattr(script, "package_pins", lambda kind: package_pins(kind) | {"triton": "3.5.0"})
    with pytest.raises(subprocess.CalledProcessError):
        script.Resolver("cuda").resolve(requirements(), "")
    assert f"torch=={PINS['CUDA_TORCH']}" in " ".join(capfd.readouterr().err.split())
