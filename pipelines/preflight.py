"""Is this machine ready? Versions, GPU, kernels, room and data source, in seconds and before money is spent.

Versions are read without importing anything; only torch and the kernels are imported, because they are what is checked.
A line says ``ok``, ``warn`` (it will run, slower or with less) or ``fail`` (it will not), and what to do.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

from pipelines.errors import ConfigError, DataError, MachineError
from pipelines.machine import (
    GB,
    SHARED_MEMORY,
    Gpu,
    available_memory_bytes,
    free_bytes,
    gpus,
    has_gpu,
    installed_version,
    memory_bytes,
    package_pins,
    read_pins,
)

if TYPE_CHECKING:  # to be named only: preflight starts without polars
    from pipelines.data.datasets import DatasetSpec

Verdict = Literal["ok", "warn", "fail"]
FAILED = MachineError.exit_code
OLDEST_TORCH = (2, 10)
SET_UP = "build the image anew" if os.environ.get("RECPOD_IMAGE") else "run entrypoints/setup.sh"
# Package, other names it goes by, whether nothing works without it, what it is for.
PACKAGES: tuple[tuple[str, tuple[str, ...], bool, str], ...] = (
    ("numpy", (), True, "everything computes with it"),
    ("triton", (), False, "GPU kernels"),
    ("mamba-ssm", (), False, "faster than the Triton kernels"),
    ("causal-conv1d", (), False, "faster than the Triton kernels"),
    ("torchrec", (), False, "tables that do not fit one GPU"),
    ("fbgemm-gpu", ("fbgemm-gpu-cpu",), False, "tables that do not fit one GPU"),
    ("megatron-core", (), False, "tensor parallel layers"),
    ("recbole", (), False, "ML-100K comes from inside it"),
)
GPU_ONLY = {"triton", "mamba-ssm", "causal-conv1d", "torchrec", "fbgemm-gpu", "megatron-core"}


@dataclass(frozen=True)
class Check:
    """One line of the verdict.

    Attributes:
        name: what was looked at.
        verdict: ok, warn or fail.
        found: what is there.
        pinned: what docker/versions.env asks for, where it does.
        remedy: what to do; empty when ok.
    """

    name: str
    verdict: Verdict
    found: str
    pinned: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class PreflightOptions:
    """What the machine is wanted for.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``; a GPU that is asked for must be there.
        folder: where runs are written.
        dataset: name or path of the data.
        data_needed: a data source that cannot be reached is a failure, not a warning.
        spec: the data as a run has resolved it, in place of ``dataset``.
        cache: where downloads are looked for; None as without a configuration.
        wandb: W&B will track, so that its key is asked for.
        engine: who trains: ``recbole`` must find RecBole and what it needs.
    """

    device: str = "auto"
    folder: Path = Path("runs")
    dataset: str = "ml-100k"
    data_needed: bool = False
    spec: DatasetSpec | None = None
    cache: Path | None = None
    wandb: bool = True
    engine: str = "recpod"


def run_preflight(options: PreflightOptions | None = None) -> list[Check]:
    """Every check, in the order of the printed table."""
    from pipelines.engines.recbole_conflicts import check_recbole

    options = options or PreflightOptions()
    if options.engine not in ("recpod", "recbole"):
        raise ConfigError(f"unknown engine '{options.engine}'", where="--engine", fix="give recpod or recbole")
    shown = gpus()
    with_gpu = bool(shown) or has_gpu()
    checks = [check_python(), *check_torch(options, with_gpu), *check_gpus(shown, options, with_gpu)]
    checks += [check_package(*row, with_gpu=with_gpu) for row in PACKAGES]
    checks += check_recbole(used=options.engine == "recbole")
    checks += check_kernels(options)
    checks += [check_disk(options.folder), check_memory(), check_shared_memory()]
    checks.append(check_source(options))
    return [*checks, check_wandb_key()] if options.wandb else checks


def verdict(checks: Sequence[Check]) -> int:
    """Exit code of the whole: 0, or 2 when a check has failed."""
    return FAILED if any(check.verdict == "fail" for check in checks) else 0


def print_checks(checks: Sequence[Check], console: Console, *, as_json: bool = False) -> int:
    """Print checks as a table or as JSON; the exit code."""
    code = verdict(checks)
    if as_json:
        console.print_json(data={"exit_code": code, "checks": [asdict(check) for check in checks]})
    else:
        console.print(as_table(checks))
        console.print(summary(checks))
    return code


def require_preflight(options: PreflightOptions, console: Console) -> None:
    """Run every check, print those that are not ok, and stop when one has failed.

    Raises:
        MachineError: the first failure, with its remedy.
    """
    checks = run_preflight(options)
    for check in checks:
        if check.verdict == "warn":
            console.print(f"[yellow]warning[/]: {check.name}: {check.found} ({check.remedy})")
    console.print(summary(checks))
    failures = [check for check in checks if check.verdict == "fail"]
    if failures:
        others = f" (and {len(failures) - 1} more: recpod preflight)" if len(failures) > 1 else ""
        first = failures[0]
        raise MachineError(f"{first.found}{others}", where=f"preflight: {first.name}", fix=first.remedy)


def summary(checks: Sequence[Check]) -> str:
    """One line: how many checks ended how."""
    counts = {word: sum(check.verdict == word for check in checks) for word in ("ok", "warn", "fail")}
    return f"preflight: {counts['ok']} ok, {counts['warn']} to note, {counts['fail']} failed"


def as_table(checks: Sequence[Check]) -> Table:
    """The checks with found beside pinned."""
    table = Table(box=None, pad_edge=False)
    for column in ("check", "", "found", "pinned", "what to do"):
        table.add_column(column, overflow="fold")
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in checks:
        word = f"[{colours[check.verdict]}]{check.verdict}[/]"
        table.add_row(check.name, word, check.found, check.pinned, check.remedy)
    return table


def line(name: str, worst: Verdict, found: str, remedy: str, pinned: str = "") -> Check:
    """A check with a remedy, which an ``ok`` has no use for."""
    return Check(name, worst, found, pinned, "" if worst == "ok" else remedy)


def grade(value: float, fail_below: float, warn_below: float) -> Verdict:
    """The verdict for an amount, more being better."""
    return "fail" if value < fail_below else "warn" if value < warn_below else "ok"


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 13, 0) of ``2.13.0+cpu``."""
    parts = version.partition("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())


def check_python() -> Check:
    """The interpreter is one that the lock files hold for."""
    pins, found = read_pins(), platform.python_version()
    low, high = pins["PYTHON_MIN"], pins["PYTHON_MAX"]
    fits = numbers(low) <= numbers(found)[:2] <= numbers(high)
    return line("Python", "ok" if fits else "fail", found, SET_UP, f"{low} to {high}")


def check_torch(options: PreflightOptions, with_gpu: bool) -> Iterator[Check]:
    """The version of torch, and whether its build and the driver fit the machine."""
    pinned = package_pins("cuda" if with_gpu else "cpu")["torch"]
    found = installed_version("torch")
    if found is None or numbers(found)[:2] < OLDEST_TORCH:
        yield Check("torch", "fail", found or "absent", pinned, SET_UP)
    else:
        same = found.partition("+")[0] == pinned
        yield line("torch", "ok" if same else "warn", found, f"tested with {pinned}: {SET_UP}", pinned)
        yield check_cuda_runtime(options, with_gpu)


def check_cuda_runtime(options: PreflightOptions, with_gpu: bool) -> Check:
    """A CPU build where there is no GPU; a CUDA build that reaches the GPU where there is one."""
    import torch

    built_for = torch.version.cuda
    found = f"built for CUDA {built_for}" if built_for else "CPU build"
    if not with_gpu:
        remedy = f"larger than a machine without a GPU needs: {SET_UP}"
        return line("CUDA runtime", "warn" if built_for else "ok", found, remedy, "CPU build")
    if torch.cuda.is_available():
        return Check("CUDA runtime", "ok", found, "CUDA build")
    remedy = "update the driver, or take an image whose CUDA it knows" if built_for else SET_UP
    worst: Verdict = "warn" if options.device == "cpu" else "fail"
    return line("CUDA runtime", worst, f"{found}, which cannot use the GPU", remedy, "CUDA build")


def check_gpus(shown: Sequence[Gpu], options: PreflightOptions, with_gpu: bool) -> Iterator[Check]:
    """Driver, name, memory and compute capability of each GPU."""
    if not shown:
        in_cuda_image = os.environ.get("RECPOD_IMAGE") == "cuda"
        missing = options.device.startswith("cuda") or (options.device != "cpu" and (with_gpu or in_cuda_image))
        found = "there, but nvidia-smi does not answer" if with_gpu else "none"
        remedy = "docker run --gpus all" if in_cuda_image and not with_gpu else "check the driver"
        yield line("GPU", "fail" if missing else "ok", found, f"{remedy}, or use device cpu")
        return
    yield Check("NVIDIA driver", "ok", shown[0].driver)
    for index, gpu in enumerate(shown):
        name, memory = f"GPU {index}", f"{gpu.memory_gb:.1f} GB"
        yield Check(name, "ok", gpu.name)
        yield line(f"{name} memory", grade(gpu.memory_gb, 0, 8), memory, "take smaller batches")
        modern = numbers(gpu.capability) >= (8, 0)
        remedy = "no fast bfloat16 below 8.0: expect less speed"
        yield line(f"{name} compute capability", "ok" if modern else "warn", gpu.capability, remedy)


def check_package(name: str, aliases: tuple[str, ...], required: bool, use: str, *, with_gpu: bool) -> Check:
    """A package's version beside its pin. One that only a GPU uses may be absent elsewhere."""
    pinned = package_pins("cuda" if with_gpu else "cpu")[name]
    found = installed_version(name, *aliases)
    idle = name in GPU_ONLY and not with_gpu
    if found is None:
        worst: Verdict = "fail" if required else "ok" if idle else "warn"
        return line(name, worst, "absent, for GPUs only" if idle else "absent", f"{use}: {SET_UP}", pinned)
    same = found.partition("+")[0] == pinned or idle
    return line(name, "ok" if same else "warn", found, f"tested with {pinned}: {SET_UP}", pinned)


def check_kernels(options: PreflightOptions) -> Iterator[Check]:
    """Forward and backward of every kernel path that this machine has, against the reference."""
    if installed_version("torch") is None or installed_version("numpy") is None:
        return  # said above; kernels cannot be imported without them
    import torch

    from models.kernels import chosen_paths, self_check

    device = "cuda" if torch.cuda.is_available() and options.device != "cpu" else "cpu"
    chosen = chosen_paths(device)
    for check in self_check():
        name = f"{check.op}: {check.path}" + (f" on {check.device}" if torch.cuda.is_available() else "")
        used = check.device == device and chosen[check.op] == check.path
        if not check.available:
            yield Check(name, "ok", f"not here: {check.reason}")
        elif check.passed:
            yield Check(name, "ok", f"in use, error {check.max_error:.0e}" if used else f"error {check.max_error:.0e}")
        else:
            remedy = f"force another one: RECPOD_KERNELS={check.op}=torch" if used else "it is not used"
            yield Check(name, "fail" if used else "warn", check.reason, remedy=remedy)


def check_disk(folder: Path) -> Check:
    """Room for checkpoints and data where runs are written."""
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    remedy = "free space, or choose another folder with --set runs=FOLDER"
    if not place.is_dir() or not os.access(place, os.W_OK):
        return Check("disk", "fail", f"{folder} cannot be written", remedy=remedy)
    free = free_bytes(folder) / GB
    return line("disk", grade(free, 1, 5), f"{free:.1f} GB free at {folder}", remedy)


def check_memory() -> Check:
    """Memory that is free now."""
    free, total = available_memory_bytes() / GB, memory_bytes() / GB
    remedy = "end other work, or take a larger machine"
    return line("memory", grade(free, 1, 3), f"{free:.1f} of {total:.1f} GB free", remedy)


def check_shared_memory() -> Check:
    """Room in /dev/shm, of which containers get 64 MB unless asked; NCCL between GPUs uses it."""
    free = free_bytes(SHARED_MEMORY) / GB
    return line(
        str(SHARED_MEMORY), grade(free, 0, 0.25), f"{free:.2f} GB free", "start the container with --shm-size=1g"
    )


def check_source(options: PreflightOptions) -> Check:
    """Somewhere the dataset can be had from."""
    from pipelines.data.datasets import load_dataset_spec
    from pipelines.data.fetch import reachable

    worst: Verdict = "fail" if options.data_needed else "warn"
    try:
        spec = options.spec or load_dataset_spec(options.dataset, options.cache)
    except (ConfigError, DataError) as error:
        return Check("data source", "fail", error.what, remedy=error.fix or "")
    there, text = reachable(spec, options.cache)
    remedy = "check the path" if spec.path else "set RECPOD_MIRROR to a folder that holds it"
    return line("data source", "ok" if there else worst, f"{spec.name}: {text}", remedy)


def check_wandb_key() -> Check:
    """Whether W&B has a key; the key itself is never shown."""
    given = bool(os.environ.get("WANDB_API_KEY"))
    remedy = "W&B runs offline; --no-wandb switches it off"
    return line("W&B key", "ok" if given else "warn", "set" if given else "WANDB_API_KEY is not set", remedy)
