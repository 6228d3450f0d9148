"""Seconds of a real training epoch of ML-1M on two CPU cores, for any recipe on it.

    RECPOD_MIRROR=FOLDER python -m benchmarks.epoch_seconds [ml1m sasrec-ml1m hstu-ml1m ...] [--epochs 3]

The project's Trainer over every window of the recipe's loader, without validation; the step that compiles the kernels
is taken before. The first recipe is also trained once where numba is missing (``RECPOD_KERNELS=torch``). Writes
``front-ml1m-epoch-seconds``, ``sasrec-ml1m-epoch-seconds`` and ``hstu-ml1m-epoch-seconds``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.plain_trainer import plain_trainer
from benchmarks.recipe_data import recipe_data
from benchmarks.result_file import RESULTS, write_result
from benchmarks.train_speed import kernels
from pipelines import stages
from pipelines.config import RunConfig
from pipelines.data.loader import cut_windows, training_batches
from pipelines.training.trainer import Trainer, TrainingData


@dataclass(frozen=True)
class Claim:
    """What an epoch is held against.

    Attributes:
        name: of the result file.
        most: seconds to stay below.
        words: whose seconds these are.
    """

    name: str
    most: float
    words: str


CLAIMS = {
    "ml1m": Claim("front-ml1m-epoch-seconds", 60, "the plan's aim"),
    "sasrec-ml1m": Claim("sasrec-ml1m-epoch-seconds", 60, "the plan's aim for SS4Rec"),
    "hstu-ml1m": Claim("hstu-ml1m-epoch-seconds", 54, "published for one H100"),
}


class Bench:
    """A recipe with its data.

    Args:
        config: the recipe.
        prepared: its data.
        folder: where events go.
    """

    def __init__(self, config: RunConfig, prepared: stages.Prepared, folder: Path) -> None:
        self.config, self.prepared, self.folder = config, prepared, folder
        loader = config.loader
        windows = cut_windows(prepared.store, prepared.split.train, loader.max_length, loader.windows)
        self.data = TrainingData(prepared.store, windows, loader, config.seed)

    def trainer(self, name: str) -> Trainer:
        """A trainer with a model of its own."""
        config, folder = self.config, self.folder / name
        task = stages.build_task(config, self.prepared)
        return plain_trainer(
            task, self.data, folder, training=config.training, optimizer=config.optimizer, guards=config.guards
        )

    def seconds(self, path: str | None, epochs: int) -> list[float]:
        """Of ``epochs`` epochs with the kernels' ``path`` (None: the best)."""
        found = []
        with kernels(path):
            warm, data = self.trainer(f"warm-up-{path}"), self.data
            warm.task.train()
            warm.update([next(iter(training_batches(data.store, data.windows, data.loader, seed=data.seed, epoch=0)))])
            trainer = self.trainer(f"epochs-{path}")
            for _ in range(epochs):
                begin = time.perf_counter()
                trainer.train_epoch()
                trainer.state.to_validate = False
                found.append(round(time.perf_counter() - begin, 2))
                print(f"{self.config.name}, {path or 'best path'}: {found[-1]:.1f} s", flush=True)
        return found


def report(bench: Bench, found: dict[str, list[float]], command: str, folder: Path) -> None:
    """The recipe's result file."""
    claim = CLAIMS[bench.config.name]
    value, plain = statistics.median(found["ours"]), found.get("ours, torch path")
    targets = int(bench.data.windows.lengths.sum())
    write_result(
        claim=claim.name,
        value=value,
        unit=f"s, a whole training epoch of {targets:,} targets, {bench.config.dataset.name}, "
        f"{torch.get_num_threads()} threads, without validation, median of {len(found['ours'])}",
        target=f"< {claim.most:g} ({claim.words})",
        met=value < claim.most,
        peer=f"without numba (PyTorch alone) in the same run: {plain[0]:.1f} s" if plain else "none in this run",
        command=command,
        runs={"seconds": found},
        folder=folder,
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(CLAIMS), metavar="RECIPE", help=f"of {', '.join(CLAIMS)}")
    parser.add_argument("--synthetic", action="store_true", help="a small made-up store instead; for trials only")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="of the recipes")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--no-torch-epoch", action="store_true", help="leave out the epoch without numba")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    if unknown := set(options.recipes) - set(CLAIMS):
        parser.error(f"no claim is made for {', '.join(sorted(unknown))}; known: {', '.join(CLAIMS)}")
    torch.set_num_threads(options.threads)
    for place, recipe in enumerate(options.recipes):
        with tempfile.TemporaryDirectory(prefix="epoch-seconds-") as work:
            sets = ["device=cpu", *options.sets]
            data = recipe_data(recipe, sets, synthetic=options.synthetic, work=Path(work))
            bench = Bench(*data, Path(work))
            found = {"ours": bench.seconds(None, options.epochs)}
            if place == 0 and not options.no_torch_epoch:
                found["ours, torch path"] = bench.seconds("torch", 1)
            command = f"RECPOD_MIRROR=$RECPOD_MIRROR python -m benchmarks.epoch_seconds {recipe}"
            report(bench, found, command + (" --synthetic" if options.synthetic else ""), options.out)


if __name__ == "__main__":
    main()
