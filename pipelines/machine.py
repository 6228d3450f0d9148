"""Facts about the machine and the packages on it, for environment.json, result files and preflight.

Only the standard library at the top; torch is asked when it is there. Cores and memory are those this process may use,
which in a container are fewer than the machine's.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pipelines.errors import MachineError

Kind = Literal["cpu", "cuda"]
GB = 1_000_000_000
SHARED_MEMORY = Path("/dev/shm")
ROOT = Path(__file__).resolve().parents[1]
VERSIONS_FILE = ROOT / "docker" / "versions.env"
_SETTINGS = ("BASE_IMAGE_", "CLOUD_", "KERNEL_", "LOCK_", "PYTHON_", "TORCH_CPU_")  # keys that are not packages of ours


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as the driver gives it.
        memory_gb: in 10^9 bytes.
        capability: compute capability, such as ``9.0``.
        driver: version of the NVIDIA driver.
    """

    name: str
    memory_gb: float
    capability: str
    driver: str


def read_pins(path: Path = VERSIONS_FILE) -> dict[str, str]:
    """Every key of docker/versions.env.

    Raises:
        MachineError: the file is not beside the code, or a line is not KEY=value.
    """
    if not path.is_file():
        raise MachineError("the file of pins is missing", where=str(path), fix="run from a checkout of the project")
    pins = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            key, equals, value = line.partition("=")
            if not equals or not key.isidentifier():
                raise MachineError("not KEY=value", where=f"{path}:{number}", fix="see the top of the file")
            pins[key] = value.strip()
    return pins


def package_pins(kind: Kind, pins: dict[str, str] | None = None) -> dict[str, str]:
    """Pinned version of each package on machines of ``kind``; one that only the other kind pins has that kind's."""
    pins = read_pins() if pins is None else pins
    found: dict[str, str] = {}
    for key, version in pins.items():
        if not key.startswith(_SETTINGS):
            name = key.removeprefix("CUDA_").lower().replace("_", "-")
            if name not in found or key.startswith("CUDA_") == (kind == "cuda"):
                found[name] = version
    return found


def installed_version(*names: str) -> str | None:
    """Version of the first of ``names`` that is installed, read without importing it."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def package_versions() -> dict[str, str]:
    """Installed version of every pinned package that is here, and of Python."""
    found = {name: installed_version(name) for name in sorted(package_pins("cpu"))}
    return {"python": platform.python_version()} | {name: version for name, version in found.items() if version}


def missing_packages() -> list[str]:
    """The core dependencies of the project that are not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [name for name in project["dependencies"] if installed_version(name) is None]


def describe_machine() -> dict[str, Any]:
    """What a reader of a number wants to know about the machine; sizes in 10^9 bytes. Nothing here names its owner."""
    return {
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gb": round(memory_bytes() / GB, 1),
        "shared_memory_gb": round(free_bytes(SHARED_MEMORY) / GB, 1),
        "disk_free_gb": round(free_bytes(Path.cwd()) / GB, 1),
        "gpus": [asdict(gpu) for gpu in gpus()],
        "cuda_runtime": cuda_runtime(),
    }


def cpu_model() -> str:
    """The processor's name."""
    cpuinfo = _read(Path("/proc/cpuinfo"))
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores this process may use: affinity and the container's quota both count."""
    cores = len(os.sched_getaffinity(0))
    quota, _, period = _read(Path("/sys/fs/cgroup/cpu.max")).partition(" ")
    return min(cores, max(1, int(quota) // int(period))) if quota.isdigit() else cores


def memory_bytes() -> int:
    """Memory this process may use: the machine's, or the container's limit."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(total, _container_limit() or total)


def available_memory_bytes() -> int:
    """Memory that is free for use now."""
    lines = _read(Path("/proc/meminfo")).splitlines()
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), memory_bytes())
    limit = _container_limit()
    if limit is None:
        return free
    used = _read(Path("/sys/fs/cgroup/memory.current")) or _read(Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))
    return min(free, limit - int(used or 0))


def free_bytes(path: Path) -> int:
    """Free space where ``path`` is, or will be once it is made; 0 where there is no such place."""
    place = next((folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()), None)
    return shutil.disk_usage(place).free if place is not None and (path.exists() or path != SHARED_MEMORY) else 0


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU, usable or not."""
    return Path("/dev/nvidiactl").exists() or bool(_nvidia_smi("name"))


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs that the driver shows; empty without any."""
    found = []
    for row in _nvidia_smi("name,memory.total,compute_cap,driver_version"):
        name, memory_mib, capability, driver = (field.strip() for field in row.split(","))
        found.append(Gpu(name, round(float(memory_mib) * 2**20 / GB, 1), capability, driver))
    return found


def cuda_runtime() -> str | None:
    """CUDA version that the installed torch was built for; None for a CPU build or without torch."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch.version.cuda


def _nvidia_smi(fields: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []  # no driver, or one that hangs: no GPU that could be used
    return [line for line in result.stdout.splitlines() if line.strip()] if result.returncode == 0 else []


def _container_limit() -> int | None:
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        text = _read(file)
        if text.isdigit():
            return int(text)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""  # the kernel does not offer it: the caller has another source


def _main() -> int:
    """``python -m pipelines.machine``: one line and exit code 2 when this Python lacks packages of the core."""
    missing = missing_packages()
    if missing:
        what = f"{sys.executable} lacks {', '.join(missing)}"
        error = MachineError(what, where="--no-setup", fix="Leave --no-setup away, or install them")
        print(f"error: {error}", file=sys.stderr)
    return MachineError.exit_code if missing else 0


if __name__ == "__main__":
    sys.exit(_main())
