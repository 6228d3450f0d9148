"""How long does it take from `docker run` to the first training step on a CPU?

    python -m benchmarks.container_first_step [--runs 5] [--tag recpod:cpu]

Needs a container engine and the image (``docker/build.sh``). Each run is the quick start on an empty volume, by a user
that the image does not know, with a read-only root and no network: supervisor, checks, preflight, data, first step. The
time of the step is what the event file says. Writes ``container-first-step-seconds``.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.containers import PATIENCE, TAG, container, engine, existing, give_to_user
from benchmarks.result_file import RESULTS, write_result
from pipelines.training.events import read_events

ARGUMENTS = ("--quickstart", "--no-wandb", "--set", "training.log_every=1")


def first_step(client: Any, tag: str, volume: Path) -> dict[str, float]:
    """Seconds from the call to what the run tells of itself: its start and its first step."""
    events = volume / "runs" / "quickstart" / "events.jsonl"
    begin = time.time()
    with container(client, tag, ARGUMENTS, volume) as running:
        while True:
            told = list(read_events(events)) if events.exists() else []
            found = {event["kind"]: event["time"] for event in reversed(told)}  # the first of each kind
            if "train" in found:
                break
            running.reload()
            if running.status == "exited" or time.time() - begin > PATIENCE:
                raise SystemExit(f"no training step:\n{running.logs(tail=30).decode()}")
            time.sleep(0.05)
    after = {kind: datetime.datetime.fromisoformat(found[kind]).timestamp() - begin for kind in ("start", "train")}
    return {"run_opened_s": round(after["start"], 2), "first_step_s": round(after["train"], 2)}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tag", default=TAG, help="the image (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    options = parser.parse_args(arguments)
    client = engine()
    existing(client, options.tag)
    runs = []
    for number in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(first_step(client, options.tag, give_to_user(Path(folder) / "workspace")))
        print(f"run {number + 1}: {runs[-1]}", flush=True)
    seconds = [run["first_step_s"] for run in runs]
    median, value = round(statistics.median(seconds), 2), max(seconds)
    write_result(
        claim="container-first-step-seconds",
        value=value,
        unit=f"s from docker run to the end of the first training step, quick start, empty volume, the slowest "
        f"of {len(runs)}; median {median}",
        target="< 15",
        met=value < 15,
        peer="none: the image is this project's own",
        command="python -m benchmarks.container_first_step",
        runs=runs,
        folder=options.out,
    )
    print(f"first step: median {median} s, slowest {value} s")


if __name__ == "__main__":
    main()
