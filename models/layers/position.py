"""Learned positions of packed tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.batch import Jagged

CountedFrom = Literal["newest", "oldest"]


class LearnedPositions(nn.Module):
    """A vector for each place in a row.

    Counted from the ``newest`` token (place 0), as in the papers, whose rows are padded on the left: the newest token
    always has the same place, which training sees at each row's end alone. Counted from the ``oldest``, a token's place
    does not depend on what comes later, so the state of a prefix is the same whether it stands alone or not. Both agree
    with a loader that cuts rows to their newest ``max_length`` tokens.

    Args:
        max_length: places; a longer row is an error.
        width: ``D``.
        counted_from: ``newest`` or ``oldest``.
    """

    def __init__(self, max_length: int, width: int, counted_from: CountedFrom) -> None:
        super().__init__()
        self.max_length, self.counted_from = max_length, counted_from
        self.table = nn.Embedding(max_length, width)

    def places(self, offsets: Tensor, tokens: int, longest: int | None = None) -> Tensor:
        """The place of each token, ``[T]`` int64.

        Args:
            offsets: ``[U + 1]`` int64, row borders.
            tokens: ``T``.
            longest: length of the longest row or a bound of it; where it is not given, a GPU's host waits for it.

        Raises:
            ValueError: a row is longer than ``max_length``.
        """
        rows = Jagged(torch.empty(tokens, 0, device=offsets.device), offsets)
        if longest is None:
            longest = int(rows.lengths.max()) if rows.num_rows else 0
        if longest > self.max_length:
            raise ValueError(
                f"a row has {longest} items, the model has learned positions for {self.max_length}: "
                "raise model.max_length or lower loader.max_length"
            )
        places = rows.position_of_token()
        return places if self.counted_from == "oldest" else (rows.lengths - 1)[rows.row_of_token()] - places

    def forward(self, places: Tensor) -> Tensor:
        """Vectors of ``places`` ``[T]``, ``[T, D]``."""
        return self.table(places)
