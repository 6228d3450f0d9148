"""The Dockerfile's text, what a build is sent, and what docker/build.sh calls; none of it needs an engine."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from docker.utils import exclude_paths

from pipelines.machine import read_pins
from tests.containers.conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PINS = read_pins()


def final_stage(kind: str) -> str:
    found = re.search(rf"^FROM {kind}-base AS {kind}\n(.*?)(?=^# ---|\Z)", DOCKERFILE, flags=re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].strip()


def build(*arguments: str, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(root / "docker/build.sh"), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_base_images_are_those_of_versions_env() -> None:
    defaults = dict(re.findall(r"^ARG (\w+)=(\S*)$", DOCKERFILE, flags=re.MULTILINE))
    assert defaults["CPU_BASE_IMAGE"] == PINS["BASE_IMAGE_CPU"]
    assert defaults["CUDA_BASE_IMAGE"] == PINS["BASE_IMAGE_CUDA"]
    for name in ("BASE_IMAGE_CPU", "BASE_IMAGE_CUDA", "BASE_IMAGE_CUDA_DEVEL"):
        assert re.fullmatch(r"[a-z0-9/]+:[\w.-]+@sha256:[0-9a-f]{64}", PINS[name]), name


def test_the_two_images_differ_where_they_say_so() -> None:
    own = re.compile(r"^# This image:\nENV RECPOD_IMAGE=.*\n", flags=re.MULTILINE)
    cpu, cuda = (own.sub("", final_stage(kind)) for kind in ("cpu", "cuda"))
    assert len(own.findall(final_stage("cpu"))) == len(own.findall(final_stage("cuda"))) == 1
    assert cpu.replace("cpu-wheels", "cuda-wheels").replace("(cpu)", "(cuda)") == cuda


def test_the_classic_builder_reads_it() -> None:
    assert not re.search(r"--mount|--link|--chmod|<<\s*\w|^# syntax", DOCKERFILE, flags=re.MULTILINE)


def test_the_context_is_small_and_holds_what_is_needed() -> None:
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {Path(path) for path in exclude_paths(str(ROOT), patterns) if (ROOT / path).is_file()}
    own = {path for path in sent if path.parts[:2] != ("docker", "extras")}
    assert sum((ROOT / path).stat().st_size for path in own) < 5_000_000
    copied = re.findall(r"^COPY ((?!--from).*) \S+$", DOCKERFILE, flags=re.MULTILINE)
    for name in {name for names in copied for name in names.split()}:
        assert any(path == Path(name) or Path(name) in path.parents for path in sent), name
    strangers = {path.parts[0] for path in sent} - {"configs", "docker", "entrypoints", "models", "pipelines"}
    assert strangers == {"Dockerfile", ".dockerignore", "pyproject.toml", "runpod_entrypoint.sh"}
    assert not [path for path in sent if "__pycache__" in path.parts or path.suffix in (".pyc", ".env.local")]


def test_build_sh_passes_pins_commit_and_base() -> None:
    result = build("--dry-run", "--target", "cuda", "--kernels", "source", "--tag", "mine:1", "--", "--no-cache")
    words = result.stdout.splitlines()
    assert words[:6] == ["docker", "build", "--target", "cuda", "--tag", "mine:1"]
    assert f"CUDA_BASE_IMAGE={PINS['BASE_IMAGE_CUDA']}" in words
    assert f"CUDA_WHEELS_IMAGE={PINS['BASE_IMAGE_CUDA_DEVEL']}" in words
    assert "KERNELS=source" in words and words[-2] == "--no-cache"
    (pins,) = (word for word in words if word.startswith("PINS="))
    assert f"torch=={PINS['CUDA_TORCH']}" in pins and f"dumb-init=={PINS['DUMB_INIT']}" in pins
    (commit,) = (word for word in words if word.startswith("COMMIT="))
    assert re.fullmatch(r"COMMIT=([0-9a-f]{40}(-dirty)?|unknown)", commit)
    assert not Path(words[-1]).exists()  # the context of a dry run is gone


def test_build_sh_asks_pip_for_certificate_and_wheels(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("certificate")
    (tmp_path / "torch-1-py3-none-any.whl").write_text("wheel")
    fake = tmp_path / "bin" / "docker"
    fake.parent.mkdir()
    fake.write_text(
        '#!/bin/sh\n[ "$1" = build ] || exit 1\n'
        'for last; do :; done\nls "$last/docker/extras"\ncat "$last/Dockerfile"\n'
    )
    fake.chmod(0o755)
    path = f"{fake.parent}:{os.environ['PATH']}"
    settings = {"PIP_CERT": str(tmp_path / "ca.pem"), "PIP_FIND_LINKS": str(tmp_path), "PATH": path}
    result = build("--pip-settings", **settings)
    assert result.stdout.splitlines()[:3] == ["README.md", "ca.crt", "torch-1-py3-none-any.whl"]
    assert "AS cpu\n" in result.stdout and "cuda-base" not in result.stdout.split("# --- cpu ---")[1]
    other = build("--target", "cuda", **settings).stdout
    assert "AS cuda\n" in other and "cpu-wheels" not in other and "ca.crt" not in other
    assert not [
        name for name in (ROOT / "docker" / "extras").iterdir() if name.name in ("ca.crt", "torch-1-py3-none-any.whl")
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--target", "tpu"], "cpu or cuda"),
        (["--kernels", "some"], "none, prebuilt or source"),
        (["--tag"], "--tag needs a value"),
        (["--ca", "nowhere.pem"], "nowhere.pem: no such file"),
        (["--wheels", "nowhere"], "nowhere: no such folder"),
        (["--fast"], "unknown option '--fast'"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], expected: str) -> None:
    result = build(*arguments)
    assert result.returncode == 2
    assert expected in result.stderr and result.stderr.count("\n") == 1


def test_what_runs_in_a_container_runs_nothing_else(tmp_path: Path) -> None:
    """Flags go to the front door, other words are a command."""
    door = ROOT / "entrypoints" / "image.sh"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    said = subprocess.run([door, "echo", "hello"], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == "hello\n"
    said = subprocess.run([door, "--help"], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.startswith("Usage: ./runpod_entrypoint.sh")
