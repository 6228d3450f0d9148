"""One step, whole, on disk: enough to run it again and watch it fail. Needs torch only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.batch import SequenceBatch
from pipelines.errors import RunError


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The random generators a step on ``device`` draws from, copied."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def save_dump(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    batches: Sequence[SequenceBatch],
    random_states: Sequence[dict[str, Tensor]],
    facts: dict[str, Any],
) -> None:
    """Write one step; whole or not at all.

    Args:
        path: ``.pt`` file; read back with ``torch.load(path, weights_only=True)``.
        model: its ``state_dict`` as it is now: before the update.
        optimizer: its ``state_dict``.
        batches: of the step, one for each accumulated part.
        random_states: of the generators before each batch's forward.
        facts: step, loss and the like; numbers and strings.

    Raises:
        OSError: the disk is full or read-only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        **facts,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict() if optimizer is not None else None,
        "batches": [
            {entry.name: getattr(batch, entry.name) for entry in dataclasses.fields(batch)} for batch in batches
        ],
        "rng": list(random_states),
    }
    temporary = path.with_name(f".{path.name}.writing")
    try:
        torch.save(content, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written: {error}") from error


def load_dump(path: Path) -> dict[str, Any]:
    """A dumped step on the CPU, ``batches`` as :class:`SequenceBatch` again.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        content["batches"] = [SequenceBatch(**batch) for batch in content["batches"]]
    except Exception as error:
        raise RunError(f"not a dump of a step ({type(error).__name__})", where=str(path)) from error
    return content


def replay_loss(path: Path, task: nn.Module) -> float:
    """Run a dumped step's forward again, with its weights, batches and random numbers.

    Args:
        path: a dump.
        task: a model of the run's configuration; its weights are overwritten. In the precision and on the kind of
            device of the run the loss is the dumped one.

    Returns:
        The mean loss over the step's targets.
    """
    dump = load_dump(path)
    task.load_state_dict(dump["model"])
    task.train()
    device = next(task.parameters()).device
    total, count = 0.0, 0
    for batch, rng in zip(dump["batches"], dump["rng"], strict=True):
        torch.set_rng_state(rng["cpu"])
        if device.type == "cuda" and "cuda" in rng:
            torch.cuda.set_rng_state(rng["cuda"], device)
        with torch.no_grad():
            output = task.loss(batch.to(device))  # type: ignore[operator]
        total, count = total + float(output.sum), count + int(output.count)
    return total / max(count, 1)
