"""Training throughput of SASRec in targets per second: against RecBole, RecTools and the classic padded trainer.

    RECPOD_MIRROR=FOLDER python -m benchmarks.sasrec_train_speed [--rounds 7] [--peers ENVIRONMENT]

All train a SASRec of d 64, 2 blocks, 2 heads and histories of 200 on the same training events, and take turns:

* ``ours, softmax``: the Trainer's own step, 128 rows; loader, forward, softmax over the catalogue, backward, Adam.
* ``RecTools``: its own ``fit`` (PyPI rectools[torch]), 128 rows, softmax over the catalogue: benchmarks/peer_rectools.
* ``RecBole, N rows``: its own trainer, N rows of one target each, softmax; the fastest N counts:
  benchmarks/peer_recbole.
* ``ours, BCE`` and ``padded trainer``: one uniform negative a position, 128 rows: benchmarks/padded_trainer.

RecTools needs an environment of its own: ``--peers``, made with pip where it is not yet there. A round gives each its
turn; medians over rounds are quoted. Writes ``sasrec-train-speed-vs-recbole``, ``-rectools`` and ``-padded-trainer``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.padded_trainer import PaddedRows, PaddedSASRec, PaddedTrainer, padded_rows
from benchmarks.peer_process import Peer, Turn, environment_with, torch_requirement
from benchmarks.plain_trainer import plain_trainer
from benchmarks.result_file import RESULTS, write_result
from benchmarks.step_floor import attention_step_work, floor, floor_line, machine_speeds
from benchmarks.train_speed import Variant
from models.losses import LossOptions
from models.sasrec import SASRec, SASRecOptions
from pipelines import stages
from pipelines.config import load_config
from pipelines.data.loader import LoaderOptions, cut_windows, epoch_batches, training_batches
from pipelines.data.store import SequenceStore
from pipelines.engines.recbole_data import write_atomic_files
from pipelines.evaluation.baselines import training_events
from pipelines.training.optimizers import OptimizerOptions
from pipelines.training.trainer import TrainingData

SEED, ROWS, RECBOLE_ROWS = 1, 128, (32, 128)
RECTOOLS = "rectools[torch]==0.19.0"
COMMAND = "RECPOD_MIRROR=$RECPOD_MIRROR python -m benchmarks.sasrec_train_speed"


@dataclass(frozen=True)
class Claim:
    """One ratio.

    Attributes:
        ours: the variant of ours.
        peer: what names of the peer's variants begin with; the fastest counts.
        target: the ratio asked for.
        words: what the peer is.
    """

    ours: str
    peer: str
    target: float
    words: str


CLAIMS = {
    "sasrec-train-speed-vs-recbole": Claim(
        "ours, softmax", "RecBole", 200.0, "RecBole's SASRec in its own trainer (a row and a target for each prefix)"
    ),
    "sasrec-train-speed-vs-rectools": Claim(
        "ours, softmax", "RecTools", 6.0, "RecTools' SASRec in its own fit, softmax over the catalogue, 128 rows"
    ),
    "sasrec-train-speed-vs-padded-trainer": Claim(
        "ours, BCE",
        "padded trainer",
        6.0,
        "the classic padded trainer restated in plain PyTorch, BCE with one negative, 128 rows, its sampling not "
        "counted",
    ),
}


class Bench:
    """Data and sizes.

    Args:
        prepared: store and split.
        options: of the model; the loss is set by each variant.
        folder: for events and the peers' files.
        threads: of torch, here and in the peers.
    """

    def __init__(self, prepared: stages.Prepared, options: SASRecOptions, folder: Path, threads: int) -> None:
        self.store, self.split, self.options, self.folder = prepared.store, prepared.split, options, folder
        self.threads = threads
        self.loader = LoaderOptions(max_length=options.max_length, windows="newest", rows_per_batch=ROWS)
        self.windows = cut_windows(self.store, self.split.train, options.max_length)

    def task(self, loss: LossOptions) -> SASRec:
        """Our model."""
        torch.manual_seed(SEED)
        return SASRec(self.store.num_items, replace(self.options, loss=loss))

    def ours(self, name: str, loss: LossOptions, steps: int) -> Variant:
        """Steps of the project's trainer, epoch after epoch."""
        data = TrainingData(self.store, self.windows, self.loader, SEED)
        trainer = plain_trainer(self.task(loss), data, self.folder / name.replace(", ", "-"), optimizer=ADAM)
        trainer.task.train()
        batches = (
            batch
            for epoch in range(1_000_000)
            for batch in training_batches(data.store, data.windows, data.loader, seed=SEED, epoch=epoch)
        )

        def step() -> int:
            before = trainer.state.targets
            trainer.update([next(batches)])
            return trainer.state.targets - before

        return Variant(name, step, None, steps)

    def padded(self) -> PaddedTurns:
        """The padded trainer."""
        return PaddedTurns(self)

    def recbole(self, task: str, rows: tuple[int, ...]) -> Peer:
        """RecBole, in this environment."""
        folder = self.folder / "recbole"
        split = self.split if task == "train" else replace(self.split, train=self.split.test)  # every event
        write_atomic_files(self.store, split, folder)
        arguments = [task, str(folder), "--max-length", str(self.options.max_length), "--rows", *map(str, rows)]
        return self.peer("benchmarks.peer_recbole", arguments)

    def rectools(self, task: str, python: str) -> Peer:
        """RecTools, with the interpreter ``python``; it trains on the training events, recommends after all."""
        path = self.folder / "events.npz"
        asked = self.split if task == "train" else replace(self.split, train=self.split.valid)
        write_events(self.store, training_events(self.store, asked), path)
        return self.peer("benchmarks.peer_rectools", [task, str(path)], python=python)

    def peer(self, module: str, arguments: list[str], **options: Any) -> Peer:
        """A child with as many threads as this process."""
        log = self.folder / f"{module.rpartition('.')[2]}.log"
        return Peer(module, [*arguments, "--threads", str(self.threads)], log, threads=self.threads, **options)


