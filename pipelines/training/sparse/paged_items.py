"""A task whose item table lies elsewhere: the rows of a step are fetched once, and are the task's table for that step.

A step needs the rows of its items, targets and negatives. They are fetched in one lookup into a *page* ``[n + 1, D]``
(row 0 padding), the batch's items are renumbered to rows of it, and the page stands where the model expects its table.
So a model runs unchanged, the loss touches n rows instead of all, and an item that stands in a batch a hundred times
travels once. The page is a leaf: its gradient goes to the table in one update, once the loss' count is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import SequenceBatch
from models.losses import draw_negatives
from models.ranking import Ranking
from models.tasks import LossOutput, Retrieval, default_generator
from pipelines.errors import ConfigError
from pipelines.training.distributed import Loss
from pipelines.training.sparse.torchrec_table import ShardedTable

Task = Retrieval | Ranking


def item_table(task: Task) -> Tensor:
    """The task's table of item vectors, ``[num_items + 1, D]``."""
    weight: Tensor = task.item_embedding.weight  # type: ignore[union-attr, assignment]
    return weight


class PagedItems(nn.Module):
    """Stands in for a task's ``item_embedding``: has its ``weight``, which is the page, or all items at evaluation.

    It has no parameters, so that neither DDP nor the optimiser nor a checkpoint of the task meets the table.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding_dim = width
        self.weight = torch.zeros(1, width)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the page ``[..., D]``. All items may lie in main memory when ``ids`` are on a GPU."""
        return F.embedding(ids.to(self.weight.device), self.weight).to(ids.device)


@dataclass
class Page:
    """The rows of one step.

    Attributes:
        fetched: ``[n, D]`` as the lookup gave them; their backward pass trains the table.
        leaf: ``[n + 1, D]``, what the model sees; row 0 is padding.
        ids: ``[n + 1]`` sorted item indices, the first is 0.
    """

    fetched: Tensor
    leaf: Tensor
    ids: Tensor

    def rows(self, items: Tensor) -> Tensor:
        """Rows of the page for item indices of any shape."""
        return torch.searchsorted(self.ids, items)


class PagedLoss(Loss):
    """What DDP wraps when the table is sharded: :class:`Loss` over pages. Made from one by :func:`shard_items`."""

    table: ShardedTable
    page: Page
    lr: float  # of the coming step

    def forward(self, batch: SequenceBatch) -> LossOutput:
        """The loss of this process' share; with an empty one it still takes part in the lookup."""
        if not batch.num_rows:
            self.page = self.fetch(batch.items)
            return super().forward(batch)
        task: Task = self.task  # type: ignore[assignment]
        if isinstance(task, Ranking):  # reads the items of its histories and candidates, draws none
            self.turn(batch.items)
            return task.loss(replace(batch, items=self.page.rows(batch.items)))
        targets = batch.targets[batch.targets > 0]
        generator = default_generator(targets.device)
        drawn = draw_negatives(task.loss_options, task.num_items, targets, generator, task.popularity)
        self.turn(torch.cat([batch.items, targets, drawn.negatives.flatten()]))
        task.drawn = replace(drawn, negatives=self.page.rows(drawn.negatives))
        return task.loss(replace(batch, items=self.page.rows(batch.items), targets=self.page.rows(batch.targets)))

    def turn(self, items: Tensor) -> None:
        """Make the rows of ``items`` the task's table. Collective."""
        self.page = self.fetch(items)
        self.task.item_embedding.weight = self.page.leaf  # type: ignore[union-attr]

    def fetch(self, items: Tensor) -> Page:
        """The rows of ``items`` and padding. Collective."""
        ids = torch.unique(torch.cat([items.new_zeros(1), items]))
        fetched = self.table.fetch(ids[1:], self.lr)
        leaf = torch.cat([fetched.new_zeros(1, fetched.shape[1]), fetched.detach()]).requires_grad_()
        return Page(fetched, leaf, ids)

    def step(self, share: float) -> None:
        """Train the page's rows by ``share`` times its gradient, summed over processes. Collective."""
        leaf = self.page.leaf
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        self.table.step(self.page.fetched, gradient[1:] * share)


def shard_items(task: Task, table: ShardedTable) -> PagedItems:
    """Move ``task``'s item table into ``table``; the task keeps a place for pages.

    Raises:
        ConfigError: the task's loss is neither :class:`Retrieval`'s, which takes negatives that were drawn beforehand,
            nor :class:`Ranking`'s, which needs none.
    """
    if type(task).loss not in (Retrieval.loss, Ranking.loss):
        what = f"{type(task).__name__} has a loss of its own over the whole table"
        raise ConfigError(what, where="embedding.sharding", fix="use data_parallel")
    table.fill(item_table(task).detach())
    paged = PagedItems(table.width)
    task.item_embedding = paged
    return paged
