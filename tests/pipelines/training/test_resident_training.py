"""Training on resident events: the numbers of training without, whether it runs through or is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.sasrec import SASRec, SASRecOptions
from pipelines.data.loader import LoaderOptions, cut_windows
from pipelines.data.splits import make_split
from pipelines.training.checkpoint import checkpoint_path
from pipelines.training.guards import GuardOptions
from pipelines.training.optimizers import OptimizerOptions
from pipelines.training.signals import StopSignal
from pipelines.training.trainer import Trainer, TrainingData, TrainingOptions
from tests.pipelines.conftest import memory_store
from tests.pipelines.training.test_trainer import Events


def build(folder: Path, resident: str, **options: int) -> Trainer:
    store = memory_store([12, 30, 7, 18, 5, 25] * 4)
    torch.manual_seed(0)
    loader = LoaderOptions(max_length=6, windows="all", rows_per_batch=8, resident=resident)
    windows = cut_windows(store, make_split(store, "leave-one-out").train, 6, "all")
    return Trainer(
        SASRec(20, SASRecOptions(hidden=8, max_length=6, dropout=0.2)),
        TrainingData(store, windows, loader, seed=1),
        options=TrainingOptions(**{"epochs": 2, "log_every": 1, "checkpoint_steps": 5, "keep": 50, **options}),  # type: ignore[arg-type]
        optimizer=OptimizerOptions(lr=1e-2),
        guards=GuardOptions(stuck_epochs=0),
        checkpoints=folder,
        log=Events(),  # type: ignore[arg-type]
        validate=lambda: {"NDCG@10": 0.5},
        stop=StopSignal(),
        identity="tiny",
    )


def losses(run: Trainer) -> list[float]:
    return [event["loss"] for event in run.log.of("train")]  # type: ignore[attr-defined]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_the_losses_are_those_of_batches_from_the_host(tmp_path: Path, prefetch: int) -> None:
    runs = {kind: build(tmp_path / kind, kind, prefetch=prefetch) for kind in ("on", "off")}
    assert runs["on"].resident is not None and runs["off"].resident is None
    for run in runs.values():
        torch.manual_seed(7)
        run.run()
    assert losses(runs["on"]) == losses(runs["off"]) and len(losses(runs["on"])) > 10


def test_a_resumed_run_goes_on_where_it_was_even_without_resident_events(tmp_path: Path) -> None:
    whole = build(tmp_path, "on")
    torch.manual_seed(7)
    whole.run()
    for kind in ("on", "off"):
        rest = build(tmp_path / kind, kind)
        rest.restore(checkpoint_path(tmp_path, 5))
        rest.run()
        assert losses(rest) == losses(whole)[5:]
