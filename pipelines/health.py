"""The fast form of preflight: well under a second and without importing torch, for a container's health check.

It asks whether a run could go on here, and whether one that says it runs still shows life. What takes longer, kernels
and data sources, is preflight's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pipelines.errors import MachineError
from pipelines.machine import Kind, installed_version, missing_packages, package_pins
from pipelines.pod import flags, heartbeat
from pipelines.pod.driver import check_driver
from pipelines.preflight import SET_UP, Check, check_disk, check_memory, check_python, check_shared_memory, line

VERSIONS = ("torch", "numpy", "numba", "polars")


def fast_checks(folder: Path, environ: Mapping[str, str] = os.environ, now: float | None = None) -> list[Check]:
    """Every check of the fast form.

    Args:
        folder: where runs are written.
        environ: ``RECPOD_IMAGE`` (cpu or cuda) says which image this is; absent outside of one.
        now: seconds since 1970; None asks the clock.
    """
    kind: Kind = "cuda" if environ.get("RECPOD_IMAGE") == "cuda" else "cpu"
    checks = [check_python(), check_missing(), *(check_version(name, kind) for name in VERSIONS)]
    checks += [*check_gpu(environ), check_disk(folder), check_memory_now(), check_shared_memory()]
    return [*checks, *check_sessions(time.time() if now is None else now)]


def check_missing() -> Check:
    """Every package of the core is installed."""
    missing = missing_packages()
    return line("packages", "fail" if missing else "ok", f"missing: {', '.join(missing)}" if missing else "all", SET_UP)


def check_version(name: str, kind: Kind) -> Check:
    """A package's version beside its pin, read without importing it; whether it is there is told elsewhere."""
    found, pinned = installed_version(name) or "absent", package_pins(kind)[name]
    same = found.partition("+")[0] == pinned
    return line(name, "ok" if same else "warn", found, f"tested with {pinned}: {SET_UP}", pinned)


def check_gpu(environ: Mapping[str, str]) -> Iterator[Check]:
    """GPU and driver, as the front door asks for them before it downloads anything."""
    try:
        warnings = check_driver(flags.parse([]), environ)
    except MachineError as error:
        yield Check(error.where or "GPU", "fail", error.what, remedy=error.fix or "")
        return
    yield Check("GPU and driver", "ok", "fit" if environ.get("RECPOD_IMAGE") == "cuda" else "none is needed")
    yield from (Check("GPU", "warn", text, remedy="see docs/gpu-matrix.md") for text in warnings)


def check_memory_now() -> Check:
    """Free memory; little of it is worth a line, not ill health: a run at work has taken it."""
    check = check_memory()
    return replace(check, verdict="warn") if check.verdict == "fail" else check


def check_sessions(now: float) -> Iterator[Check]:
    """Whether the runs at work here have shown life lately."""
    ages, stale = heartbeat.ages(now), heartbeat.stale(now)
    for pid, age in sorted(ages.items()):
        remedy = "look at the log; stop it and start it again: it goes on from its checkpoint"
        found = f"last sign of life {age:.0f} s ago"
        yield line(f"session {pid}", "fail" if pid in stale else "ok", found, remedy)
