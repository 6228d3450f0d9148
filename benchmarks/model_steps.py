"""What hyper-connections, intervals, HSTU and torch.compile cost: a training step of each model in seconds of SASRec's.

    RECPOD_MIRROR=FOLDER python -m benchmarks.model_steps [--rounds 9]

The Trainer's own step (loader, forward, softmax over the catalogue, backward, Adam) on the same batches of ML-1M: 128
rows of at most 200 tokens, d 64, 2 blocks. The models take turns; processor time is quoted, which holds on a busy
machine too. Writes ``sasrec-mhc-step``, ``sasrec-tisasrec-step``, ``hstu-step`` and ``sasrec-compile-step``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.peer_process import Turn
from benchmarks.plain_trainer import plain_trainer
from benchmarks.result_file import RESULTS, write_result
from models.hstu import HSTU, HSTUOptions
from models.sasrec import SASRec, SASRecOptions
from models.tasks import Retrieval
from models.tisasrec import TiSASRec, TiSASRecOptions
from pipelines import stages
from pipelines.config import load_config
from pipelines.data.loader import LoaderOptions, cut_windows, training_batches
from pipelines.training.trainer import TrainingData, TrainingOptions

SEED, ROWS, LENGTH, STEPS = 1, 128, 200, 4
COMMAND = "RECPOD_MIRROR=$RECPOD_MIRROR python -m benchmarks.model_steps"
PLAIN = "sasrec"
# claim: (model, the one it is measured against, the most that is aimed at)
CLAIMS = {
    "sasrec-mhc-step": ("sasrec, mHC", PLAIN, 1.5),
    "sasrec-tisasrec-step": ("tisasrec", PLAIN, 1.5),
    "hstu-step": ("hstu", PLAIN, 1.5),
    "sasrec-compile-step": ("sasrec, compiled", PLAIN, 1.0),
}


def models(num_items: int) -> dict[str, Retrieval]:
    """Fresh models of the same sizes."""
    sizes = {"hidden": 64, "blocks": 2, "max_length": LENGTH}
    made: dict[str, Retrieval] = {}
    for name, make in (
        (PLAIN, lambda: SASRec(num_items, SASRecOptions(heads=2, **sizes))),
        ("sasrec, compiled", lambda: SASRec(num_items, SASRecOptions(heads=2, **sizes))),
        ("sasrec, mHC", lambda: SASRec(num_items, SASRecOptions(heads=2, mhc=True, **sizes))),
        ("tisasrec", lambda: TiSASRec(num_items, TiSASRecOptions(heads=2, **sizes))),
        ("tisasrec, mHC", lambda: TiSASRec(num_items, TiSASRecOptions(heads=2, mhc=True, **sizes))),
        ("hstu", lambda: HSTU(num_items, HSTUOptions(heads=2, **sizes))),
    ):
        torch.manual_seed(SEED)
        made[name] = make()
    return made


class Steps:
    """One model's training, step after step."""

    def __init__(self, task: Retrieval, prepared: stages.Prepared, folder: Path, compiled: bool) -> None:
        loader = LoaderOptions(max_length=LENGTH, windows="newest", rows_per_batch=ROWS)
        windows = cut_windows(prepared.store, prepared.split.train, LENGTH)
        data, training = TrainingData(prepared.store, windows, loader, SEED), TrainingOptions(compile=compiled)
        self.trainer = plain_trainer(task, data, folder, training=training)
        task.train()
        self.batches = (
            batch
            for epoch in range(1_000_000)
            for batch in training_batches(prepared.store, windows, loader, seed=SEED, epoch=epoch)
        )

    def turn(self) -> Turn:
        """``STEPS`` updates."""
        before = self.trainer.state.targets

        def work() -> int:
            for _ in range(STEPS):
                self.trainer.update([next(self.batches)])
            return self.trainer.state.targets - before

        return Turn.of(work)


def measure(prepared: stages.Prepared, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Milliseconds of the processor a step, each round; a first turn, which compiles, is left out."""
    steps = {
        name: Steps(task, prepared, folder / str(place), name.endswith("compiled"))
        for place, (name, task) in enumerate(models(prepared.store.num_items).items())
    }
    for one in steps.values():
        one.turn()
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name, one in steps.items():
            found[name].append(one.turn().cpu_seconds / STEPS * 1e3)
        print(f"round {number + 1}, ms: {', '.join(f'{n} {v[-1]:.0f}' for n, v in found.items())}", flush=True)
    return found


def report(found: dict[str, list[float]], name: str, threads: int, command: str, folder: Path) -> None:
    """A result file for each claim."""
    median = {model: statistics.median(values) for model, values in found.items()}
    rounds = len(found[PLAIN])
    for claim, (model, against, most) in CLAIMS.items():
        ratio = median[model] / median[against]
        path = write_result(
            claim=claim,
            value=round(ratio, 3),
            unit=f"times a step of {against}, {model}, {name}, {ROWS} rows of at most {LENGTH}, d 64, 2 blocks, "
            f"2 heads, softmax over the catalogue, {threads} threads, processor time, medians of {rounds} turns: "
            f"{median[model]:.0f} ms",
            target=f"<= {most:g}",
            met=ratio <= most,
            peer=f"{against} in the same run and in turn: {median[against]:.0f} ms",
            command=command,
            runs={"milliseconds": found, "medians": median, "threads": threads},
            folder=folder,
        )
        print(f"{path.name}: {ratio:.2f} (at most {most:g})")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-1m", help="a dataset's name or file (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    prepared = stages.prepare(load_config("sasrec-ml1m", [f"dataset.name={options.dataset}"]))
    command = COMMAND if options.dataset == "ml-1m" else f"{COMMAND} --dataset {Path(options.dataset).name}"
    with tempfile.TemporaryDirectory() as folder:
        found = measure(prepared, options.rounds, Path(folder))
    report(found, options.dataset, options.threads, command, options.out)


if __name__ == "__main__":
    main()
