"""Does the NVIDIA driver carry this image's CUDA? Asked of docker/gpu-matrix.json before anything is downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import MachineError
from pipelines.machine import ROOT, Gpu, gpus, has_gpu
from pipelines.pod.flags import Flags

MATRIX = ROOT / "docker" / "gpu-matrix.json"


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare: (570, 26) of ``570.26``."""
    parts = []
    for part in version.split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def wanted_device(flags: Flags, environ: Mapping[str, str]) -> str:
    """``cpu``, ``cuda`` or ``auto``: what the run or the set-up was told to use."""
    device = flags.sets.get("device") or environ.get("RECPOD_DEVICE") or "auto"
    return "cuda" if device.startswith("cuda") else device


def check_driver(flags: Flags, environ: Mapping[str, str], matrix: Path = MATRIX) -> list[str]:
    """Refuse a machine on which the CUDA build cannot run; returns warnings.

    Without an image the build is the one that set-up will install: the CUDA one where there is a GPU.

    Raises:
        MachineError: no GPU where one is asked for, a driver that does not answer or is too old, a GPU that the build
            has no kernels for; with the image tag that fits, where there is one.
    """
    image, device = environ.get("RECPOD_IMAGE"), wanted_device(flags, environ)
    if device == "cpu":
        return []
    shown = gpus()
    there = bool(shown) or has_gpu()
    if image == "cpu" or not (there or image or device == "cuda"):
        if device == "cuda":
            raise MachineError("a GPU is asked for in the CPU image", where="device", fix="take the image tag 'cuda'")
        return [f"GPU {shown[0].name} is not used: this is the CPU image; the tag 'cuda' uses it"] if shown else []
    if not shown:
        raise _no_gpu(there, image)
    rows = json.loads(matrix.read_text(encoding="utf-8"))
    build = next((row for row in rows["images"] if row["tag"] == image and row["cuda"]), None)
    build = build or next(row for row in rows["images"] if row["cuda"])
    warnings: list[str] = []
    for gpu in shown:
        warnings += check_gpu(gpu, build, rows)
    return sorted(set(warnings))


def _no_gpu(there: bool, image: str | None) -> MachineError:
    if there:
        fix = "restart the machine or rent another one: its NVIDIA driver is broken"
        return MachineError("there is a GPU, but nvidia-smi does not answer", where="GPU", fix=fix)
    if image is None:
        fix = "rent a machine with an NVIDIA GPU, or leave device=cuda away"
        return MachineError("a GPU is asked for and none is here", where="device", fix=fix)
    fix = "start it with `docker run --gpus all` or rent a GPU; without a GPU take the image tag 'cpu'"
    return MachineError(f"the image '{image}' finds no NVIDIA GPU", where="GPU", fix=fix)


def check_gpu(gpu: Gpu, build: Mapping[str, Any], matrix: Mapping[str, Any]) -> list[str]:
    """One GPU and its driver against one build of the matrix; returns warnings.

    Raises:
        MachineError: see :func:`check_driver`.
    """
    least = oldest_driver(gpu, build, matrix)
    if numbers(gpu.driver) < numbers(least):
        what = f"driver {gpu.driver} is too old for CUDA {build['cuda']} on {gpu.name}: at least {least} is needed"
        raise MachineError(what, where="NVIDIA driver", fix=_remedy(gpu, least, build, matrix))
    if not runs_on(gpu.capability, [*build["capabilities"], *build.get("limited_capabilities", [])]):
        what = f"{gpu.name} (compute capability {gpu.capability}) is not one that '{build['tag']}' is made for"
        tags = fitting_images(gpu, matrix)
        fix = f"take the image tag '{tags[0]}'" if tags else f"rent one with {', '.join(build['capabilities'])}"
        raise MachineError(what, where="GPU", fix=fix)
    warnings = []
    if not runs_on(gpu.capability, build["capabilities"]):
        notes = [row["note"] for row in matrix["gpus"] if row["capability"] == gpu.capability and row.get("note")]
        said = f": {notes[0]}" if notes else ""
        warnings.append(f"{gpu.name} (compute capability {gpu.capability}) runs with limits{said}")
    if numbers(gpu.driver) < numbers(build["driver_min"]):
        text = f"driver {gpu.driver} is older than CUDA {build['cuda']} ({build['driver_min']})"
        warnings.append(f"{text}; it works by minor version compatibility")
    return warnings


def oldest_driver(gpu: Gpu, build: Mapping[str, Any], matrix: Mapping[str, Any]) -> str:
    """The oldest driver on which ``build`` runs on ``gpu``: the build's floor, or the GPU generation's where higher."""
    floors = [build["driver_min_compat"]]
    generations: Sequence[Mapping[str, Any]] = matrix.get("generations", [])
    floors += [row["driver_min"] for row in generations if runs_on(gpu.capability, row["capabilities"])]
    return max(floors, key=numbers)


def runs_on(capability: str, made_for: Sequence[str]) -> bool:
    """Whether code for one of ``made_for`` runs on ``capability``: the same major number, not a newer minor one."""
    major, minor = (*numbers(capability), 0, 0)[:2]
    return any(numbers(one)[0] == major and numbers(one)[1] <= minor for one in made_for)


def fitting_images(gpu: Gpu, matrix: Mapping[str, Any]) -> list[str]:
    """Image tags that run on this GPU with its driver, in the matrix's order."""
    return [
        row["tag"]
        for row in matrix["images"]
        if row["cuda"]
        and runs_on(gpu.capability, row["capabilities"])
        and numbers(gpu.driver) >= numbers(oldest_driver(gpu, row, matrix))
    ]


def _remedy(gpu: Gpu, least: str, build: Mapping[str, Any], matrix: Mapping[str, Any]) -> str:
    tags = fitting_images(gpu, matrix)
    if tags:
        return f"take the image tag '{tags[0]}', which this driver carries"
    return (
        f"no image here runs on this driver: rent a machine with driver {least} or newer (filter for CUDA "
        f"{build['cuda']}), or update the driver"
    )
