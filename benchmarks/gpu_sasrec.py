"""SASRec and TiSASRec on a GPU: checks against the reference, an ML-1M epoch in seconds, memory. See benchmarks/gpu.py.

Needs torch and numpy alone. The recipe's sizes (d 64, 2 blocks, 2 heads, histories of 200, softmax over the catalogue);
an epoch is every training target of each user's newest 200, loader, forward, backward and Adam included, validation
apart. ``dropout 0`` is the case that the varlen kernel takes; with dropout on attention weights rows of nearly equal
length share rectangles.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_bench import SEED, Bench, batches_of, device_name, measure_speed, synchronise
from benchmarks.gpu_checks import Check, model_check, timed
from benchmarks.plain_trainer import plain_trainer
from benchmarks.result_file import write_result
from models.kernels import chosen_paths
from models.sasrec import SASRec, SASRecOptions
from models.tasks import Retrieval
from models.tisasrec import TiSASRec, TiSASRecOptions
from pipelines.data.loader import LoaderOptions
from pipelines.training.compiled import compile_layers
from pipelines.training.trainer import Trainer, TrainingOptions

EPOCH_TARGET = 2.0  # seconds


@dataclass(frozen=True)
class Case:
    """One way to train.

    Attributes:
        model: ``SASRec`` or ``TiSASRec``.
        rows: of a batch.
        precision: of the layers.
        changed: options of the model that are not the recipe's.
        epochs: whole epochs that are timed besides; 0 for none.
        resident: whether batches are gathered on the device from events that lie there (``on``), or on the host.
        compiled: whether the feed-forward layers go through torch.compile.
    """

    model: type[Retrieval]
    rows: int
    precision: str = "auto"
    changed: dict[str, Any] = field(default_factory=dict)
    epochs: int = 0
    resident: str = "on"
    compiled: bool = False

    @property
    def name(self) -> str:
        """As in the result file."""
        changed = "".join(f", {key} {value}" for key, value in self.changed.items())
        made = "" if self.resident == "on" else ", batches from the host"
        made += ", compiled" if self.compiled else ""
        return f"{self.model.__name__}, {self.rows} rows, {self.precision}{changed}{made}"


CASES = (
    Case(SASRec, 128, epochs=3),
    Case(SASRec, 128, epochs=3, resident="off"),
    Case(SASRec, 512, epochs=3),
    Case(SASRec, 128, precision="float32"),
    Case(SASRec, 128, changed={"dropout": 0.0}),
    Case(TiSASRec, 128, epochs=1),
)


class FamilyBench(Bench):
    """The GPU bench with a model of the SASRec family.

    Args:
        bench: device, store and folder.
        case: which model.
        quick: tiny sizes.
    """

    def __init__(self, bench: Bench, case: Case, quick: bool) -> None:
        loader = replace(bench.loader, windows="newest", rows_per_batch=4 if quick else case.rows)
        loader = replace(loader, resident=case.resident)
        super().__init__(str(bench.device), bench.store, bench.options, bench.work / case.name.replace(" ", ""), loader)
        sizes: dict[str, Any] = {"hidden": 16} if quick else {}
        self.case, self.sizes = case, {**sizes, "max_length": loader.max_length, **case.changed}

    def task(self) -> Retrieval:
        """A fresh model with the same weights each time."""
        torch.manual_seed(SEED)
        options = TiSASRecOptions if self.case.model is TiSASRec else SASRecOptions
        task: Retrieval = self.case.model(self.store.num_items, options(**self.sizes))  # type: ignore[call-arg, arg-type]
        if self.case.compiled:
            compile_layers(task)
        return task.to(self.device)

    def trainer(self, name: str, loader: LoaderOptions, **options: Any) -> Trainer:
        """A trainer of a fresh model."""
        return plain_trainer(self.task(), self.data(loader), self.work / name, **options)


def epoch_seconds(bench: FamilyBench) -> tuple[list[float], int]:
    """Wall seconds of whole epochs, and the targets of one; one short warm-up before."""
    trainer = bench.trainer("epochs", bench.loader, training=TrainingOptions(precision=bench.case.precision))
    found, targets = [], int(trainer.data.windows.lengths.sum())
    trainer.task.train()
    for epoch in range(bench.case.epochs + 1):
        begin, before = synchronise(bench.device), trainer.state.targets
        for number, batch in enumerate(batches_of(trainer, epoch)):
            if epoch == 0 and number == 3:
                break
            trainer.update([batch])
        if epoch:
            found.append(synchronise(bench.device) - begin)
            assert trainer.state.targets - before == targets
    return found, targets


def measure(bench: Bench, case: Case, quick: bool) -> dict[str, Any]:
    """Speed, memory and epochs of one case."""
    own = FamilyBench(bench, case, quick)
    speed = measure_speed(own, "speed", own.loader.rows_per_batch, case.precision, 0.1 if quick else 4.0)
    if case.epochs:
        seconds, targets = epoch_seconds(own)
        speed |= {"epoch_seconds": [round(value, 3) for value in seconds], "targets_of_epoch": targets}
    print(f"{case.name}: {speed['median']:,.0f} targets/s, epochs {speed.get('epoch_seconds', '-')} s", flush=True)
    return speed


def varlen_check(device: torch.device) -> Check:
    """Whether the varlen kernel gives the rectangles' numbers in bfloat16, so that it is what attention uses."""
    if device.type != "cuda":
        return Check("varlen attention", None, reason="takes cuda tensors only")
    from models.kernels.packed_attention.cuda import varlen_agrees

    return timed("varlen attention is used", 0.0, lambda: float(not varlen_agrees(torch.bfloat16, str(device))))


