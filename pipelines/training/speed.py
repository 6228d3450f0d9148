"""How fast a training is: targets a second and, where a model's work has been counted, FLOP/s and their share of peak.

FLOPs are the model's, counted from its shapes (so-called model FLOPs): what a kernel computes twice to save memory
counts once. They are those of this process, over its own share of the batches and against its own device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from models.batch import SequenceBatch


@dataclass(frozen=True)
class WorkOf:
    """What the log needs to know of a model and its device.

    Attributes:
        flops: FLOPs of a training token, given the mean number of tokens that a token shares its row with.
        peak: FLOP/s of the device in the run's number format; None where no data sheet says.
    """

    flops: Callable[[float], float]
    peak: float | None = None


class Speed:
    """Counts between two log lines.

    Args:
        work: FLOPs of a token, if somebody has counted them.
    """

    def __init__(self, work: WorkOf | None) -> None:
        self.work = work
        self.start(0)

    def start(self, targets: int) -> None:
        """Begin anew: what lies between is no training."""
        self.since, self.targets, self.tokens = time.monotonic(), targets, 0
        self.squares: Tensor | None = None  # on the device: reading it would make the host wait for every step

    def count(self, batch: SequenceBatch) -> None:
        """A batch of this process is about to be trained on."""
        if self.work is not None:
            squares = batch.lengths.double().square().sum()
            self.squares = squares if self.squares is None else self.squares + squares.to(self.squares.device)
            self.tokens += batch.num_tokens

    def measure(self, targets: int) -> dict[str, float]:
        """``tokens_per_s`` over all processes since the last call, given the targets so far, and begin anew.

        Where the work is known also ``tflops`` (of this process, 10^12 FLOP/s) and, where the peak is known, ``mfu``:
        the share of it, from 0 to 1.
        """
        seconds = time.monotonic() - self.since
        values = {"tokens_per_s": (targets - self.targets) / seconds}
        if self.work is not None and self.squares is not None:
            rate = self.work.flops(self.squares.item() / self.tokens) * self.tokens / seconds
            values["tflops"] = rate / 1e12
            if self.work.peak:
                values["mfu"] = rate / self.work.peak
        self.start(targets)
        return values
