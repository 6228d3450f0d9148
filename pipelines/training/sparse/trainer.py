"""The training loop with a sharded item table: what differs from the loop over tables that every process holds.

Between the backward pass and the dense update all processes hear the loss' count; there the table is updated too. Its
checkpoints are sharded. For evaluation, which asks for vectors at each process' own pace, every process reads a copy of
the table in main memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from models.batch import SequenceBatch
from pipelines.errors import RunError
from pipelines.training.optimizers import OptimizerOptions, learning_rate
from pipelines.training.sparse.managed_table import ManagedTable
from pipelines.training.sparse.options import EmbeddingOptions
from pipelines.training.sparse.paged_items import PagedLoss, Task, item_table, shard_items
from pipelines.training.sparse.table_files import check_shared, load_table, prune_tables, save_table
from pipelines.training.sparse.torchrec_table import ShardedTable
from pipelines.training.trainer import Trainer


class ShardedItems:
    """A task's item table, moved out of it and spread over the processes; collective, as are its methods.

    Args:
        task: on its device, with its table, which moves out of it and may lie in main memory.
        embedding: how the table is spread.
        optimizer: of the dense layers.
    """

    def __init__(self, task: Task, embedding: EmbeddingOptions, optimizer: OptimizerOptions) -> None:
        weight = item_table(task)
        (rows, width), device = weight.shape, next(p for p in task.parameters() if p is not weight).device
        kind = ManagedTable if embedding.capacity else ShardedTable
        self.table = kind(rows, width, embedding, device=device, eps=optimizer.eps)
        self.place = shard_items(task, self.table)

    def copy(self) -> None:
        """Give the task a copy of the whole table in main memory, for evaluation."""
        self.place.weight = self.table.gather()

    def load(self, checkpoints: Path, step: int) -> None:
        """Read the table of ``step`` and give the task a copy.

        Raises:
            RunError: in all processes, when one could not read its part.
        """
        load_table(self.table, checkpoints, step)
        self.copy()


class ShardedTrainer(Trainer):
    """A training whose item table TorchRec holds.

    Args:
        task: a task with its table, which moves out of it.
        arguments: as :class:`Trainer` takes them.
        embedding: how the table is spread.
        optimizer: of the dense layers; its schedule is the table's too.
        settings: as :class:`Trainer` takes them.
    """

    def __init__(
        self,
        task: Task,
        *arguments: Any,
        embedding: EmbeddingOptions,
        optimizer: OptimizerOptions,
        **settings: Any,
    ) -> None:
        self.embedding = embedding
        self.items = ShardedItems(task, embedding, optimizer)
        self.table = self.items.table
        super().__init__(task, *arguments, optimizer=optimizer, **settings)
        check_shared(self.checkpoints, self.world)
        loss: Any = getattr(self.loss, "module", self.loss)
        loss.__class__ = PagedLoss  # what DDP has wrapped stays the same object
        self.paged: PagedLoss = loss
        self.paged.table = self.table

    def update(self, group: list[SequenceBatch]) -> tuple[Tensor, Tensor]:
        """As ever; the table's learning rate has to be known when its rows are fetched."""
        lr = learning_rate(self.optimizer_options, self.state.step, self.total_steps, self.epoch_steps)
        self.paged.lr = lr * self.embedding.lr_scale
        return super().update(group)

    def hear(self, total: Tensor, count: int) -> tuple[Tensor, int]:
        """As ever; and the table's update, now that the count is known."""
        total, count = super().hear(total, count)
        self.paged.step(1 / max(count, 1))
        return total, count

    def judge_epoch(self) -> None:
        """As ever, over a copy of the table."""
        self.items.copy()
        super().judge_epoch()

    def save(self) -> None:
        """As ever, the table first.

        Raises:
            RunError: it is not finite, or the disk does not take it.
        """
        if not all(self.world.gather(self.table.finite())):
            raise RunError(
                "the item table is not finite; the checkpoints before stay",
                where=f"step {self.state.step}",
                fix="lower optimizer.lr or embedding.lr_scale, or look with --debug",
            )
        save_table(self.table, self.checkpoints, self.state.step, self.world)
        super().save()

    def put_down(self, random: list[dict[str, Any]]) -> None:
        """As ever; tables of checkpoints that go, go too."""
        super().put_down(random)
        prune_tables(self.checkpoints)

    def restore(self, path: Path) -> None:
        """As ever, and the table, whoever many wrote it."""
        super().restore(path)
        load_table(self.table, path.parent, int(path.name.removeprefix("step-")))

    def load_best_table(self) -> None:
        """Put the items of the best validation, which there is, into the task."""
        self.items.load(self.checkpoints, self.state.best_step)
