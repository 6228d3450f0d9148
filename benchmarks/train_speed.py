"""Training speed of SS4Rec on two CPU cores: against the published formulation and against a padded pass.

    RECPOD_MIRROR=FOLDER python -m benchmarks.train_speed [--rounds 5]

Everything runs in one process, on the recipe ``ml1m``, with real batches through the project's own data path:

* ``ours``: the Trainer's own step: loader, forward, full softmax, backward, Adam.
* ``ours, torch path``: the same where numba is missing (``RECPOD_KERNELS=torch``).
* ``padded pass``: the same batches, reference kernels (they pad to the longest row and loop over time), plain
  cross-entropy: what one causal pass gives without our kernels and loss.
* ``published``: see benchmarks/published_formulation.py; rows of 200, one target each, several batch sizes, the fastest
  of which counts.

A round gives each variant its turn, so that a busy machine slows all alike; medians over rounds are quoted. Writes
``front-train-speed-vs-published`` and ``front-train-speed-vs-padded-pass``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.plain_trainer import plain_trainer
from benchmarks.published_formulation import PublishedSS4Rec, prefixes
from benchmarks.recipe_data import recipe_data
from benchmarks.result_file import RESULTS, write_result
from benchmarks.step_floor import floor, floor_line, machine_speeds, step_work
from models.batch import SequenceBatch
from models.kernels.paths import VARIABLE
from models.ss4rec import SS4Rec
from models.tasks import LossOutput
from pipelines import stages
from pipelines.config import RunConfig
from pipelines.data.loader import cut_windows, training_batches
from pipelines.training.optimizers import build_optimizer
from pipelines.training.trainer import Trainer, TrainingData

PUBLISHED_BATCHES = (8, 16, 32)


class PlainLoss(SS4Rec):
    """Our model with the cross-entropy that everybody writes: logits of all tokens at once."""

    def loss(self, batch: SequenceBatch) -> LossOutput:
        """As the base class, in float32."""
        asked = batch.targets > 0
        logits = self.token_states(batch)[asked] @ self.item_embedding.weight[1:].T  # [M, items]
        total = functional.cross_entropy(logits, batch.targets[asked] - 1, reduction="sum")
        return LossOutput(total, int(asked.sum()))


@dataclass
class Variant:
    """One way to train: ``step()`` does an update and returns its targets."""

    name: str
    step: Callable[[], int]
    kernels: str | None
    steps_a_round: int


@contextlib.contextmanager
def kernels(path: str | None) -> Iterator[None]:
    """The environment in which every kernel takes ``path``; None: the best one."""
    before = os.environ.pop(VARIABLE, None)
    if path is not None:
        os.environ[VARIABLE] = path
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


class Bench:
    """The recipe with its data, and what trains on it.

    Args:
        config: the recipe.
        prepared: its data.
        folder: where checkpoints and events go.
    """

    def __init__(self, config: RunConfig, prepared: stages.Prepared, folder: Path) -> None:
        self.config, self.prepared, self.folder = config, prepared, folder
        loader = config.loader
        windows = cut_windows(prepared.store, prepared.split.train, loader.max_length, loader.windows)
        self.data = TrainingData(prepared.store, windows, loader, config.seed)

    def trainer(self, name: str, model: type[SS4Rec] = SS4Rec) -> Trainer:
        """The project's trainer with a model of its own, logging into a real event file."""
        torch.manual_seed(self.config.seed)
        task = model(self.prepared.store.num_items, self.config.model_options())
        folder = self.folder / name.replace(",", "").replace(" ", "-")
        config = self.config
        return plain_trainer(
            task, self.data, folder, training=config.training, optimizer=config.optimizer, guards=config.guards
        )

    def batches(self) -> Iterator[SequenceBatch]:
        """The recipe's batches, epoch after epoch."""
        data, epoch = self.data, 0
        while True:
            yield from training_batches(data.store, data.windows, data.loader, seed=data.seed, epoch=epoch)
            epoch += 1

    def trained(self, name: str, path: str | None, steps: int, model: type[SS4Rec] = SS4Rec) -> Variant:
        """Steps of the trainer; every variant sees the same batches in the same order."""
        trainer, batches = self.trainer(name, model), self.batches()
        trainer.task.train()

        def step() -> int:
            before = trainer.state.targets
            trainer.update([next(batches)])
            return trainer.state.targets - before

        return Variant(name, step, path, steps)

    def published(self, rows: int) -> Variant:
        """Steps of the published formulation, ``rows`` prefixes each."""
        torch.manual_seed(self.config.seed)
        task = SS4Rec(self.prepared.store.num_items, self.config.model_options())
        model, optimizer = (
            PublishedSS4Rec(task, self.config.loader.max_length),
            build_optimizer(task, self.config.optimizer),
        )
        model.train()
        rng = np.random.default_rng(self.config.seed)

        def step() -> int:
            batch = prefixes(self.prepared.store, self.data.windows, rows, self.config.loader.max_length, rng)
            optimizer.zero_grad(set_to_none=True)
            model.loss(batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return rows

        return Variant(f"published, {rows} rows", step, "torch", 1)


def targets_per_second(variant: Variant) -> float:
    """The speed of one turn."""
    with kernels(variant.kernels):
        begin, targets = time.perf_counter(), 0
        for _ in range(variant.steps_a_round):
            targets += variant.step()
        return targets / (time.perf_counter() - begin)


def measure_speed(bench: Bench, rounds: int, published_rows: tuple[int, ...]) -> dict[str, list[float]]:
    """Targets per second of every variant in every round; one step of each before, which compiles and allocates."""
    variants = [
        bench.trained("ours", None, 4),
        bench.trained("ours, torch path", "torch", 1),
        bench.trained("padded pass", "reference", 1, PlainLoss),
        *(bench.published(rows) for rows in published_rows),
    ]
    for variant in variants:
        with kernels(variant.kernels):
            variant.step()
    speeds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for number in range(rounds):
        for variant in variants:
            speeds[variant.name].append(targets_per_second(variant))
        line = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in speeds.items())
        print(f"round {number + 1}, targets/s: {line}", flush=True)
    return speeds


