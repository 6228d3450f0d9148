"""How long the set-up takes: from nothing, and called again.

    python -m benchmarks.setup_time [--cold 1] [--repeats 5]

From nothing: no environment and an empty pip cache, so every package comes from the index or from pip's find-links, and
the network is part of the figure. All of it happens in a temporary folder that is removed; the project's environment is
not touched.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.result_file import write_result

ROOT = Path(__file__).resolve().parents[1]


def measure(cold: int, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of each set-up from nothing, and of each call after it."""
    first, again = [], []
    for _ in range(cold):
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"RECPOD_VENV": f"{folder}/venv", "PIP_CACHE_DIR": f"{folder}/cache"}
            first.append(seconds(environment))
            again += [seconds(environment) for _ in range(repeats)]
    return first, again


def seconds(environment: dict[str, str]) -> float:
    """Wall time of one call, which must succeed."""
    begin = time.perf_counter()
    subprocess.run([str(ROOT / "entrypoints" / "setup.sh")], env=environment, check=True)
    return time.perf_counter() - begin


def report(claim: str, target: float, unit: str, runs: list[float], peer: str) -> None:
    """Write the slowest run as the claim's result file, and say so."""
    value = max(runs)
    write_result(
        claim=claim,
        value=round(value, 3),
        unit=f"s, {unit}, the slowest run",
        target=f"<= {target:g}",
        met=value <= target,
        peer=peer,
        command="python -m benchmarks.setup_time",
        runs=[round(run, 3) for run in runs],
    )
    print(f"{claim}: {value:.2f} s, target <= {target:g}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", type=int, default=1, help="set-ups from nothing (default 1)")
    parser.add_argument("--repeats", type=int, default=5, help="second calls after each (default 5)")
    arguments = parser.parse_args()
    first, again = measure(arguments.cold, arguments.repeats)
    unit = "set-up from no environment and an empty pip cache"
    report("front-setup-seconds", 360, unit, first, "none: the environment is this project's own")
    report("front-setup-noop-seconds", 1, "second call", again, f"the set-up itself, same run: {max(first):.0f} s")


if __name__ == "__main__":
    main()