def checks(bench: Bench, quick: bool) -> list[Check]:
    """The varlen kernel, and each whole model against the reference kernels in float64; each printed as it is done."""
    found = [varlen_check(bench.device)]
    for case in (CASES[0], CASES[-1]):
        own = FamilyBench(bench, replace(case, rows=4), quick)
        data = own.data(replace(own.loader, rows_per_batch=4))
        check = model_check(own.task, data, own.device)
        found.append(replace(check, name=f"{case.model.__name__}: {check.name}"))
    for check in found:
        print(check.line(), flush=True)
    return found


def figures(bench: Bench, command: str, out: Path, *, quick: bool) -> bool:
    """Write the family's result file; whether every check that could run has passed."""
    passed = checks(bench, quick)
    found = {case.name: measure(bench, case, quick) for case in CASES}
    recipe = found[CASES[0].name]
    value = statistics.median(recipe["epoch_seconds"])
    memory = {name: one["peak_memory_gb"] for name, one in found.items()}
    write_result(
        claim=f"sasrec-{'gpu' if bench.device.type == 'cuda' else bench.device.type}-epoch-seconds",
        value=round(value, 3),
        unit=f"s, a training epoch of {recipe['targets_of_epoch']:,} targets, SASRec, "
        f"{bench.store.manifest['source']['name']}, {recipe['rows_per_batch']} rows a batch, without validation, "
        f"median of {len(recipe['epoch_seconds'])}",
        target=f"< {EPOCH_TARGET:g}",
        met=value < EPOCH_TARGET,
        peer="the other cases of this run: see runs",
        command=command,
        runs={
            "cases": found,
            "peak_memory_gb": memory,
            "checks": [vars(check) for check in passed],
            "paths": chosen_paths(bench.device.type),
            "device": device_name(bench.device),
        },
        folder=out,
    )
    report_resident(bench, found, command, out)
    if bench.device.type == "cuda":
        report_compiled(bench, found[CASES[0].name]["median"], command, out)
    return all(check.passed is not False for check in passed)


def report_resident(bench: Bench, found: dict[str, dict[str, Any]], command: str, out: Path) -> None:
    """An epoch with the events on the device beside one whose batches come from the host, both of this run."""
    cases = [case for case in CASES if case.epochs and case.model is SASRec and case.rows == CASES[0].rows]
    seconds = {case.resident: statistics.median(found[case.name]["epoch_seconds"]) for case in cases}
    write_result(
        claim=f"sasrec-{'gpu' if bench.device.type == 'cuda' else bench.device.type}-resident-epoch-seconds",
        value=round(seconds["on"], 3),
        unit="s, a training epoch of SASRec with the training events on the device, median; "
        f"{found[cases[0].name]['targets_of_epoch']:,} targets, {bench.store.manifest['source']['name']}",
        target=f"< {seconds['off']:.3f} (the same with batches made on the host and copied)",
        met=seconds["on"] < seconds["off"],
        peer="loader.resident: off in the same run",
        command=command,
        runs={"cases": {case.name: found[case.name] for case in cases}, "device": device_name(bench.device)},
        folder=out,
    )


def report_compiled(bench: Bench, plain: float, command: str, out: Path) -> None:
    """The recipe's steps with ``training.compile`` beside those without, ``plain`` targets/s, both of this run."""
    speed = measure(bench, replace(CASES[0], compiled=True, epochs=0), quick=False)
    write_result(
        claim="sasrec-gpu-compile-train-speed",
        value=round(speed["median"]),
        unit=f"targets/s in training, SASRec with compiled feed-forward layers, {speed['rows_per_batch']} rows a batch",
        target=f"> {plain:.0f} (without)",
        met=speed["median"] > plain,
        peer=f"training.compile: false in the same run: {plain:,.0f} targets/s",
        command=command,
        runs={"speed": speed, "device": device_name(bench.device)},
        folder=out,
    )
