"""Where a training stands, and how a checkpoint holds it: weights, optimiser, random states, counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.errors import RunError
from pipelines.training.checkpoint import checkpoint_path, load_checkpoint
from pipelines.training.distributed import World


@dataclass
class TrainState:
    """Where a training stands. All of it goes into the checkpoint, and it is the same in every process.

    Attributes:
        epoch: finished epochs.
        batch: global batches done in the running epoch.
        step: updates done.
        loss_sum: training loss of the running epoch when the checkpoint was written.
        loss_count: targets of the running epoch so far.
        targets: targets trained on since the start.
        seconds: wall time spent over all resumes, validation included.
        paid: seconds that the machine was paid for, over all resumes: those, and what came before training.
        best_value: best validation value of the selecting metric.
        best_step: its step; -1 before the first validation.
        stale: validations since then.
        to_validate: a validation is due and still to come.
        judged: step of the newest validation; -1 before the first.
        finished: why training ended; empty while it goes on.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    targets: int = 0
    seconds: float = 0.0
    paid: float = 0.0
    best_value: float = float("-inf")
    best_step: int = -1
    stale: int = 0
    to_validate: bool = False
    judged: int = -1
    finished: str = ""


def random_state(device: torch.device) -> dict[str, Any]:
    """This process' random generators: the CPU's, and its GPU's where it trains on one."""
    gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": gpu}


def set_random_state(saved: list[dict[str, Any]], device: torch.device, world: World, seed: int) -> bool:
    """Put this process' generators where a checkpoint of equally many processes left them.

    Other numbers of processes draw afresh, each its own, from ``seed``.

    Returns:
        Whether the saved states were taken.
    """
    if len(saved) != world.size:
        spread_seeds(seed, world)
        return False
    mine = saved[world.rank]
    torch.set_rng_state(mine["cpu"].cpu())
    if device.type == "cuda" and mine["cuda"] is not None:
        torch.cuda.set_rng_state(mine["cuda"].cpu(), device)
    return True


def spread_seeds(seed: int, world: World) -> None:
    """Random numbers that differ between processes (dropout, negatives); the weights are drawn before, alike."""
    torch.manual_seed((seed * 1_000_003 + world.rank + world.size) % 2**63)


def check_identity(saved: Mapping[str, Any], identity: str, path: Path) -> None:
    """Refuse a checkpoint of another configuration or other data.

    Raises:
        RunError: see above; names the ways out.
    """
    if saved["identity"] != identity:
        raise RunError(
            "the checkpoint was made with another configuration or other data",
            where=str(path),
            fix="use the run's own config.yaml, another name (--set name=...), or --resume never",
        )


def load_best(task: nn.Module, checkpoints: Path, state: TrainState, world: World | None = None) -> None:
    """Put the weights of the best validation into ``task``; the first process reads them for all.

    Raises:
        RunError: training ended before its first validation.
    """
    if state.best_step < 0:
        raise RunError(
            "training ended before its first validation",
            where=str(checkpoints),
            fix="allow it more: --max-hours, --max-cost or training.epochs",
        )
    path = checkpoint_path(checkpoints, state.best_step)
    task.load_state_dict((world or World()).on_first(lambda: load_checkpoint(path)["model"]))