ADAM = OptimizerOptions(lr=1e-3)


class PaddedTurns:
    """Turns of the padded trainer; batches of a turn are drawn before its clock runs."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.rng = bench, np.random.default_rng(SEED)
        torch.manual_seed(SEED)
        self.trainer = PaddedTrainer(PaddedSASRec(bench.store.num_items, bench.options))
        self.trainer.model.copy_weights(bench.task(LossOptions()))
        self.trainer.model.train()
        self.order = self._order()

    def _order(self) -> Iterator[np.ndarray]:
        for epoch in range(1_000_000):
            yield from epoch_batches(self.bench.windows, self.bench.loader, seed=SEED, epoch=epoch)

    def batch(self) -> PaddedRows:
        """The next batch of the same epochs that ours gets."""
        length = self.bench.options.max_length
        return padded_rows(self.bench.store, self.bench.windows, next(self.order), length, self.rng)

    def turn(self, steps: int) -> Turn:
        """So many steps."""
        batches = [self.batch() for _ in range(steps)]

        def work() -> int:
            for batch in batches:
                self.trainer.step(batch)
            return sum(int((batch[1] > 0).sum()) for batch in batches)

        return Turn.of(work)


def write_events(store: SequenceStore, inside: np.ndarray, path: Path) -> None:
    """The events ``inside`` as arrays ``user``, ``item`` and ``time``."""
    user = np.repeat(np.arange(store.num_users), np.diff(store.offsets))[inside]
    item, when = np.asarray(store.items)[inside], np.asarray(store.timestamps)[inside]
    np.savez(path, user=user, item=item, time=when)


def steps_of(variant: Variant) -> Callable[[], Turn]:
    """A turn of one of our variants."""
    return lambda: Turn.of(lambda: sum(variant.step() for _ in range(variant.steps_a_round)))


def turns_of(
    bench: Bench, python: str | None, recbole_rows: tuple[int, ...], stack: ExitStack
) -> dict[str, Callable[[], Turn]]:
    """A function for each variant that takes its turn; one turn of each has been taken, which compiles and allocates.

    Raises:
        SystemExit: a peer has other training targets than we have.
    """
    recbole = stack.enter_context(bench.recbole("train", recbole_rows))
    rectools = None if python is None else stack.enter_context(bench.rectools("train", python))
    softmax = bench.ours("ours, softmax", LossOptions(), 8)
    binary = bench.ours("ours, BCE", LossOptions(name="bce", num_negatives=1), 8)
    padded = bench.padded()
    turns: dict[str, Callable[[], Turn]] = {
        softmax.name: steps_of(softmax),
        binary.name: steps_of(binary),
        "padded trainer": lambda: padded.turn(4),
    }
    targets = int(bench.windows.lengths.sum())
    if rectools is not None:
        expect_targets("RecTools", rectools.reply(), targets)
        rectools_ask = rectools.ask
        turns["RecTools"] = lambda: Turn.from_answer(rectools_ask({"steps": 3}))
    every_prefix = int((bench.split.train.end - np.asarray(bench.store.offsets)[bench.split.train.user]).sum())
    expect_targets("RecBole", recbole.reply(), every_prefix)  # it trains older targets too, not the newest 200 alone
    for rows in recbole_rows:
        steps = max(1, 256 // rows)
        turns[f"RecBole, {rows} rows"] = lambda rows=rows, steps=steps: Turn.from_answer(  # type: ignore[misc]
            recbole.ask({"rows": rows, "steps": steps})
        )
    for turn in turns.values():
        turn()
    return turns


def expect_targets(peer: str, answer: Mapping[str, Any], targets: int) -> None:
    """Equal data, or the end.

    Raises:
        SystemExit: an epoch of the peer has another number of targets.
    """
    print(f"{peer} is ready: {answer}", flush=True)
    if answer["targets_of_epoch"] != targets:
        raise SystemExit(f"{peer} trains {answer['targets_of_epoch']:,} targets an epoch, ours {targets:,}")


def measure(
    turns: Mapping[str, Callable[[], Turn]], rounds: int, unit: str, end: float = float("inf")
) -> dict[str, list[Turn]]:
    """The turns of each variant, round by round; after the moment ``end`` (monotonic) no further round begins."""
    taken: dict[str, list[Turn]] = {name: [] for name in turns}
    for number in range(rounds):
        if number and time.monotonic() > end:
            print(f"the time is over: {number} rounds of {rounds}", flush=True)
            break
        for name, turn in turns.items():
            taken[name].append(turn())
        line = ", ".join(f"{name} {values[-1].rate:,.0f}" for name, values in taken.items())
        print(f"round {number + 1}, {unit}: {line}", flush=True)
    return taken


def median_rates(taken: Mapping[str, list[Turn]]) -> tuple[dict[str, float], dict[str, float]]:
    """Of each variant the median a second, and the median a second of the processor."""
    wall = {name: statistics.median(turn.rate for turn in turns) for name, turns in taken.items()}
    return wall, {name: statistics.median(turn.cpu_rate for turn in turns) for name, turns in taken.items()}


def raw(taken: Mapping[str, list[Turn]]) -> dict[str, list[dict[str, float]]]:
    """Every turn, for the result file."""
    return {
        name: [{key: round(value, 4) for key, value in asdict(one).items()} for one in turns]
        for name, turns in taken.items()
    }


def report(bench: Bench, taken: Mapping[str, list[Turn]], command: str, folder: Path) -> None:
    """A result file for each ratio whose two sides were measured."""
    median, cpu = median_rates(taken)
    rows = int(bench.windows.lengths.sum()) / len(bench.windows.user) * ROWS  # targets of a full batch
    pairs = float((bench.windows.lengths * (bench.windows.lengths + 1) / 2).mean()) * ROWS
    work = attention_step_work(bench.options, bench.store.num_items, round(rows), pairs)
    found = floor(work, machine_speeds(), rows / median["ours, softmax"])
    print(floor_line(found))
    runs: dict[str, Any] = {
        "turns": raw(taken),
        "targets_per_second": {name: round(value, 1) for name, value in median.items()},
        "targets_per_cpu_second": {name: round(value, 1) for name, value in cpu.items()},
        "rows_per_batch": ROWS,
        "threads": bench.threads,
        "targets_of_epoch": int(bench.windows.lengths.sum()),
        "floor": found,
    }
    for name, claim in CLAIMS.items():
        peers = [peer for peer in median if peer.startswith(claim.peer)]
        if not peers:
            print(f"{name}: not measured in this run")
            continue
        fastest = max(peers, key=lambda peer: median[peer])
        ratio = median[claim.ours] / median[fastest]
        by_processor = cpu[claim.ours] / cpu[fastest]
        path = write_result(
            claim=name,
            value=round(ratio, 2),
            unit=f"times the targets/s in training, SASRec, {bench.store.manifest['source']['name']}, "
            f"{bench.threads} threads, medians of {len(taken[fastest])} turns: {median[claim.ours]:,.0f} targets/s",
            target=f">= {claim.target:g}",
            met=ratio >= claim.target,
            peer=f"{claim.words}, same sizes, data and machine, in the same run: {fastest} {median[fastest]:,.1f} "
            f"targets/s; {by_processor:.2f} times in seconds of the processor",
            command=command,
            runs=runs,
            folder=folder,
        )
        print(f"{path.name}: {ratio:.2f} times (target {claim.target:g}), {by_processor:.2f} by processor")


def rectools_python(options: argparse.Namespace) -> str | None:
    """RecTools' interpreter, made where there is none; None with ``--no-rectools``."""
    if options.no_rectools:
        return None
    return environment_with(options.peers, [torch_requirement(), RECTOOLS])