def report_speed(bench: Bench, speeds: Mapping[str, list[float]], command: str, folder: Path) -> None:
    """The two ratios, with the floor of a step."""
    median = {name: statistics.median(values) for name, values in speeds.items()}
    fastest = max((name for name in median if name.startswith("published")), key=lambda name: median[name])
    windows, loader = bench.data.windows, bench.config.loader
    targets = float(windows.lengths.sum()) / len(windows.user) * loader.rows_per_batch  # of a full batch
    work = step_work(bench.config.model_options(), bench.prepared.store.num_items, round(targets))
    found = floor(work, machine_speeds(), targets / median["ours"])
    print(floor_line(found))
    runs: dict[str, Any] = {
        "targets_per_second": {name: [round(value, 1) for value in values] for name, values in speeds.items()},
        "kernels": {"ours": "best", "ours, torch path": "torch", "padded pass": "reference"},
        "rows_per_batch": loader.rows_per_batch,
        "threads": torch.get_num_threads(),
        "floor": found,
    }
    plain = median["ours"] / median["ours, torch path"]
    for claim, peer, target, least in (
        ("front-train-speed-vs-published", fastest, ">= 100", 100.0),
        ("front-train-speed-vs-padded-pass", "padded pass", "> 1", 1.0),
    ):
        ratio = median["ours"] / median[peer]
        path = write_result(
            claim=claim,
            value=round(ratio, 2),
            unit=f"times the targets/s in training, SS4Rec, {bench.config.dataset.name}, "
            f"{torch.get_num_threads()} threads, medians: {median['ours']:,.0f} targets/s",
            target=target,
            met=ratio >= least,
            peer=f"{PEERS[claim]}, in the same run: {median[peer]:,.1f} targets/s; "
            f"without numba ours is {plain:.1f} times slower ({median['ours, torch path']:,.0f} targets/s)",
            command=command,
            runs=runs,
            folder=folder,
        )
        print(f"{path.name}: {ratio:.1f} times")


PEERS = {
    "front-train-speed-vs-published": "the published formulation restated in plain PyTorch (every prefix a row of 200 "
    "with one target, Bbar [B, L, P, H], recursive scan; Mamba's reference loop), same sizes, its fastest batch",
    "front-train-speed-vs-padded-pass": "one causal pass over the same batches with the reference scans on padded "
    "rows and plain cross-entropy (what is left beside the reformulation)",
}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-1m", help="a dataset's name or file (default %(default)s)")
    parser.add_argument("--synthetic", action="store_true", help="a small made-up store instead; for trials only")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--published-rows", type=int, nargs="+", default=list(PUBLISHED_BATCHES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    command = f"RECPOD_MIRROR=$RECPOD_MIRROR python -m benchmarks.train_speed --dataset {options.dataset}"
    with tempfile.TemporaryDirectory(prefix="train-speed-") as work:
        sets = [f"dataset.name={options.dataset}", *options.sets]
        config, prepared = recipe_data("ml1m", sets, synthetic=options.synthetic, work=Path(work))
        bench = Bench(config, prepared, Path(work))
        speeds = measure_speed(bench, options.rounds, tuple(options.published_rows))
        report_speed(bench, speeds, command + (" --synthetic" if options.synthetic else ""), options.out)


if __name__ == "__main__":
    main()
