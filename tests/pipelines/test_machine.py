"""Pins are read as they stand; the machine is described without anything private."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from pipelines import machine
from pipelines.errors import MachineError


def test_each_kind_of_machine_has_its_pins() -> None:
    pins = {
        "PYTHON_MIN": "3.11",
        "TORCH_CPU_INDEX": "x",
        "TORCH": "2.13.0",
        "CUDA_TORCH": "2.10.0",
        "CUDA_MAMBA_SSM": "2.3",
    }
    assert machine.package_pins("cpu", pins) == {"torch": "2.13.0", "mamba-ssm": "2.3"}
    assert machine.package_pins("cuda", pins) == {"torch": "2.10.0", "mamba-ssm": "2.3"}
    backwards = dict(reversed(pins.items()))
    assert machine.package_pins("cpu", backwards) == {"torch": "2.13.0", "mamba-ssm": "2.3"}


def test_a_line_that_is_no_pin_is_named(tmp_path: Path) -> None:
    file = tmp_path / "versions.env"
    file.write_text("# comment\n\nTORCH=2.13.0\nnumpy 2\n")
    with pytest.raises(MachineError, match=r"versions\.env:4: not KEY=value"):
        machine.read_pins(file)
    with pytest.raises(MachineError, match="missing"):
        machine.read_pins(tmp_path / "none")


def test_the_container_s_limits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/sys/fs/cgroup/cpu.max": "150000 100000", "/sys/fs/cgroup/memory.max": "1000000000"}
    files |= {"/sys/fs/cgroup/memory.current": "250000000", "/proc/meminfo": "MemAvailable:  9000000 kB"}
    monkeypatch.setattr(machine, "_read", lambda path: files.get(str(path), ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    assert machine.usable_cores() == 1
    assert machine.memory_bytes() == 1_000_000_000
    assert machine.available_memory_bytes() == 750_000_000
    files.update({"/sys/fs/cgroup/cpu.max": "max 100000", "/sys/fs/cgroup/memory.max": "max"})
    assert machine.usable_cores() == 16
    assert machine.available_memory_bytes() == 9_000_000 * 1024


def test_gpus_are_read_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559, 9.0, 580.1'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert machine.gpus() == [machine.Gpu("NVIDIA H100 80GB HBM3", 85.5, "9.0", "580.1")]
    smi.write_text("#!/bin/sh\necho 'Failed to initialize NVML'\nexit 9\n")
    assert machine.gpus() == []


def test_the_description_is_json_and_names_nobody() -> None:
    described = machine.describe_machine()
    text = json.dumps(described)
    assert set(described) == {
        *("system", "cpu", "cores", "memory_gb", "shared_memory_gb", "disk_free_gb", "gpus", "cuda_runtime")
    }
    assert platform.node() not in text
    assert str(Path.home()) not in text


def test_versions_are_those_installed() -> None:
    import numpy

    versions = machine.package_versions()
    assert versions["numpy"] == numpy.__version__
    assert versions["python"] == platform.python_version()
    assert machine.installed_version("no-such-package", "numpy") == numpy.__version__
    assert machine.installed_version("no-such-package") is None