def add_peer_options(parser: argparse.ArgumentParser) -> None:
    """What the scripts with peers share."""
    place = Path(tempfile.gettempdir()) / "recpod-peers"
    parser.add_argument("--peers", type=Path, default=place, help="environment of RecTools (default %(default)s)")
    parser.add_argument("--no-rectools", action="store_true", help="leave it out, for trials")
    parser.add_argument("--dataset", default="ml-1m", help="a dataset's name or file (default %(default)s)")
    parser.add_argument("--max-length", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=270.0, help="no round begins later (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_peer_options(parser)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--recbole-rows", type=int, nargs="+", default=list(RECBOLE_ROWS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(COMMAND, flush=True)
    started, python = time.monotonic(), rectools_python(options)
    config = load_config("sasrec-ml1m", [f"dataset.name={options.dataset}"])
    sizes = SASRecOptions(max_length=options.max_length)
    with tempfile.TemporaryDirectory(prefix="sasrec-speed-") as work, ExitStack() as stack:
        bench = Bench(stages.prepare(config), sizes, Path(work), options.threads)
        turns = turns_of(bench, python, tuple(options.recbole_rows), stack)
        taken = measure(turns, options.rounds, "targets/s", started + options.seconds)
        report(bench, taken, COMMAND, options.out)


if __name__ == "__main__":
    main()
