"""How often a run updates and validates: as the trainer counts, a limit of updates included."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.config import RunConfig
from pipelines.estimate.volume import Volume


@dataclass(frozen=True)
class Schedule:
    """What a run's training consists of.

    Attributes:
        steps_per_epoch: updates of an epoch, accumulation counted.
        steps: updates in all.
        epochs: that these are.
        passes: validations.
        between: epochs from one validation to the next.
        queries: of a validation.
    """

    steps_per_epoch: int
    steps: int
    epochs: float
    passes: int
    between: float
    queries: int

    def targets(self, volume: Volume) -> int:
        """Of the whole run."""
        return round(self.epochs * volume.targets)


def schedule_of(config: RunConfig, volume: Volume) -> Schedule:
    """The schedule of a run that nothing ends early."""
    training = config.training
    per_epoch = -(-volume.batches // training.accumulate)
    steps = min(training.epochs * per_epoch, training.max_steps or 2**62)
    epochs = steps / per_epoch
    between = training.eval_steps / per_epoch if training.eval_steps else float(training.eval_every)
    passes = -(-steps // training.eval_steps) if training.eval_steps else math.ceil(epochs / training.eval_every)
    queries = min(volume.queries, training.valid_queries or volume.queries)
    return Schedule(per_epoch, steps, epochs, passes, between, queries)
