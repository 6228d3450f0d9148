"""The device that a run is estimated for: a GPU of docker/gpu-matrix.json, or this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, MachineError, nearest
from pipelines.estimate.memory import room_of
from pipelines.machine import GB, ROOT, cpu_model, gpus, has_gpu, memory_bytes, usable_cores

MATRIX = ROOT / "docker" / "gpu-matrix.json"


@dataclass(frozen=True)
class Device:
    """What training runs on.

    Attributes:
        name: of the GPU or processor.
        kind: ``cpu`` or ``cuda``.
        cores: CPU cores that a run may use; 0 for a GPU.
        room: bytes that a run may use on it.
        bf16_flops: FLOP/s of dense bfloat16 products, peak; None where the data sheet has none, and for a CPU.
        bandwidth: bytes/s of its memory; None for a CPU.
        price: dollars an hour of one, typical; None when not known.
        note: what a reader should know.
    """

    name: str
    kind: str
    cores: int
    room: int
    bf16_flops: float | None
    bandwidth: float | None
    price: float | None
    note: str = ""

    @property
    def key(self) -> str:
        """Name of the device's throughput file."""
        cores = f"-{self.cores}-cores" if self.kind == "cpu" else ""
        return f"{self.kind}-{_slug(self.name)}{cores}"


def find_device(name: str, matrix: Path = MATRIX) -> Device:
    """The device that ``--gpu`` names: ``cpu``, ``this`` (this machine's GPU, else its CPU), or a GPU's name.

    Raises:
        ConfigError: no such GPU; the nearest is named.
        MachineError: the list of GPUs is missing, or this machine's GPU is not on it.
    """
    if name == "cpu" or (name == "this" and not has_gpu()):
        return this_cpu()
    listed = read_matrix(matrix)
    if name == "this":
        shown = gpus()
        if not shown:
            raise MachineError("there is a GPU, but nvidia-smi does not answer", where="--gpu this", fix="name the GPU")
        found = _match(shown[0].name, listed)
        if found is None:
            what = f"'{shown[0].name}' is not in the list of GPUs"
            raise MachineError(what, where="--gpu this", fix="name one that is nearest to it")
        return found
    found = _match(name, listed)
    if found is None:
        raise ConfigError(f"unknown GPU '{name}'", where="--gpu", fix=nearest(name, ["cpu", "this", *_names(listed)]))
    return found


def this_cpu() -> Device:
    """This machine without a GPU."""
    return Device(cpu_model(), "cpu", usable_cores(), room_of(memory_bytes()), None, None, None)


def read_matrix(path: Path = MATRIX) -> list[dict[str, Any]]:
    """The GPUs of docker/gpu-matrix.json.

    Raises:
        MachineError: the file is not beside the code, or holds something else.
    """
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["gpus"]
        for entry in listed:
            float(entry["memory_gb"]), float(entry["bandwidth_gb_s"]), str(entry["name"]), list(entry["aliases"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"the list of GPUs cannot be read ({error})"
        raise MachineError(what, where=str(path), fix="run from a checkout of the project") from error
    return listed


def _match(name: str, listed: Sequence[dict[str, Any]]) -> Device | None:
    wanted = _slug(name)
    for entry in listed:
        if wanted in {_slug(known) for known in (entry["name"], *entry["aliases"])}:
            return _device(entry)
    return None


def _device(entry: dict[str, Any]) -> Device:
    tflops = entry.get("bf16_tflops")
    return Device(
        name=entry["name"],
        kind="cuda",
        cores=0,
        room=room_of(entry["memory_gb"] * GB),
        bf16_flops=tflops * 1e12 if tflops else None,
        bandwidth=entry["bandwidth_gb_s"] * 1e9,
        price=entry.get("typical_price_per_hour_usd"),
        note=entry.get("note", ""),
    )


def _names(listed: Sequence[dict[str, Any]]) -> list[str]:
    return [name for entry in listed for name in (entry["name"], *entry["aliases"])]


def _slug(name: str) -> str:
    """Lower case, words joined with dashes, without the maker's names that nvidia-smi adds."""
    words = re.findall(r"[a-z0-9.]+", name.lower())
    return "-".join(word for word in words if word not in ("nvidia", "tesla", "geforce"))
