"""Make docker/locks from docker/versions.env and pyproject.toml.

    .venv/bin/python docker/lock.py [--check] [--upgrade]

Needs ``uv`` on PATH (``pip install uv``), the package index, and a CPU wheel of the pinned torch in pip's find-links or
on PyTorch's CPU index: its metadata stand in for those of the default index's build, which asks for CUDA.

One resolution holds for every supported Python on Linux. The locks name packages, versions and hashes, never a host.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement

from pipelines.machine import Kind, package_pins, read_pins

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "docker" / "locks"
MACHINES: dict[Kind, tuple[str, ...]] = {"cpu": ("x86_64", "aarch64"), "cuda": ("x86_64",)}
# recbole tunes hyper-parameters with ray and nothing else; it is larger than all the rest.
NEVER = ["ray ; sys_platform == 'never'"]
# torchrec asks for the CUDA build (0.5 GB); fbgemm-gpu-cpu brings the same module.
NEVER_ON_CPU = ["fbgemm-gpu ; sys_platform == 'never'"]
TITLES = {
    "cpu": "Core and extras tracking and data, without torch (torch-cpu.txt), on machines without a GPU.",
    "torch-cpu": "The CPU build of torch: the sums of its wheels for Python 3.11 and 3.12 on x86_64 and aarch64.",
    "test": "Extra test, on top of cpu.txt and torch-cpu.txt.",
    "hstu": "Extra hstu, on top of cpu.txt and torch-cpu.txt; cuda.txt holds its packages for GPUs.",
    "cuda": "Core and extras tracking, data and cuda, for NVIDIA GPUs. UNTESTED: resolved, never installed.",
    "cuda-test": "Extra test, on top of cuda.txt. UNTESTED.",
    "image": "Extra image, on top of cpu.txt or cuda.txt.",
    "cloud": "SkyPilot and dstack, which check configs/cloud in tests; in an environment of their own.",
    "cuda-kernels": "Extra kernels: source packages that fetch or build a wheel for cuda.txt's torch. UNTESTED.",
}
PINS = read_pins()


@dataclass(frozen=True)
class Entry:
    """A package of a lock: ``name==version``, perhaps with a marker, and the lines of its hashes and comments."""

    requirement: str
    lines: str

    @property
    def name(self) -> str:
        """The package's name."""
        return Requirement(self.requirement).name


@dataclass(frozen=True)
class Resolver:
    """uv for one kind of machine.

    Attributes:
        kind: cpu or cuda.
        torch_needs: requirements of the CPU build of torch; empty where the index's own build is meant.
        source: the file that asks for the packages, named in the lock's comments.
    """

    kind: Kind
    torch_needs: tuple[str, ...] = ()
    source: str = "pyproject.toml"

    def settings(self) -> str:
        """A pyproject.toml for uv: which machines, every pin also for indirect packages, what torch needs."""
        first, _, minor = PINS["PYTHON_MAX"].rpartition(".")
        machines = " or ".join(f"platform_machine == '{name}'" for name in MACHINES[self.kind])
        environment = f"sys_platform == 'linux' and python_full_version < '{first}.{int(minor) + 1}' and ({machines})"
        never = NEVER + (NEVER_ON_CPU if self.kind == "cpu" else [])
        lines = ["[project]", 'name = "locks"', 'version = "0"', f'requires-python = ">={PINS["PYTHON_MIN"]}"']
        lines += ["[tool.uv]", f'environments = ["{environment}"]', f"override-dependencies = {never}"]
        lines += [f"constraint-dependencies = {pinned(package_pins(self.kind), self.kind)}"]
        if self.torch_needs:
            lines += ["[[tool.uv.dependency-metadata]]", 'name = "torch"', f'version = "{PINS["TORCH"]}"']
            lines += [f"requires-dist = {list(self.torch_needs)}"]
        return "\n".join(lines) + "\n"

    def resolve(self, requirements: Iterable[str], keep: str, *options: str) -> list[Entry]:
        """``requirements`` and all that they bring, with hashes; what the lock ``keep`` holds keeps its version."""
        command = ["uv", "pip", "compile", "direct", "--universal", "--python-version", PINS["PYTHON_MIN"]]
        command += ["--fork-strategy", "fewest", "--generate-hashes", "--no-header", "--quiet", "--output-file", "lock"]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "pyproject.toml").write_text(self.settings(), encoding="utf-8")
            (folder / "direct").write_text("\n".join(requirements) + "\n", encoding="utf-8")
            (folder / "lock").write_text(keep, encoding="utf-8")
            subprocess.run([*command, *options], cwd=folder, check=True)
            text = (folder / "lock").read_text(encoding="utf-8").replace("-r direct", self.source)
        found = re.findall(r"^(\S[^\\\n]*?) \\\n((?:    .*\n)+)", text, flags=re.MULTILINE)
        return [Entry(self.shortest(requirement), lines) for requirement, lines in found]

    def shortest(self, requirement: str) -> str:
        """``requirement`` without its marker where that holds on every supported machine."""
        marker = Requirement(requirement).marker
        constant = {"sys_platform": "linux", "platform_system": "Linux"}
        constant |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
        machines = [
            constant | {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine}
            for python in (PINS["PYTHON_MIN"], PINS["PYTHON_MAX"])
            for machine in MACHINES[self.kind]
        ]
        holds = marker is not None and all(marker.evaluate(machine) for machine in machines)
        return requirement.partition(";")[0].strip() if holds else requirement


