"""The first command of the README: how long it takes after set-up, and whether its gate holds on ten seeds.

    python -m benchmarks.quickstart [--runs 3] [--no-setup]     time of ./runpod_entrypoint.sh --quickstart
    python -m benchmarks.quickstart --seeds 10                  the gate, seeds 1 to 10

**Time.** Set-up is called once and not timed; then the front door, with an empty data folder each time: preflight,
reading ML-100K, training, evaluation, gate, report. The slowest run counts.
**Gate.** The same recipe with each seed; NDCG@10 over the popularity baseline's on the test queries, seen items masked.
Finished seeds are kept in ``build/quickstart-CODE``, so that an interrupted benchmark goes on where it was.

Writes ``front-quickstart-seconds`` and ``front-quickstart-gate-seeds``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.result_file import RESULTS, write_result
from pipelines.config import RunConfig, load_config
from pipelines.machine import usable_cores
from pipelines.run_folder import ROOT, code_digest, read_json

METRIC = "NDCG@10"
GATE_MISSED = 3  # exit code of a run that went well and did not reach its gate


def call(command: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """Wall seconds and exit code of a command; its output is shown when it is neither 0 nor a missed gate.

    Raises:
        SystemExit: the command failed.
    """
    begin = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.perf_counter() - begin
    if done.returncode not in (0, GATE_MISSED):
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stdout}")
    return seconds, done.returncode


def named(recipe: str) -> list[str]:
    """The front door's flag for a recipe."""
    return ["--quickstart"] if recipe == "quickstart" else ["--config", recipe]


def measure_time(recipe: str, runs: int, no_setup: bool) -> list[dict[str, Any]]:
    """The front door from an empty data folder to the report, ``runs`` times."""
    if not no_setup:
        subprocess.run([str(ROOT / "entrypoints" / "setup.sh")], check=True)
    found = []
    for number in range(runs):
        with tempfile.TemporaryDirectory(prefix="quickstart-") as work:
            command = [str(ROOT / "runpod_entrypoint.sh"), *named(recipe), "--no-wandb", "--set", f"runs={work}/runs"]
            command += ["--no-setup"] if no_setup else []
            seconds, code = call(command, {"RECPOD_DATA": f"{work}/data", "RECPOD_PYTHON": sys.executable})
            folder = next(Path(work, "runs").iterdir())
            if not (folder / "report.html").is_file():
                raise SystemExit("the run left no report.html")
            metrics = read_json(folder / "metrics.json")
        found.append({"seconds": round(seconds, 2), "exit_code": code, "training": metrics["training"]})
        print(f"run {number + 1}: {seconds:.1f} s, exit code {code}", flush=True)
    return found


def report_time(found: list[dict[str, Any]], recipe: str, no_setup: bool, folder: Path) -> None:
    """The time's result."""
    slowest = max(run["seconds"] for run in found)
    write_result(
        claim="front-quickstart-seconds",
        value=slowest,
        unit=f"s, ./runpod_entrypoint.sh {' '.join(named(recipe))} after set-up, empty data folder, "
        f"{usable_cores()} cores, slowest of {len(found)}",
        target="< 180",
        met=slowest < 180,
        peer="none: the front door is this project's own",
        command="python -m benchmarks.quickstart" + (" --no-setup" if no_setup else ""),
        runs=found,
        folder=folder,
    )
    print(f"slowest: {slowest:.1f} s")


def gate_factor(config: RunConfig) -> float:
    """The factor over popularity that the recipe's gate asks for.

    Raises:
        SystemExit: the recipe has no such gate.
    """
    for gate in config.gates:
        if gate.metric == METRIC and gate.times_popularity is not None:
            return gate.times_popularity
    raise SystemExit(f"the recipe {config.name} has no gate on {METRIC} over popularity")


def measure_seeds(config: RunConfig, recipe: str, seeds: int, work: Path) -> list[dict[str, Any]]:
    """The recipe with seeds 1 .. ``seeds``; a finished one is not run again."""
    found = []
    for seed in range(1, seeds + 1):
        sets = {"seed": seed, "name": f"{config.name}-{seed}", "runs": work / "runs", "tracking.wandb": "off"}
        flags = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        seconds, code = call(
            [sys.executable, "-m", "pipelines", "run", recipe, *flags], {"RECPOD_DATA": str(work / "data")}
        )
        metrics = read_json(work / "runs" / f"{config.name}-{seed}" / "metrics.json")
        value, popularity = metrics["test"][METRIC], metrics["baselines"]["popularity"][METRIC]
        found.append(
            {
                "seed": seed,
                METRIC: value,
                "popularity": popularity,
                "ratio": value / popularity,
                "passed": metrics["gate"]["passed"],
                "exit_code": code,
                "epochs": metrics["training"]["epochs"],
                "seconds": round(seconds, 1),
            }
        )
        print(
            f"seed {seed}: {METRIC} {value:.4f}, popularity {popularity:.4f}, {value / popularity:.2f} times",
            flush=True,
        )
    return found


def report_seeds(config: RunConfig, found: list[dict[str, Any]], folder: Path) -> None:
    """The seeds' result."""
    passed, factor = sum(run["passed"] for run in found), gate_factor(config)
    lowest = min(run["ratio"] for run in found)
    write_result(
        claim="front-quickstart-gate-seeds",
        value=passed,
        unit=f"of {len(found)} seeds pass the gate: test {METRIC} at least {factor:g} times popularity's, "
        f"{config.evaluation.protocol}; the lowest of them {lowest:.2f} times",
        target=f">= {len(found)}",
        met=passed == len(found),
        peer=f"popularity in the same runs: {METRIC} {found[0]['popularity']:.4f}",
        command=f"python -m benchmarks.quickstart --seeds {len(found)}",
        runs=found,
        folder=folder,
    )
    print(f"{passed} of {len(found)} seeds pass {factor:g} times popularity; lowest {lowest:.2f}")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="timed runs (default %(default)s)")
    parser.add_argument("--seeds", type=int, help="run the gate on so many seeds instead of the clock")
    parser.add_argument("--no-setup", action="store_true", help="use this Python as it is")
    parser.add_argument("--recipe", default="quickstart", help="another recipe's file, for trials")
    parser.add_argument("--work", type=Path, help="folder of the seeds' runs (default build/quickstart-CODE)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    if options.seeds is None:
        found = measure_time(options.recipe, options.runs, options.no_setup)
        report_time(found, options.recipe, options.no_setup, options.out)
        return
    config = load_config(options.recipe)
    gate_factor(config)  # a recipe without the gate is refused before an hour is spent
    work = (options.work or ROOT / "build" / f"quickstart-{code_digest()[:8]}").resolve()
    report_seeds(config, measure_seeds(config, options.recipe, options.seeds, work), options.out)


if __name__ == "__main__":
    main()
