"""How much memory a run of a ranking model takes: see :mod:`pipelines.estimate.memory`."""

from __future__ import annotations

import math

from pipelines.config import RunConfig
from pipelines.estimate.memory import MemoryModel
from pipelines.estimate.ranking_work import RankingWork
from pipelines.estimate.volume import Volume

BATCH_BYTES = 8 + 8 + 8 + 4 + 8  # an event's item, time, target (none), rating, action


class RankingMemoryModel(MemoryModel):
    """Memory without a catalogue's logits: a step peaks at the end of its forward pass or in the last block's backward.

    Args:
        config: the run.
        volume: its data.
        work: its model on the device.
        gpus: devices that share a global batch.
    """

    def __init__(self, config: RunConfig, volume: Volume, work: RankingWork, gpus: int = 1) -> None:
        super().__init__(config, volume, work, gpus)
        self.shape = work.shape

    def batch(self, rows: int, tokens: int) -> int:
        """Bytes of a batch."""
        labels = 1 if self.shape.kind == "classes" else self.shape.names
        return (BATCH_BYTES + 8 * labels) * tokens + (32 + 8 * len(self.shape.context)) * rows

    def computing(self, tokens: int) -> int:
        """Bytes that the loss allocates: logits and their gradients."""
        return math.ceil(3 * 4 * self.shape.names * self.shape.asked * tokens)

    def training_peak(self, rows: int, tokens: int) -> int:
        """Bytes at the peak of an update on a batch."""
        layers = self.work.layers
        kept = self.activations(rows, tokens)
        forward = kept + self.computing(tokens)
        backward = kept + math.ceil(layers.backward * tokens)
        return self.lasting(rows, tokens) + max(forward, backward, self.weights)  # at the end: all gradients

    def evaluation_peak(self, tokens_per_batch: int) -> int:
        """Bytes at the peak of a validation pass; its queries are not dealt to devices in this count."""
        tokens = min(self.volume.query_tokens, tokens_per_batch + self.volume.longest)
        working = self.work.layers.encode * tokens + self.batch(math.ceil(tokens / self.volume.window_length), tokens)
        return math.ceil(2 * self.weights + self.optimizer + working)
