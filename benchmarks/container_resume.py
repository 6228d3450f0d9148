"""`docker stop` at random moments, `docker run` again: does the run lose anything?

    python -m benchmarks.container_resume [--cycles 50] [--tag recpod:cpu]

Needs a container engine and the image (``docker/build.sh``). A small run (the one of resume_kills, but saving at the
end of an epoch and when stopped, no oftener) goes through the front door in a container, undisturbed. The same run on
another volume is stopped again and again by ``docker stop``, at a moment drawn from its first seconds of training, and
gone on with by a new container. A cycle is without loss when the container left with 75 and the next one went on after
the very step that was trained last. In the end weights, optimiser, random state, counters and every logged loss are
compared with the undisturbed run's, bit by bit (wall times apart). Writes ``container-resume-cycles``.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.containers import PATIENCE, ROOT, TAG, container, engine, existing, finish, give_to_user
from benchmarks.result_file import RESULTS, write_result
from benchmarks.resume_kills import RECIPE, SEED, compare, write_clicks
from pipelines.training.checkpoint import checkpoint_steps
from pipelines.training.events import read_events

STOPPED = 75
COMMAND = ("--config", "/workspace/killed.yaml", "--no-wandb", "--set", "training.checkpoint_minutes=1000")


class Run:
    """One run on a volume of its own.

    Args:
        client: of the engine.
        tag: the image.
        volume: folder that is mounted at /workspace.
        epochs: length of the run.
        users: of the generated data.
    """

    def __init__(self, client: Any, tag: str, volume: Path, epochs: int, users: int) -> None:
        self.client, self.tag, self.volume = client, tag, give_to_user(volume)
        self.folder = volume / "runs" / "killed"
        write_clicks(volume / "clicks.csv", users)
        recipe = RECIPE.format(data="/workspace/clicks.csv", runs="/workspace/runs", epochs=epochs)
        (volume / "killed.yaml").write_text(recipe)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What the run has told so far of one kind."""
        path = self.folder / "events.jsonl"
        return [event for event in read_events(path) if event["kind"] == kind] if path.exists() else []

    def to_the_end(self) -> float:
        """Let it run; seconds of training."""
        with container(self.client, self.tag, COMMAND, self.volume) as running:
            finish(running, (0,))
        return float(sum(event["seconds"] for event in self.events("epoch")[-1:]))

    def cycle(self, number: int, window: float) -> dict[str, Any]:
        """Start it, stop it at a random moment of its training; what was trained and what was saved."""
        moment, starts = random.Random(f"{SEED}-container-{number}").uniform(0, window), len(self.events("start"))
        with container(self.client, self.tag, COMMAND, self.volume) as running:
            deadline = time.monotonic() + PATIENCE
            while len(self.events("start")) == starts:
                running.reload()
                if running.status == "exited" or time.monotonic() > deadline:
                    raise SystemExit(f"cycle {number}: it does not train:\n{running.logs(tail=30).decode()}")
                time.sleep(0.05)
            time.sleep(moment)
            begin = time.monotonic()
            running.stop(timeout=30)
            seconds = time.monotonic() - begin
            code = running.wait(timeout=PATIENCE)["StatusCode"]
        if code == 0:
            raise SystemExit(f"cycle {number}: the run was through before it was stopped: give more --epochs")
        steps = checkpoint_steps(self.folder / "checkpoints")
        trained = [event["step"] for event in self.events("train")]
        return {
            "cycle": number,
            "stopped_after_s": round(moment, 3),
            "stop_s": round(seconds, 2),
            "exit_code": code,
            "went_on_from": self.events("start")[-1]["step"],
            "last_step_trained": max(trained, default=0),
            "last_step_saved": max(steps, default=0),
        }


def judge(cycles: list[dict[str, Any]], starts: list[int]) -> int:
    """How many cycles lost nothing; ``starts`` holds the step at which each container began."""
    good = 0
    for cycle, next_start in zip(cycles, starts[1:], strict=True):
        same = cycle["last_step_trained"] == cycle["last_step_saved"] == next_start
        cycle["without_loss"] = same and cycle["exit_code"] == STOPPED
        good += cycle["without_loss"]
    return good


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=200, help="length of the run (default %(default)s)")
    parser.add_argument("--users", type=int, default=300, help="of the generated data (default %(default)s)")
    parser.add_argument("--window", type=float, default=1.5, help="seconds of training in which the stop comes")
    parser.add_argument("--tag", default=TAG, help="the image (default %(default)s)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "container-resume", help="folder of the volumes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    options = parser.parse_args(arguments)
    client = engine()
    existing(client, options.tag)
    work = options.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    size = (options.epochs, options.users)
    whole, cut = (Run(client, options.tag, work / name, *size) for name in ("whole", "cut"))
    print(f"undisturbed: {whole.to_the_end():.1f} s of training, {whole.events('train')[-1]['step']} steps", flush=True)
    cycles = []
    for number in range(1, options.cycles + 1):
        cycles.append(cut.cycle(number, options.window))
        print(cycles[-1], flush=True)
    cut.to_the_end()
    good = judge(cycles, [cycle["went_on_from"] for cycle in cycles] + [cut.events("start")[-1]["step"]])
    differences = compare(whole.folder, cut.folder)
    write_result(
        claim="container-resume-cycles",
        value=good,
        unit=f"of {len(cycles)} cycles of docker stop and docker run without loss; the end "
        + ("differs from" if differences else "is bit-identical to")
        + " the undisturbed run's (weights, optimiser, random state, logged losses)",
        target=f">= {len(cycles)}",
        met=good == len(cycles) and not differences,
        peer="the same run without a stop",
        command="python -m benchmarks.container_resume",
        runs={"cycles": cycles, "differences": differences},
        folder=options.out,
    )
    print(f"{good} of {len(cycles)} without loss; differences at the end: {differences or 'none'}")


if __name__ == "__main__":
    main()
