"""The driver check: an nvidia-smi of the test's stands for machines that are not here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.machine import Gpu
from pipelines.pod.driver import MATRIX, fitting_images, runs_on
from tests.pipelines.pod.conftest import Pod

CUDA = {"RECPOD_IMAGE": "cuda", "RECPOD_DEVICE": ""}


def refused(pod: Pod, **changes: str) -> str:
    done = pod.run(**changes)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert not pod.started()
    (line,) = done.stderr.splitlines()
    return line


def test_the_cuda_image_without_a_gpu(pod: Pod) -> None:
    path = pod.program("nvidia-smi", "#!/bin/sh\nexit 9\n")
    assert refused(pod, **CUDA, PATH=path) == (
        "error: GPU: the image 'cuda' finds no NVIDIA GPU. start it with `docker run --gpus all` or rent a GPU; "
        "without a GPU take the image tag 'cpu'."
    )


def test_a_driver_too_old(pod: Pod) -> None:
    assert refused(pod, **CUDA, PATH=pod.gpu(driver="515.65.01")) == (
        "error: NVIDIA driver: driver 515.65.01 is too old for CUDA 12.8 on NVIDIA A40: at least 525.60.13 is needed. "
        "no image here runs on this driver: rent a machine with driver 525.60.13 or newer (filter for CUDA 12.8), "
        "or update the driver."
    )


def test_a_gpu_generation_may_ask_for_a_newer_driver(pod: Pod) -> None:
    path = pod.gpu(driver="550.54.15", name="NVIDIA GeForce RTX 5090", capability="12.0")
    assert "driver 550.54.15 is too old for CUDA 12.8 on NVIDIA GeForce RTX 5090: at least 570" in refused(
        pod, **CUDA, PATH=path
    )


def test_a_gpu_without_kernels(pod: Pod) -> None:
    path = pod.gpu(driver="570.86.15", name="Tesla P100", capability="6.0")
    line = refused(pod, **CUDA, PATH=path)
    assert line.startswith(
        "error: GPU: Tesla P100 (compute capability 6.0) is not one that 'cuda' is made for. rent one"
    )


def test_set_up_on_a_machine_with_a_gpu_asks_the_same(pod: Pod) -> None:
    line = refused(pod, RECPOD_DEVICE="", PATH=pod.gpu(driver="470.82.01"))
    assert line.startswith("error: NVIDIA driver: driver 470.82.01 is too old for CUDA 12.8")
    assert pod.run(RECPOD_DEVICE="cpu", PATH=pod.gpu(driver="470.82.01")).returncode == 0


def test_a_driver_that_carries_it_says_nothing(pod: Pod) -> None:
    done = pod.run("--set", f"runs={pod.work}/runs", **CUDA, PATH=pod.gpu(driver="570.86.15"))
    assert done.returncode == 0 and "driver 5" not in done.stderr
    older = pod.run(**CUDA, PATH=pod.gpu(driver="535.183.01"))
    assert older.returncode == 0
    assert "driver 535.183.01 is older than CUDA 12.8 (570.26); it works by minor version compatibility" in older.stderr


def test_old_gpus_run_with_a_word_about_their_limits(pod: Pod) -> None:
    done = pod.run(**CUDA, PATH=pod.gpu(driver="570.86.15", name="Tesla T4", capability="7.5"))
    assert done.returncode == 0
    assert "warning: Tesla T4 (compute capability 7.5) runs with limits: no bfloat16 units" in done.stderr


def test_a_gpu_under_the_cpu_image(pod: Pod) -> None:
    path = pod.gpu(driver="570.86.15")
    done = pod.run(RECPOD_IMAGE="cpu", RECPOD_DEVICE="", PATH=path)
    assert done.returncode == 0
    assert "warning: GPU NVIDIA A40 is not used: this is the CPU image; the tag 'cuda' uses it" in done.stderr
    asked = pod.run("--set", "device=cuda", RECPOD_IMAGE="cpu", RECPOD_DEVICE="", PATH=path)
    assert asked.stderr == "error: device: a GPU is asked for in the CPU image. take the image tag 'cuda'.\n"


def test_a_gpu_that_is_asked_for_and_not_there(pod: Pod) -> None:
    done = pod.run("--set", "device=cuda", RECPOD_DEVICE="", PATH=pod.program("nvidia-smi", "#!/bin/sh\nexit 9\n"))
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: device: a GPU is asked for and none is here. rent a machine with an NVIDIA GPU"
    )


def test_another_image_is_named_where_one_fits() -> None:
    matrix: dict[str, Any] = json.loads(MATRIX.read_text())
    older = {"tag": "cuda12.1", "cuda": "12.1", "driver_min": "530.30.02", "driver_min_compat": "510.0"}
    matrix["images"].append({**older, "capabilities": ["8.0"]})
    matrix["generations"] = []
    assert fitting_images(Gpu("A40", 48, "8.6", "515.65.01"), matrix) == ["cuda12.1"]
    assert fitting_images(Gpu("H100", 80, "9.0", "515.65.01"), matrix) == []
    assert fitting_images(Gpu("A40", 48, "8.6", "580.1"), matrix) == ["cuda", "cuda12.1"]


@pytest.mark.parametrize(
    ("capability", "fits"), [("8.0", True), ("8.9", True), ("9.0", False), ("7.5", False), ("12.1", True)]
)
def test_code_runs_on_newer_minor_numbers(capability: str, fits: bool) -> None:
    assert runs_on(capability, ["8.0", "12.0"]) is fits
