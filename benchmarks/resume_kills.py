"""Killed at a random moment and resumed: are the final weights those of the run that nobody disturbed?

    python -m benchmarks.resume_kills [--kills 20] [--sigterms 5] [--only kills|sigterm]

**kill -9.** A small run through the real command line (``python -m pipelines train``), on generated data, with a
checkpoint after every step. It runs undisturbed once. Then, 20 times, it is killed at a moment drawn uniformly from the
time between its first and its last checkpoint, started again with the same command, and compared with the undisturbed
run, bit by bit: weights, optimiser, random state, counters and losses logged (wall times apart).

**SIGTERM.** The quick start's training gets SIGTERM at a random moment; it must leave with exit code 75 and a
checkpoint that loads. Its slowest answer counts.

Every finished trial is kept in ``build/resume-kills-CODE``, so that an interrupted benchmark goes on where it was.
Writes ``front-resume-kills`` and ``front-sigterm-seconds``.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.child_process import ROOT, finish, start, wait_for_training
from benchmarks.result_file import RESULTS, write_result
from pipelines.run_folder import code_digest
from pipelines.training.checkpoint import checkpoint_path, checkpoint_steps, load_checkpoint
from pipelines.training.events import read_events

SEED = 20
RECIPE = """
name: killed
dataset: {data}
model: {{name: ss4rec, hidden: 32, s5_state: 8, d_state: 8, layers: 2}}
loader: {{max_length: 20, windows: all, rows_per_batch: 32}}
training: {{epochs: {epochs}, patience: 0, log_every: 1, checkpoint_minutes: 0.0}}
tracking: {{wandb: "off"}}
runs: {runs}
"""


class Kills:
    """The killed run: its recipe, its folders and its trials so far.

    Args:
        work: folder of everything.
        epochs: length of the run.
        users: of the generated data.
    """

    def __init__(self, work: Path, epochs: int, users: int) -> None:
        self.work, self.runs, self.recipe = work, work / "runs", work / "killed.yaml"
        self.trials: list[dict[str, Any]] = read_trials(work / "kills.json")
        work.mkdir(parents=True, exist_ok=True)
        if not self.recipe.exists():
            write_clicks(work / "clicks.csv", users)
            self.recipe.write_text(RECIPE.format(data=work / "clicks.csv", runs=self.runs, epochs=epochs))

    def start(self, name: str) -> tuple[Any, Path]:
        """The run called ``name``, started or gone on with, and its log."""
        log = self.work / f"{name}.log"
        command = ["train", str(self.recipe), "--set", f"name={name}"]
        return start(command, log, {"RECPOD_DATA": str(self.work / "data")}), log

    def undisturbed(self) -> tuple[float, int]:
        """The run without a kill: seconds from its first to its last checkpoint, and its last step."""
        checkpoints = self.runs / "whole" / "checkpoints"
        shutil.rmtree(checkpoints.parent, ignore_errors=True)
        process, log = self.start("whole")
        begin = time.time() - time.monotonic() + wait_for_training(process, checkpoints, log)
        finish(process, log)
        last = checkpoint_steps(checkpoints)[-1]
        return (checkpoint_path(checkpoints, last) / "manifest.json").stat().st_mtime - begin, last

    def trial(self, number: int, seconds: float, last: int) -> dict[str, Any]:
        """Kill at a random moment, resume, compare; a run that is through before its moment gets another one."""
        rng = random.Random(f"{SEED}-{number}")
        folder = self.runs / f"trial-{number}"
        for attempt in range(10):  # noqa: B007 - the last one is reported
            shutil.rmtree(folder, ignore_errors=True)
            process, log = self.start(folder.name)
            moment = rng.uniform(0, seconds)
            time.sleep(max(0.0, wait_for_training(process, folder / "checkpoints", log) + moment - time.monotonic()))
            process.send_signal(signal.SIGKILL)
            process.wait()
            at_death = checkpoint_steps(folder / "checkpoints")[-1]
            if at_death < last:
                break
            print(f"trial {number}: through before {moment:.2f} s, again", flush=True)
        else:
            raise SystemExit(f"trial {number}: the run was always through when it was to be killed")
        torn = any((folder / "checkpoints").glob(".writing-*"))
        process, log = self.start(folder.name)
        finish(process, log)
        differences = compare(self.runs / "whole", folder)
        return {
            "trial": number,
            "killed_after_s": round(moment, 3),
            "earlier_attempts": attempt,
            "checkpoint_at_death": at_death,
            "died_while_writing_a_checkpoint": torn,
            "last_step": checkpoint_steps(folder / "checkpoints")[-1],
            "differences": differences,
        }

    def run(self, count: int) -> list[dict[str, Any]]:
        """All trials, going on after those on disk."""
        if len(self.trials) < count:
            seconds, last = self.undisturbed()
            print(f"undisturbed: {seconds:.1f} s from the first checkpoint to the last, {last} steps", flush=True)
            for number in range(len(self.trials) + 1, count + 1):
                self.trials.append(self.trial(number, seconds, last))
                (self.work / "kills.json").write_text(json.dumps(self.trials))
                print(self.trials[-1], flush=True)
        return self.trials[:count]


def write_clicks(path: Path, users: int) -> None:
    """Thirty events of each of ``users``, over 500 items, the same at every call."""
    rng, rows = random.Random(SEED), ["user_id,item_id,timestamp"]
    for user in range(users):
        first = rng.randrange(500)
        rows += [f"{user},{(first + step * rng.randrange(1, 4)) % 500},{60 * step}" for step in range(30)]
    path.write_text("\n".join(rows) + "\n")


def read_trials(path: Path) -> list[dict[str, Any]]:
    """The trials of an earlier call."""
    trials: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return trials


def compare(one: Path, other: Path) -> list[str]:
    """What differs between the ends of two runs: names of values; empty when every bit is equal, wall times apart."""
    states = []
    for folder in (one, other):
        steps = checkpoint_steps(folder / "checkpoints")
        state = load_checkpoint(checkpoint_path(folder / "checkpoints", steps[-1]))
        for clock in ("seconds", "paid"):
            state["state"].pop(clock)
        events = read_events(folder / "events.jsonl")
        state["losses"] = [(event["step"], event["loss"]) for event in events if event["kind"] == "train"]
        state["valid"] = [(event["step"], event["NDCG@10"]) for event in events if event["kind"] == "valid"]
        states.append(state)
    return differences(states[0], states[1])


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """The paths at which two nested values differ."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [name]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [path for key in one for path in differences(one[key], other[key], f"{name}.{key}".lstrip("."))]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            path for i, pair in enumerate(zip(one, other, strict=True)) for path in differences(*pair, f"{name}[{i}]")
        ]
    return [] if one == other else [name]


