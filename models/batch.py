"""Jagged tensors and the batch of queries: the one currency between the data loader and the models.

A jagged tensor holds rows of different length end to end (``values``) with the row borders in ``offsets``. Nothing in
the default path is padded; a model whose kernel needs a rectangle makes its own padded view with
:meth:`Jagged.to_padded`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Jagged:
    """Rows of different length, end to end.

    Attributes:
        values: ``[T, ...]``, the tokens of all rows.
        offsets: ``[U + 1]`` int64; row ``u`` is ``values[offsets[u]:offsets[u + 1]]``.
    """

    values: Tensor
    offsets: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens in each row, ``[U]`` int64."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def num_rows(self) -> int:
        """Rows, ``U``."""
        return self.offsets.numel() - 1

    def row_of_token(self) -> Tensor:
        """The row each token belongs to, ``[T]`` int64."""
        rows = torch.arange(self.num_rows, device=self.offsets.device)
        return torch.repeat_interleave(rows, self.lengths, output_size=self.values.shape[0])

    def position_of_token(self) -> Tensor:
        """The place of each token in its row, from 0, ``[T]`` int64."""
        tokens = torch.arange(self.values.shape[0], device=self.offsets.device)
        return tokens - self.offsets[:-1].index_select(0, self.row_of_token())

    def last(self) -> Tensor:
        """The newest token of each row, ``[U, ...]``. Every row must hold at least one token."""
        return self.values.index_select(0, self.offsets[1:] - 1)

    def to_padded(self, length: int | None = None, fill: float = 0.0) -> Tensor:
        """A left-aligned rectangle ``[U, length, ...]``; ``length`` defaults to the longest row."""
        width = int(self.lengths.max()) if length is None else length
        padded = self.values.new_full((self.num_rows, width, *self.values.shape[1:]), fill)
        padded[self.row_of_token(), self.position_of_token()] = self.values
        return padded

    @staticmethod
    def from_padded(padded: Tensor, offsets: Tensor) -> Jagged:
        """The inverse of :meth:`to_padded`; gradients flow back into ``padded`` ``[U, L, ...]``."""
        tokens = int(offsets[-1])
        shape = Jagged(padded.new_empty(tokens, 0), offsets)
        return Jagged(padded[shape.row_of_token(), shape.position_of_token()], offsets)


@dataclass(frozen=True)
class FixedShape:
    """What is known on the host of a batch whose tensors have the same shapes at every step.

    Such a batch is filled up with rows that nobody reads, and with tokens without a target, which weigh nothing in the
    loss rather than being left out: nothing that is done with it depends on a value that the host would have to ask
    the device for.

    Attributes:
        longest: no row has more tokens.
        targets: how many tokens have a target.
    """

    longest: int
    targets: int


@dataclass(frozen=True)
class SequenceBatch:
    """Queries: each row is the newest part of one user's history, and what is asked about it.

    Token features share ``offsets``. Optional fields that a model does not need stay ``None``.

    Attributes:
        offsets: ``[U + 1]`` int64, row borders.
        items: ``[T]`` int64, item index of each event, 1 .. num_items (0 is padding and never appears).
        timestamps: ``[T]`` int64, seconds since the epoch, never decreasing inside a row.
        targets: ``[T]`` int64, the item that follows each token; 0 where no loss is asked for.
        request_time: ``[U]`` int64, seconds: when the row's last target happened (query-time aware models may read it).
        user_index: ``[U]`` int64, the row of the sequence store.
        ratings: ``[T]`` float32.
        actions: ``[T]`` int64, what the user did with each item: a class, or a bit mask.
        labels: ``[T, tasks]`` int64, what a ranking task predicts of each token: its class, or 0 or 1 for each bit.
        num_candidates: ``[U]`` int64, how many of the newest tokens are candidates: nothing is known of them but the
            item. None: every token is asked about, given those before it.
        context: features of the user, each ``[U]`` int64, 0 where unknown.
        context_offsets: ``[U + 1]`` int64 for those context features that are jagged themselves.
        all_targets: every token has a target; False where nobody looked.
        fixed: of a batch of fixed shape; None: as long as its rows are.
    """

    offsets: Tensor
    items: Tensor
    timestamps: Tensor
    targets: Tensor
    request_time: Tensor
    user_index: Tensor
    ratings: Tensor | None = None
    actions: Tensor | None = None
    labels: Tensor | None = None
    num_candidates: Tensor | None = None
    context: dict[str, Tensor] | None = None
    context_offsets: dict[str, Tensor] | None = None
    all_targets: bool = False
    fixed: FixedShape | None = None

    @property
    def num_rows(self) -> int:
        """Queries, ``U``."""
        return self.offsets.numel() - 1

    @property
    def num_tokens(self) -> int:
        """Events, ``T``."""
        return self.items.numel()

    @property
    def lengths(self) -> Tensor:
        """Events in each row, ``[U]`` int64."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def longest(self) -> int | None:
        """A bound of the rows' lengths where the host knows one, that is in a batch of fixed shape."""
        return None if self.fixed is None else self.fixed.longest

    def jagged(self, values: Tensor) -> Jagged:
        """``values`` ``[T, ...]`` with this batch's row borders."""
        return Jagged(values, self.offsets)

    def _map(self, function: Callable[[Tensor], Tensor]) -> SequenceBatch:
        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, dict):
                return {key: function(tensor) for key, tensor in value.items()}
            return value

        return replace(self, **{f.name: apply(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SequenceBatch:
        """The same batch on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor, always in the same order."""
        for field in fields(self):
            value = getattr(self, field.name)
            for entry in value.values() if isinstance(value, dict) else (value,):
                if isinstance(entry, Tensor):
                    yield entry

    def clone(self) -> SequenceBatch:
        """The same batch in memory of its own."""
        return self._map(lambda tensor: tensor.clone())

    def pin_memory(self) -> SequenceBatch:
        """The same batch in page-locked memory, for copies that overlap with computing."""
        return self._map(lambda tensor: tensor.pin_memory())
