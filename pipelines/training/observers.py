"""Who looks on while a model trains: what the loop asks of a log and of debug mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from models.batch import SequenceBatch


class Log(Protocol):
    """Where the loop writes what happens: event file, trackers and progress display in one."""

    @property
    def tracker_ids(self) -> Mapping[str, str]:
        """Ids under which trackers know the run, for the checkpoint."""

    def write(self, kind: str, *, step: int, epoch: int, **values: float | str) -> None:
        """One event."""


class Watch(Protocol):
    """Debug mode: looks over the shoulder of every update."""

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Called once, before the first update."""

    def before_update(self, batch: SequenceBatch, step: int) -> None:
        """Called before the forward pass, with the RNG untouched."""

    def after_backward(self, loss: float, step: int, epoch: int) -> None:
        """Called after the backward pass; raises RunError when something is not finite."""
