"""Most popular items for everybody: the baseline that every number is read against."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.batch import SequenceBatch
from models.tasks import Retrieval


class Popularity(nn.Module):
    """Scores an item by how often it was chosen, whoever asks.

    As a retrieval task it is one-dimensional: every user's state is 1, an item's vector is its count.

    Args:
        counts: ``[num_items + 1]``, events of each item in the training data; row 0 is padding. Whole numbers up
            to 2^24 are exact in fp32, beyond that close counts tie.
    """

    counts: Tensor

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        self.num_items = counts.numel() - 1
        self.register_buffer("counts", counts.to(torch.float32).unsqueeze(1))  # [num_items + 1, 1]

    def encode(self, batch: SequenceBatch) -> Tensor:
        """The same state for every row, ``[U, 1]``."""
        return self.counts.new_ones(batch.num_rows, 1)

    def item_vectors(self, ids: Tensor) -> Tensor:
        """Counts of the items ``ids`` ``[n]``, ``[n, 1]``."""
        return self.counts[ids]

    score_block = Retrieval.score_block  # the plain dot product