def pinned(names: Iterable[str], kind: Kind) -> list[str]:
    """``name==version`` of each name on machines of ``kind``; a missing pin is an error that names it."""
    pins = package_pins(kind)
    if missing := [name for name in names if name not in pins]:
        sys.exit(f"docker/versions.env has no pin for {', '.join(missing)}, which pyproject.toml asks for")
    return [f"{name}=={pins[name]}" for name in sorted(names)]


def cloud_pins() -> list[str]:
    """``name==version`` of the tools that configs/cloud is for."""
    prefix = "CLOUD_"
    return [f"{key.removeprefix(prefix).lower()}=={value}" for key, value in PINS.items() if key.startswith(prefix)]


def torch_hashes() -> list[str]:
    """The accepted sums of the CPU build of torch."""
    return [value for key, value in PINS.items() if key.startswith("TORCH_CPU_SHA256_")]


def torch_requirements() -> tuple[str, ...]:
    """What the CPU build of torch needs, read from a wheel whose sum is one of the pinned ones."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, f"torch=={PINS['TORCH']}"]
        if subprocess.run([*command, "--no-index"], capture_output=True, check=False).returncode:
            subprocess.run([*command, "--index-url", PINS["TORCH_CPU_INDEX"]], check=True)
        wheel = next(Path(folder).glob("torch-*.whl"))
        with wheel.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest not in torch_hashes():
            sys.exit(f"{wheel.name} has the sum {digest}, which docker/versions.env does not hold")
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = HeaderParser().parsestr(archive.read(name).decode())
    return tuple(value for value in metadata.get_all("Requires-Dist", []) if "extra ==" not in value)


def make_locks(keep: dict[str, str]) -> dict[str, list[Entry]]:
    """The packages of each lock file; ``keep`` holds the texts of those whose versions should stay."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    base = [*project["dependencies"], *extras["tracking"], *extras["data"]]
    cpu, cuda = Resolver("cpu", torch_requirements()), Resolver("cuda")
    locks = {"cpu": cpu.resolve(pinned(base, "cpu"), keep["cpu"])}
    locks["test"] = on_top(cpu, locks["cpu"], extras["test"], keep["test"])
    locks["hstu"] = on_top(cpu, locks["cpu"], extras["hstu"], keep["hstu"])
    locks["cuda"] = cuda.resolve(pinned([*base, *extras["cuda"]], "cuda"), keep["cuda"])
    locks["cuda-test"] = on_top(cuda, locks["cuda"], extras["test"], keep["cuda-test"])
    locks["image"] = cpu.resolve(pinned(extras["image"], "cpu"), keep["image"])
    locks["cuda-kernels"] = cuda.resolve(pinned(extras["kernels"], "cuda"), keep["cuda-kernels"], "--no-deps")
    locks["cloud"] = Resolver("cpu", source="docker/versions.env").resolve(cloud_pins(), keep["cloud"])
    locks["cpu"] = [entry for entry in locks["cpu"] if entry.name != "torch"]
    hashes = " \\\n".join(f"    --hash=sha256:{value}" for value in torch_hashes()) + "\n"
    locks["torch-cpu"] = [Entry(f"torch=={PINS['TORCH']}", hashes)]
    return locks


def on_top(resolver: Resolver, base: list[Entry], names: list[str], keep: str) -> list[Entry]:
    """What ``names`` bring beyond ``base``."""
    both = resolver.resolve([*(entry.requirement for entry in base), *pinned(names, resolver.kind)], keep)
    return [entry for entry in both if entry.name not in {entry.name for entry in base}]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a lock would change")
    parser.add_argument("--upgrade", action="store_true", help="let packages without a pin move to their newest")
    arguments = parser.parse_args()
    paths = {name: LOCKS / f"{name}.txt" for name in TITLES}
    old = {name: path.read_text(encoding="utf-8") if path.exists() else "" for name, path in paths.items()}
    changed = 0
    for name, packages in make_locks(dict.fromkeys(TITLES, "") if arguments.upgrade else old).items():
        head = f"# {TITLES[name]}\n# Made by docker/lock.py from docker/versions.env and pyproject.toml.\n"
        text = head + "".join(f"{entry.requirement} \\\n{entry.lines}" for entry in packages)
        if text != old[name]:
            changed += 1
            print(f"{'would change' if arguments.check else 'wrote'} {paths[name].relative_to(ROOT)}")
            if not arguments.check:
                paths[name].write_text(text, encoding="utf-8")
    return int(arguments.check and changed > 0)


if __name__ == "__main__":
    sys.exit(main())
