"""SASRec's step as a CUDA graph: the losses of the step without one, and how fast it is. Run by benchmarks/gpu.sh.

    python -m benchmarks.gpu_graph [--store FOLDER]             (RECPOD_STORE and OUT do the same)

A process of its own: a capture that fails can leave the GPU unusable for whoever comes after. Needs torch and numpy
alone. Twenty updates with dropout, from equal weights and equal random numbers: once replayed, once without a graph on
the same filled-up batches. Without dropout, once replayed and once on the ragged batches. Speed: both ways to train,
events resident, as the recipe has them but for batches of equal tokens.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_bench import LOADER, SEED, Bench, device_name, endless, synchronise
from benchmarks.gpu_checks import Check, timed
from benchmarks.plain_trainer import plain_trainer
from benchmarks.result_file import RESULTS, write_result
from benchmarks.synthetic_store import synthetic_store
from models.batch import SequenceBatch
from models.losses import LossOptions
from models.sasrec import SASRec, SASRecOptions
from models.ss4rec import SS4RecOptions
from pipelines.data.loader import LoaderOptions
from pipelines.data.store import SequenceStore
from pipelines.training.graphed import StepShape
from pipelines.training.trainer import Trainer, TrainingOptions

STEPS = 20
ALLOWED = 1e-3  # of a loss: sums on a GPU are made in no fixed order, and Adam makes much of small gradients


class GraphBench:
    """SASRec in batches of equal tokens.

    Args:
        bench: device, store and folder.
        loader: how histories are batched.
    """

    def __init__(self, bench: Bench, loader: LoaderOptions) -> None:
        self.bench, self.loader = bench, replace(loader, batch="tokens", windows="newest", resident="on")

    def trainer(self, name: str, dropout: float, graph: bool, precision: str = "float32") -> Trainer:
        """A trainer of a fresh model, its weights and random numbers always the same."""
        torch.manual_seed(SEED)
        loss = LossOptions(precision="float32" if precision == "float32" else "auto")
        options = SASRecOptions(max_length=self.loader.max_length, dropout=dropout, loss=loss)
        task = SASRec(self.bench.store.num_items, options).to(self.bench.device)
        training = TrainingOptions(precision=precision, cuda_graph=graph)
        trainer = plain_trainer(task, self.bench.data(self.loader), self.bench.work / name, training=training)
        trainer.task.train()
        return trainer

    def losses(self, trainer: Trainer, fill: bool) -> list[float]:
        """The losses of the first updates; ``fill``: of the batches that a graph takes."""
        shape = StepShape.fitting(trainer.data.windows, self.loader, SEED)

        def given(batch: SequenceBatch) -> SequenceBatch:
            return (shape.filled(batch) or batch) if fill else batch

        torch.manual_seed(SEED)
        return [trainer.update([given(batch)])[0].item() for batch in islice(endless(trainer), STEPS)]

    def check(self, dropout: float, fill: bool) -> Check:
        """Whether replayed updates have the losses of updates without a graph."""

        def error() -> float:
            replayed = self.losses(self.trainer("graph", dropout, graph=True), fill=False)
            expected = self.losses(self.trainer("eager", dropout, graph=False), fill)
            return max(abs(a - b) / abs(b) for a, b in zip(replayed, expected, strict=True))

        batches = "filled-up" if fill else "ragged"
        return timed(f"{STEPS} replayed updates, {batches} batches, dropout {dropout}", ALLOWED, error)

    def speed(self, graph: bool, seconds: float) -> dict[str, Any]:
        """Targets per second in steps of ten until ``seconds`` are over."""
        trainer = self.trainer("speed", 0.2, graph, "auto")
        batches, rates = endless(trainer), []
        for batch in islice(batches, 5):
            trainer.update([batch])
        end = time.perf_counter() + seconds
        while not rates or time.perf_counter() < end:
            begin, before = synchronise(self.bench.device), trainer.state.targets
            for batch in islice(batches, 10):
                trainer.update([batch])
            rates.append((trainer.state.targets - before) / (synchronise(self.bench.device) - begin))
        return {"targets_per_second": [round(rate) for rate in rates], "median": statistics.median(rates)}


def report(bench: GraphBench, checks: list[Check], command: str, out: Path, seconds: float) -> None:
    """Measure both ways to train and write the result file."""
    speeds = {name: bench.speed(graph, seconds) for name, graph in (("graph", True), ("eager", False))}
    graph, eager = speeds["graph"]["median"], speeds["eager"]["median"]
    write_result(
        claim="sasrec-gpu-graph-train-speed",
        value=round(graph),
        unit=f"targets/s in training, SASRec as a CUDA graph, {bench.loader.tokens_per_batch} tokens a batch, "
        f"{bench.bench.store.manifest['source']['name']}, median",
        target=f"> {eager:.0f} (without a graph)",
        met=graph > eager and all(check.passed for check in checks),
        peer=f"training.cuda_graph: false in the same run: {eager:,.0f} targets/s",
        command=command,
        runs={"speeds": speeds, "checks": [vars(check) for check in checks], "device": device_name(bench.bench.device)},
        folder=out,
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 when a check has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=os.environ.get("RECPOD_STORE"), help="a sequence store's folder")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each speed (default %(default)s)")
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT", RESULTS / "gpu"), help="folder of the result")
    options, _ = parser.parse_known_args(arguments)  # gpu.sh passes on those of gpu.py
    if not torch.cuda.is_available():
        parser.error("torch finds no GPU here, and a CUDA graph needs one")
    command = "benchmarks/gpu.sh" + (" --store FOLDER" if options.store else "")
    with tempfile.TemporaryDirectory(prefix="graph-") as folder:
        work = Path(folder)
        store = SequenceStore.open(options.store) if options.store else synthetic_store(work / "store")
        bench = GraphBench(Bench("cuda", store, SS4RecOptions(), work), LOADER)
        asked: list[Callable[[], Check]] = [lambda: bench.check(0.2, fill=True), lambda: bench.check(0.0, fill=False)]
        checks = []
        for ask in asked:
            checks.append(ask())
            print(checks[-1].line(), flush=True)
        report(bench, checks, command, Path(options.out), options.seconds)
    return 0 if all(check.passed for check in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
