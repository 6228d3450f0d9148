"""The lock files say exactly what is installed, and the pins stand once."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from itertools import chain

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipelines.machine import package_pins, read_pins
from tests.entrypoints.conftest import ROOT

LOCKS = {path.stem: path for path in sorted((ROOT / "docker" / "locks").glob("*.txt"))}
PINS = read_pins()


@cache
def locked(name: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Package to its requirement and hashes; a line that is neither fails."""
    packages: dict[str, tuple[Requirement, list[str]]] = {}
    hashes: list[str] = []
    for line in LOCKS[name].read_text().splitlines():
        text = line.removesuffix("\\").strip()
        if text.startswith("--hash="):
            hashes.append(text.removeprefix("--hash=sha256:"))
        elif text and not text.startswith("#"):
            requirement = Requirement(text)
            hashes = []
            packages[canonicalize_name(requirement.name)] = (requirement, hashes)
    return packages


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_lock_is_there() -> None:
    assert set(LOCKS) == {"cpu", "torch-cpu", "test", "hstu", "cuda", "cuda-test", "cuda-kernels", "image", "cloud"}


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_has_one_version_and_hashes(name: str) -> None:
    assert locked(name)
    for requirement, hashes in locked(name).values():
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", requirement
        assert hashes, requirement
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes), requirement


@pytest.mark.parametrize("name", LOCKS)
def test_no_host_is_named(name: str) -> None:
    text = LOCKS[name].read_text()
    assert not re.search(r"://|--index|--find-links|--extra|^-", text, flags=re.MULTILINE)
    assert not re.search(r"\b[\w-]+\.(org|com|io|net)\b", text)


@pytest.mark.parametrize("name", LOCKS)
def test_pins_and_locks_agree(name: str) -> None:
    pins = package_pins("cuda" if name.startswith("cuda") else "cpu")
    for package, (requirement, _) in locked(name).items():
        if package in pins:
            assert str(requirement.specifier) == f"=={pins[package]}", package


@pytest.mark.parametrize(
    ("base", "extra"),
    [
        ("cpu", "test"),
        ("cpu", "hstu"),
        ("torch-cpu", "cpu"),
        ("torch-cpu", "test"),
        ("torch-cpu", "hstu"),
        ("cuda", "cuda-test"),
    ],
)
def test_a_lock_repeats_nothing_of_the_one_below(base: str, extra: str) -> None:
    assert not locked(base).keys() & locked(extra).keys()


def test_extras_that_are_installed_together_agree() -> None:
    both = locked("test").keys() & locked("hstu").keys()
    assert both
    assert all(locked("test")[name][0].specifier == locked("hstu")[name][0].specifier for name in both)


def test_what_the_project_asks_for_is_pinned_and_locked() -> None:
    extras = project()["optional-dependencies"]
    base = [*project()["dependencies"], *extras["tracking"], *extras["data"]]
    places = {
        "cpu": [*base, *extras["test"], *extras["hstu"]],
        "cuda": [*base, *extras["test"], *extras["cuda"], *extras["kernels"]],
    }
    for kind, names in places.items():
        locks = ("cpu", "torch-cpu", "test", "hstu") if kind == "cpu" else ("cuda", "cuda-test", "cuda-kernels")
        there = set().union(*(locked(lock) for lock in locks))
        assert set(names) <= there
        assert set(names) <= package_pins(kind).keys()  # type: ignore[arg-type]


def test_versions_stand_in_versions_env_alone() -> None:
    declared = [*project()["dependencies"], *chain.from_iterable(project()["optional-dependencies"].values())]
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in declared)
    assert project()["requires-python"] == f">={PINS['PYTHON_MIN']},<3.{int(PINS['PYTHON_MAX'].split('.')[1]) + 1}"


def test_every_pin_is_used() -> None:
    there = set().union(*(locked(lock) for lock in LOCKS))
    assert package_pins("cpu").keys() <= there


def test_torch_without_a_gpu_is_the_cpu_build_only() -> None:
    requirement, hashes = locked("torch-cpu")["torch"]
    assert str(requirement) == f"torch=={PINS['TORCH']}"
    assert hashes == [value for key, value in PINS.items() if key.startswith("TORCH_CPU_SHA256_")]
    assert len(set(hashes)) == 4  # two Pythons, two architectures
    heavy = {name for lock in ("cpu", "test") for name in locked(lock) if name.startswith(("nvidia", "cuda", "torch"))}
    assert not heavy
    assert "fbgemm-gpu" not in locked("hstu")  # the CUDA build, which torchrec asks for
    assert not any(name.startswith(("nvidia", "cuda")) for name in locked("hstu"))


def test_the_main_job_s_lock_holds_nothing_of_the_extra() -> None:
    assert not locked("cpu").keys() & set(project()["optional-dependencies"]["hstu"])


def test_a_gpu_s_lock_holds_what_the_extra_brings() -> None:
    extra = set(project()["optional-dependencies"]["hstu"]) - {"fbgemm-gpu-cpu"} | {"fbgemm-gpu"}
    assert extra <= locked("cuda").keys()


def test_the_gpu_lock_lies_where_prebuilt_kernels_exist() -> None:
    version = PINS["CUDA_TORCH"].split(".")
    assert (2, 6) <= (int(version[0]), int(version[1])) <= (2, 10)
    assert any(name.startswith("nvidia-") for name in locked("cuda"))
    assert "UNTESTED" in LOCKS["cuda"].read_text().splitlines()[0]


def test_ray_is_nowhere() -> None:
    assert all("ray" not in locked(name) for name in LOCKS)