def sigterm_trials(work: Path, count: int, recipe: str, window: float) -> list[dict[str, Any]]:
    """SIGTERM at a random moment of ``recipe``'s training, ``count`` times; seconds until it was gone."""
    trials = read_trials(work / "sigterms.json")
    for number in range(len(trials) + 1, count + 1):
        rng = random.Random(f"{SEED}-sigterm-{number}")
        folder, log = work / "runs" / f"sigterm-{number}", work / f"sigterm-{number}.log"
        shutil.rmtree(folder, ignore_errors=True)
        sets = {"name": folder.name, "runs": folder.parent, "tracking.wandb": "off"}
        sets |= {"training.epochs": 10_000, "training.patience": 0, "training.checkpoint_minutes": 1000}
        command = ["train", recipe, *(part for key, value in sets.items() for part in ("--set", f"{key}={value}"))]
        process = start(command, log, {"RECPOD_DATA": str(work / "data")})
        wait_for_training(process, folder / "checkpoints", log)  # the first epoch is its best so far: a checkpoint
        time.sleep(moment := rng.uniform(0, window))
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        finish(process, log, wanted=75)
        seconds = time.monotonic() - begin
        step = checkpoint_steps(folder / "checkpoints")[-1]
        state = load_checkpoint(checkpoint_path(folder / "checkpoints", step))["state"]
        trials.append(
            {"trial": number, "after_s": round(moment, 3), "seconds": round(seconds, 3), "checkpoint": state["step"]}
        )
        (work / "sigterms.json").write_text(json.dumps(trials))
        print(trials[-1], flush=True)
        shutil.rmtree(folder)
    return trials[:count]


def report_kills(trials: list[dict[str, Any]], command: str, folder: Path) -> None:
    """The result of the kills."""
    identical = sum(not trial["differences"] for trial in trials)
    write_result(
        claim="front-resume-kills",
        value=identical,
        unit=f"of {len(trials)} identical: one kill -9 each at a random moment, resumed, compared bit by bit with the "
        "undisturbed run (weights, optimiser, random state, logged losses)",
        target=f">= {len(trials)}",
        met=identical == len(trials),
        peer="the same run without a kill",
        command=command,
        runs=trials,
        folder=folder,
    )
    print(f"{identical} of {len(trials)} identical")


def report_sigterms(trials: list[dict[str, Any]], recipe: str, command: str, folder: Path) -> None:
    """The result of the SIGTERMs."""
    slowest = max(trial["seconds"] for trial in trials)
    write_result(
        claim="front-sigterm-seconds",
        value=slowest,
        unit=f"s from SIGTERM to exit code 75 with a checkpoint that loads, recipe {recipe}, slowest of {len(trials)}",
        target="<= 10",
        met=slowest <= 10,
        peer="none: the ten seconds are a container's grace period",
        command=command,
        runs=trials,
        folder=folder,
    )
    print(f"SIGTERM: at most {slowest:.2f} s")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10, help="length of the killed run (default %(default)s)")
    parser.add_argument("--users", type=int, default=300, help="of the killed run's data (default %(default)s)")
    parser.add_argument("--sigterms", type=int, default=5)
    parser.add_argument("--sigterm-recipe", default="quickstart", help="name or file (default %(default)s)")
    parser.add_argument("--sigterm-window", type=float, default=10.0, help="seconds of training in which it comes")
    parser.add_argument("--only", choices=("kills", "sigterm"), help="one part alone")
    parser.add_argument("--work", type=Path, help="folder of runs and trials (default build/resume-kills-CODE)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    work = (options.work or ROOT / "build" / f"resume-kills-{code_digest()[:8]}").resolve()
    command = "python -m benchmarks.resume_kills"
    if options.only != "sigterm":
        report_kills(Kills(work, options.epochs, options.users).run(options.kills), command, options.out)
    if options.only != "kills":
        trials = sigterm_trials(work, options.sigterms, options.sigterm_recipe, options.sigterm_window)
        report_sigterms(trials, Path(options.sigterm_recipe).stem, command, options.out)


if __name__ == "__main__":
    main()
