"""The training loop over spread blocks and a spread item table: both at once."""

from __future__ import annotations

from pipelines.training.dense.trainer import ParallelTrainer
from pipelines.training.sparse.trainer import ShardedTrainer


class ParallelShardedTrainer(ParallelTrainer, ShardedTrainer):
    """A training whose blocks lie in several processes each, and whose item table lies in all of them.

    The order matters: a row's gradient comes from every process of a group, and the table is trained where the count
    that it is divided by still counts each of them.
    """
