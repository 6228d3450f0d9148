"""Which implementation of an operation runs: the best one that this machine has, or the one that was asked for."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor

VARIABLE = "RECPOD_KERNELS"  # forces a path by its name, e.g. "torch", or for one operation: "selective_scan=torch"


class KernelUnavailable(RuntimeError):
    """The implementation that was asked for cannot run on this machine."""


@dataclass(frozen=True)
class KernelPath:
    """One implementation of an operation.

    Attributes:
        name: as in ``path=`` and ``RECPOD_KERNELS``.
        module: file that holds it, below ``models.kernels``.
        function: its name there.
        devices: device types that it takes.
        needs: packages whose import it needs.
        checked: compare it with the reference before its first use: it stands on code of others or on a compiler.
        dtypes: what it computes in; other inputs are converted to the first and the result back.
    """

    name: str
    module: str
    function: str
    devices: tuple[str, ...]
    needs: tuple[str, ...] = ()
    checked: bool = False
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)


def _paths(op: str, has_cuda: bool) -> tuple[KernelPath, ...]:
    both, any_float = ("cuda", "cpu"), (torch.float32, torch.float64)
    fused = {
        "selective_scan": KernelPath("mamba", f"{op}.cuda", f"{op}_mamba", ("cuda",), ("mamba_ssm",), True),
        "causal_conv": KernelPath("mamba", f"{op}.cuda", f"{op}_mamba", ("cuda",), ("causal_conv1d",), True),
    }
    paths = (
        KernelPath("triton", f"{op}.triton", f"{op}_triton", ("cuda",), ("triton",), True),
        KernelPath("numba", f"{op}.cpu", f"{op}_numba", ("cpu",), ("numba",)),
        KernelPath("torch", f"{op}.vectorised", f"{op}_torch", both, dtypes=any_float),
        KernelPath("reference", f"{op}.reference", f"{op}_reference", both, dtypes=any_float),
    )
    return (fused[op], *paths) if has_cuda else paths


def _attention_paths(op: str) -> tuple[KernelPath, ...]:
    floats = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return (
        KernelPath("varlen", f"{op}.cuda", f"{op}_varlen", ("cuda",), (), True, floats),
        KernelPath("numba", f"{op}.cpu", f"{op}_numba", ("cpu",), ("numba",)),
        KernelPath("torch", f"{op}.vectorised", f"{op}_torch", ("cuda", "cpu"), dtypes=floats),
        KernelPath("reference", f"{op}.reference", f"{op}_reference", ("cuda", "cpu"), dtypes=floats),
    )


def _any_float_paths(op: str) -> tuple[KernelPath, ...]:
    floats = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return (
        KernelPath("triton", f"{op}.triton", f"{op}_triton", ("cuda",), ("triton",), True, (floats[0], *floats[2:])),
        KernelPath("numba", f"{op}.cpu", f"{op}_numba", ("cpu",), ("numba",)),
        KernelPath("torch", f"{op}.vectorised", f"{op}_torch", ("cuda", "cpu"), dtypes=floats),
        KernelPath("reference", f"{op}.reference", f"{op}_reference", ("cuda", "cpu"), dtypes=floats),
    )


# In order of preference.
PATHS: dict[str, tuple[KernelPath, ...]] = {
    "selective_scan": _paths("selective_scan", has_cuda=True),
    "diagonal_scan": _paths("diagonal_scan", has_cuda=False),
    "causal_conv": _paths("causal_conv", has_cuda=True),
    "packed_attention": _attention_paths("packed_attention"),
    "hstu_attention": _any_float_paths("hstu_attention"),
    "mhc_streams": _any_float_paths("mhc_streams"),
    "interval_attention": _any_float_paths("interval_attention"),
}


def takes(path: KernelPath, device: str) -> bool:
    """Whether ``path`` runs on tensors of ``device``; Triton does on the CPU under its interpreter (for tests)."""
    interpreted = path.name == "triton" and device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return device in path.devices or interpreted


def missing(path: KernelPath, device: str) -> str | None:
    """Why ``path`` cannot run on ``device`` here, or None. Imports what the path needs."""
    if not takes(path, device):
        return f"takes {' and '.join(path.devices)} tensors only"
    for package in path.needs:
        if importlib.util.find_spec(package) is None:
            return f"package {package} is not installed"
    try:
        importlib.import_module(f"models.kernels.{path.module}")
    except ImportError as error:
        return f"cannot be imported: {error}"
    return None


def load(path: KernelPath) -> Callable[..., Tensor]:
    """The function of ``path``, taking tensors of any float type."""
    function = getattr(importlib.import_module(f"models.kernels.{path.module}"), path.function)

    @wraps(function)
    def converted(first: Tensor, *rest: Tensor, **settings: Any) -> Tensor:
        dtype = first.dtype if first.dtype in path.dtypes else path.dtypes[0]
        inputs = (v.to(dtype) if v.is_floating_point() else v for v in (first, *rest))
        return function(*inputs, **settings).to(first.dtype)

    return converted


def expect_shapes(op: str, **expected: tuple[Tensor, tuple[int, ...]]) -> None:
    """Compiled code checks no bounds: a tensor of another shape is named here.

    Raises:
        ValueError: a tensor has not the shape that belongs to the first one's.
    """
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected {shape}")


def forced_path(op: str, path: str | None) -> str | None:
    """The path that the argument, or else the environment, asks for."""
    for choice in (path or os.environ.get(VARIABLE, "")).split(","):
        name, _, value = choice.strip().rpartition("=")
        if value and name in ("", op):
            return value
    return None


@cache
def _select(op: str, device: str, forced: str | None) -> KernelPath:
    if forced is not None:
        names = [path.name for path in PATHS[op]]
        if forced not in names:
            raise KernelUnavailable(f"{op} has no path '{forced}' (paths: {', '.join(names)})")
        path = PATHS[op][names.index(forced)]
        reason = missing(path, device)
        if reason:
            raise KernelUnavailable(f"{op}: path '{forced}' cannot run on {device} here: {reason}")
        return path
    for path in PATHS[op]:
        if missing(path, device):
            continue
        if not path.checked:
            return path
        from models.kernels.check import check_path  # imports every operation, this module's users

        result = check_path(op, path, device)
        if result.passed:
            return path
        warnings.warn(f"{op}: path '{path.name}' fails its check and is not used: {result.reason}", stacklevel=2)
    raise KernelUnavailable(f"{op}: no path for {device} tensors")


def select(op: str, device: str, path: str | None = None) -> KernelPath:
    """The path that runs for ``op`` on tensors of ``device`` ("cpu", "cuda").

    Raises:
        KernelUnavailable: the path asked for, by argument or by ``RECPOD_KERNELS``, does not exist or cannot run.
    """
    return _select(op, device, forced_path(op, path))


def resolve(op: str, device: str, path: str | None, dtype: torch.dtype = torch.float32) -> Callable[..., Any]:
    """The function that computes ``op``; float64 goes to a path that computes in float64 unless one is forced."""
    chosen = select(op, device, path)
    if dtype == torch.float64 and dtype not in chosen.dtypes and forced_path(op, path) is None:
        chosen = select(op, device, "torch")
    return load(chosen)
