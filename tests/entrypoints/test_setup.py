"""setup.sh, run for real on a small checkout: made once, repaired, never CUDA without a GPU, never a foreign folder."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.entrypoints.conftest import TORCH, Checkout, make_wheel, torch_code


def script(folder: Path, name: str, body: str) -> Path:
    """An executable that comes first on PATH when ``folder`` does."""
    path = folder / name
    folder.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def stamps(checkout: Checkout) -> dict[str, float]:
    return {path.name: path.stat().st_mtime_ns for path in (checkout.venv / ".recpod").iterdir()}


def processor_time() -> float:
    """Seconds that the commands so far have worked; unlike the clock's, a busy machine adds none."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_made_once_then_left_alone_then_extended(checkout: Checkout) -> None:
    made = checkout.run()
    assert made.returncode == 0, made.stderr
    assert "environment ready" in made.stderr
    assert checkout.imports("core_package, torch, pipelines")
    assert not checkout.imports("test_package")
    assert not checkout.imports("hstu_package")

    before, begin = stamps(checkout), processor_time()
    again = checkout.run()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert processor_time() - begin < 1
    assert stamps(checkout) == before

    tested = checkout.run("--test")
    assert tested.returncode == 0, tested.stderr
    assert checkout.imports("core_package, test_package")
    assert stamps(checkout)["core"] == before["core"]  # what was there was kept
    assert not checkout.imports("hstu_package")

    sharded = checkout.run("--hstu")
    assert sharded.returncode == 0, sharded.stderr
    assert checkout.imports("core_package, test_package, hstu_package")
    assert checkout.run("--hstu", "--test").stderr == ""
    assert checkout.run().stderr == ""  # more than asked for is ready too
    assert (checkout.root / "compiled").read_text() == "once "  # kernels, before the first run rather than in it


def test_another_lock_makes_it_anew(checkout: Checkout) -> None:
    assert checkout.run().returncode == 0
    (checkout.venv / "left-over").touch()
    with (checkout.root / "docker" / "locks" / "cpu.txt").open("a") as lock:
        lock.write(make_wheel(checkout.wheels, "newer_package", "1.0", ""))
    changed = checkout.run()
    assert changed.returncode == 0, changed.stderr
    assert checkout.imports("newer_package")
    assert not (checkout.venv / "left-over").exists()


def test_killed_set_up_is_repaired_by_the_next(checkout: Checkout) -> None:
    process = checkout.start()
    deadline = time.monotonic() + 60
    while not (checkout.venv / "bin" / "python").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert "core" not in stamps(checkout)
    half = checkout.venv / "half-written"
    half.touch()

    repaired = checkout.run()
    assert repaired.returncode == 0, repaired.stderr
    assert not half.exists()
    assert checkout.imports("core_package, torch, pipelines")
    assert "installing" not in stamps(checkout)


