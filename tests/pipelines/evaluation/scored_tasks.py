"""Tasks whose scores can be worked out by hand, for the tests of ranking, sampling and lists."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.batch import Jagged, SequenceBatch
from models.tasks import Retrieval


class Vectors:
    """A task that scores by dot product, the default; row 0 of the table is padding."""

    score_block = Retrieval.score_block

    def __init__(self, table: Tensor) -> None:
        self.table, self.num_items = table, len(table) - 1

    def item_vectors(self, ids: Tensor) -> Tensor:
        return self.table[ids]


class Scores:
    """The same scores from a task that has no vectors to show."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.num_items = table, len(table) - 1

    def score_block(self, states: Tensor, ids: Tensor) -> Tensor:
        return states @ self.table[ids].T


class LastItem(nn.Module):
    """Scores item j by -|j - newest item - 1|: a model whose ranks can be computed by hand."""

    score_block = Retrieval.score_block

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.num_items, self.rows_seen, self.longest = num_items, 0, 0
        self.dropout = nn.Dropout(0.5)

    def encode(self, batch: SequenceBatch) -> Tensor:
        assert not self.training
        self.rows_seen += batch.num_rows
        self.longest = max(self.longest, int(batch.lengths.max()))
        wanted = batch.items[batch.offsets[1:] - 1].float() + 1
        return torch.stack([2 * wanted, torch.full_like(wanted, -1.0)], dim=1)  # 2 w j - j^2 = w^2 - (w - j)^2

    def item_vectors(self, ids: Tensor) -> Tensor:
        return torch.stack([ids.float(), ids.float() ** 2], dim=1)


def jagged(rows: list[list[int]]) -> Jagged:
    lengths = torch.tensor([0] + [len(row) for row in rows])
    return Jagged(torch.tensor([item for row in rows for item in row], dtype=torch.int64), lengths.cumsum(0))
