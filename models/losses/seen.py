"""The items of a token's own history, which a loss may leave out as evaluation does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """Each token's history: runs of a batch's events.

    Attributes:
        items: ``[T]`` int64, the items of the batch's events, 1 .. num_items.
        first: ``[M]`` int64, the place in ``items`` where the token's row begins.
        last: ``[M]`` int64, the place of the token itself; ``items[first:last + 1]`` has been seen.
        longest: events in the longest history.
    """

    items: Tensor
    first: Tensor
    last: Tensor
    longest: int

    @staticmethod
    def of_rows(items: Tensor, offsets: Tensor, tokens: Tensor | None = None, *, longest: int | None = None) -> Seen:
        """The histories inside rows with the borders ``offsets`` ``[U + 1]``.

        Of all tokens, or of those that ``tokens`` ``[T]`` bool names. Where the ``longest`` row's length, or a bound of
        it, is not given, a GPU's host waits for it.
        """
        lengths = offsets.diff()
        last = torch.arange(items.numel(), device=items.device)
        first = torch.repeat_interleave(offsets[:-1], lengths, output_size=items.numel())
        if tokens is not None:
            first, last = first[tokens], last[tokens]
        if longest is None:
            longest = int(lengths.max()) if lengths.numel() else 0
        return Seen(items, first, last, longest)

    def columns(self, rows: slice) -> Tensor:
        """``[C, longest]`` int64: what the tokens ``rows`` have seen, from 0; short histories repeat their oldest."""
        back = torch.arange(self.longest, device=self.items.device)
        places = torch.maximum(self.last[rows, None] - back, self.first[rows, None])
        return self.items[places] - 1