def test_two_at_once_install_once(checkout: Checkout) -> None:
    both = [checkout.start(), checkout.start()]
    said = [process.communicate(timeout=100)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("environment ready" in text for text in said) == 1
    assert sum("waiting" in text for text in said) == 1


def test_a_cuda_build_is_refused_without_a_gpu(checkout: Checkout) -> None:
    lock = checkout.root / "docker" / "locks" / "torch-cpu.txt"
    lock.write_text(make_wheel(checkout.wheels, "torch", f"{TORCH}+cpu", torch_code(cuda="12.8")))
    refused = checkout.run()
    assert refused.returncode == 2
    assert "CUDA 12.8 on a machine of kind cpu" in refused.stderr
    assert "core" not in stamps(checkout)
    assert checkout.run("--dry-run").stdout != ""  # it does not count as ready


def test_an_unknown_torch_wheel_is_refused(checkout: Checkout) -> None:
    make_wheel(checkout.wheels, "torch", f"{TORCH}+cpu", torch_code(cuda=None) + "TAMPERED = True\n")
    refused = checkout.run()
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith(
        f"error: the wheel of torch {TORCH} in pip's find-links is none of"
    )
    assert not checkout.imports("torch")


def test_torch_comes_from_the_cpu_index_when_find_links_have_none(checkout: Checkout) -> None:
    wheel = next(checkout.wheels.glob("torch-*.whl"))
    index = checkout.root.parent / "index" / "torch"
    index.mkdir(parents=True)
    wheel.rename(index / wheel.name)
    (index / "index.html").write_text(f'<a href="{wheel.name.replace("+", "%2B")}">{wheel.name}</a>')
    address = index.parent.as_uri()
    made = checkout.run(PIP_NO_INDEX="", PIP_INDEX_URL="file:///nowhere", RECPOD_TORCH_INDEX=address)
    assert made.returncode == 0, made.stderr
    assert f"taking it from {address}" in made.stderr
    assert checkout.imports("torch")


def test_no_torch_anywhere_ends_in_one_clear_line(checkout: Checkout) -> None:
    next(checkout.wheels.glob("torch-*.whl")).unlink()
    index = checkout.root.parent / "empty"
    index.mkdir()
    refused = checkout.run(RECPOD_TORCH_INDEX=index.as_uri())
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith(
        f"error: torch {TORCH} (CPU build) is neither in pip's find-links"
    )


def test_a_folder_of_the_users_own_is_not_touched(checkout: Checkout) -> None:
    checkout.venv.mkdir()
    mine = checkout.venv / "mine"
    mine.touch()
    refused = checkout.run()
    assert refused.returncode == 2
    assert "was not made by entrypoints/setup.sh" in refused.stderr
    assert mine.exists()


def test_a_shim_with_nothing_behind_it_is_passed_over(checkout: Checkout) -> None:
    folder = checkout.root / "bin"
    for name in ("python3.11", "python3.12"):
        script(folder, name, "echo 'command not found' >&2; exit 127")
    script(folder, "python3", f'exec {sys.executable} "$@"')
    plan = checkout.run("--dry-run", RECPOD_PYTHON="", PATH=f"{folder}:/usr/bin:/bin")
    assert plan.returncode == 0, plan.stderr
    assert f"python: {sys.executable}" in plan.stdout
    assert not checkout.venv.exists()


def test_debian_without_venv_is_named(checkout: Checkout) -> None:
    folder = checkout.root / "bin"
    hidden = "import sys; sys.modules['ensurepip'] = None; exec(sys.stdin.read())"
    for name in ("python3.11", "python3.12", "python3", "python"):
        script(folder, name, f'shift; exec {sys.executable} -c "{hidden}" "$@"')
    plan = checkout.run("--dry-run", RECPOD_PYTHON="", PATH=f"{folder}:/usr/bin:/bin")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    expected = f"error: Python {version} is here without its venv module: apt-get install python{version}-venv\n"
    assert (plan.returncode, plan.stderr) == (2, expected)


def test_no_supported_python_is_named(checkout: Checkout) -> None:
    old = script(checkout.root / "bin", "old", "exit 0")
    plan = checkout.run("--dry-run", RECPOD_PYTHON=str(old))
    assert plan.returncode == 2
    assert plan.stderr.startswith("error: no Python 3.11 to 3.12 on PATH")


@pytest.mark.parametrize(
    ("answer", "kind", "flags", "locks"),
    [
        (0, "cuda", [], "cuda.txt cuda-kernels.txt"),
        (0, "cuda", ["--hstu", "--test"], "cuda.txt cuda-kernels.txt cuda-test.txt"),
        (9, "cpu", [], "cpu.txt torch-cpu.txt"),
        (9, "cpu", ["--hstu", "--test"], "cpu.txt torch-cpu.txt hstu.txt test.txt"),
    ],
)
def test_the_lock_follows_the_machine(checkout: Checkout, answer: int, kind: str, flags: list[str], locks: str) -> None:
    if answer and Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA GPU")
    folder = checkout.root / "bin"
    script(folder, "nvidia-smi", f"exit {answer}")
    plan = checkout.run("--dry-run", *flags, RECPOD_DEVICE="", PATH=f"{folder}:/usr/bin:/bin")
    assert f"machine: {kind}\n" in plan.stdout
    assert [line.rpartition("/")[2] for line in plan.stdout.splitlines() if line.startswith("lock:")] == locks.split()


@pytest.mark.parametrize("arguments", [("--tset",), ("--test", "now")])
def test_unknown_arguments_are_named(checkout: Checkout, arguments: tuple[str, ...]) -> None:
    refused = checkout.run(*arguments)
    assert refused.returncode == 2
    assert (
        refused.stderr
        == f"error: unknown flag '{arguments[-1]}': entrypoints/setup.sh takes --hstu, --test, --dry-run and --help\n"
    )


def test_help_needs_nothing(checkout: Checkout) -> None:
    shown = checkout.run("--help", RECPOD_PYTHON="/nowhere", PATH="/usr/bin:/bin")
    assert shown.returncode == 0
    assert shown.stdout.startswith("Usage: entrypoints/setup.sh")
    assert not checkout.venv.exists()
