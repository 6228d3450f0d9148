"""How long the set-up takes: from nothing, called again, and the preflight after it.

    python -m benchmarks.setup_time [--cold 1] [--repeats 5]

From nothing: no environment and an empty pip cache, so every package comes from the index or from pip's find-links, and
the network is part of the figure. The preflight's first run compiles the CPU kernels, the others load them. All of it
happens in a temporary folder that is removed; the project's own environment is not touched.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.result_file import write_result

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "python -m benchmarks.setup_time"


def seconds(command: Sequence[str], environment: dict[str, str]) -> float:
    """Wall time of ``command``, which must succeed."""
    begin = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def measure(cold: int, repeats: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each set-up from nothing, of each call after it, and of each preflight (the first one compiles)."""
    first, again, preflight = [], [], []
    setup = [str(ROOT / "entrypoints" / "setup.sh")]
    for _ in range(cold):
        with tempfile.TemporaryDirectory() as folder:
            names = ("RECPOD_VENV", "PIP_CACHE_DIR", "NUMBA_CACHE_DIR")
            environment = {name: str(Path(folder) / name.lower()) for name in names}
            first.append(seconds(setup, environment))
            again += [seconds(setup, environment) for _ in range(repeats)]
            check = [f"{environment['RECPOD_VENV']}/bin/python", "-m", "pipelines", "preflight", "--json"]
            preflight += [seconds(check, environment) for _ in range(repeats)]
    return first, again, preflight


def report(claim: str, target: float, unit: str, runs: list[float], value: float, peer: str) -> None:
    """Write one result file and say where."""
    path = write_result(
        claim=claim,
        value=round(value, 3),
        unit=unit,
        target=f"<= {target:g}",
        met=value <= target,
        peer=peer,
        command=COMMAND,
        runs=[round(run, 3) for run in runs],
    )
    print(f"{path.relative_to(ROOT)}: {value:.2f} s, target <= {target:g}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", type=int, default=1, help="set-ups from nothing (default 1)")
    parser.add_argument("--repeats", type=int, default=5, help="second calls and preflights after each (default 5)")
    arguments = parser.parse_args()
    first, again, preflight = measure(arguments.cold, arguments.repeats)
    unit = "s, from no environment and an empty pip cache, the slowest run"
    report("front-setup-seconds", 360, unit, first, max(first), "none: the environment is this project's own")
    peer = f"the set-up from nothing in the same run: {max(first):.0f} s"
    report("front-setup-noop-seconds", 1, "s, second call, the slowest run", again, max(again), peer)
    unit = "s, whole process, the slowest run: the first, which compiles the CPU kernels, included"
    peer = f"with kernels compiled earlier, median: {statistics.median(preflight[1:] or preflight):.1f} s"
    report("front-preflight-seconds", 10, unit, preflight, max(preflight), peer)


if __name__ == "__main__":
    main()
