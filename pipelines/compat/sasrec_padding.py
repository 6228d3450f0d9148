"""SASRec and TiSASRec on rows padded to ``max_length``, padding taking part as in the public implementations.

There attention sees padding: as keys and values it shifts the states of every row shorter than ``maxlen``. These models
give what those give; they are for weights that were trained there (see pipelines/compat/sasrec_weights.py). This
project's own leave padding out, which is less work and says the same of a user whatever ``maxlen`` is.

TiSASRec's padding happens at t' = 0, one unit before the first event. Its scale is the smallest gap among the events
that the model sees; the public code takes it from all events of a user, those to be predicted among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from models.batch import SequenceBatch
from models.sasrec import SASRec, SASRecOptions
from models.tasks import Retrieval
from models.tisasrec import TiSASRec, TiSASRecOptions

_ROWS = 128  # at a time: a batch of many short rows would be mostly padding


def left_padded(batch: SequenceBatch, length: int) -> tuple[SequenceBatch, Tensor]:
    """The batch with every row filled up to ``length`` by older tokens of item 0.

    Returns:
        The batch (``items``, ``timestamps``, which are 0 at padding, and ``offsets``; the rest as it was), and which of
        its tokens are real, ``[U * length]`` bool.
    """
    rows, back = (
        batch.num_rows,
        (batch.lengths - 1)[:, None] - torch.arange(length - 1, -1, -1, device=batch.items.device),
    )
    real = (back >= 0).flatten()
    padded = {}
    for name in ("items", "timestamps"):
        values = getattr(batch, name)
        padded[name] = values.new_zeros(rows * length)
        padded[name][real] = values
    offsets = torch.arange(rows + 1, device=batch.offsets.device) * length
    return replace(batch, offsets=offsets, **padded), real


def own_scale(batch: SequenceBatch) -> SequenceBatch:
    """The batch with t' = round((t - t_first) / smallest gap above 0) + 1 of each row for its timestamps."""
    rows, times = batch.jagged(batch.timestamps), batch.timestamps
    row = rows.row_of_token()
    since = times - times[batch.offsets[:-1]][row]
    gaps = torch.where((row[1:] == row[:-1]) & (times.diff() > 0), times.diff(), torch.iinfo(torch.int64).max)
    smallest = torch.full((rows.num_rows,), torch.iinfo(torch.int64).max, device=times.device)
    smallest = smallest.scatter_reduce(0, row[1:], gaps, "amin")
    scaled = torch.round(since.to(torch.float64) / smallest[row]).to(torch.int64)
    return replace(batch, timestamps=scaled + 1)


def some_rows(batch: SequenceBatch) -> Iterator[SequenceBatch]:
    """The batch a few rows at a time; only what an encoder reads is cut."""
    for first in range(0, batch.num_rows, _ROWS):
        offsets = batch.offsets[first : first + _ROWS + 1]
        tokens = slice(int(offsets[0]), int(offsets[-1]))
        yield replace(
            batch, offsets=offsets - offsets[0], items=batch.items[tokens], timestamps=batch.timestamps[tokens]
        )


class PaddedSASRec(SASRec):
    """SASRec whose rows are padded on the left.

    Args:
        num_items: items in the catalogue.
        options: as SASRec's, without hyper-connections.
        masked: states of padding are set to 0 after each block (2020's form); else they go on.
    """

    def __init__(self, num_items: int, options: SASRecOptions, *, masked: bool) -> None:
        super().__init__(num_items, options)
        self.masked = masked

    def encode(self, batch: SequenceBatch) -> Tensor:
        """The state of each row's newest token, ``[U, D]``."""
        return torch.cat([Retrieval.encode(self, part) for part in some_rows(batch)])

    def token_states(self, batch: SequenceBatch) -> Tensor:
        """The state after each real token, ``[T, D]``."""
        padded, real = left_padded(batch, self.options.max_length)
        x = self.item_embedding(padded.items) * math.sqrt(self.options.hidden)
        x = x + self.positions(self.positions.places(padded.offsets, padded.num_tokens))
        x = self.dropout(x * real[:, None])  # [U * L, D]
        for block in self.blocks:
            x = block(x, padded.offsets)
            x = x * real[:, None] if self.masked else x
        return self.output_norm(x[real])


class PaddedTiSASRec(TiSASRec):
    """TiSASRec whose rows are padded on the left.

    Args:
        num_items: items in the catalogue.
        options: as TiSASRec's, with the paper's scale of time and without hyper-connections.
    """

    def __init__(self, num_items: int, options: TiSASRecOptions) -> None:
        super().__init__(num_items, replace(options, time_unit="second"))  # t' counts units already

    def encode(self, batch: SequenceBatch) -> Tensor:
        """The state of each row's newest token, ``[U, D]``."""
        return torch.cat([Retrieval.encode(self, part) for part in some_rows(batch)])

    def token_states(self, batch: SequenceBatch) -> Tensor:
        """The state after each real token, ``[T, D]``."""
        padded, real = left_padded(own_scale(batch), self.options.max_length)
        x = self.dropout(self.item_embedding(padded.items) * math.sqrt(self.options.hidden)) * real[:, None]
        places = self.position_keys.places(padded.offsets, padded.num_tokens)
        keys, values = self.dropout(self.position_keys(places)), self.dropout(self.position_values(places))
        tables = (keys, values, self.dropout(self.interval_keys.weight), self.dropout(self.interval_values.weight))
        for block in self.blocks:
            x = block(x, tables, padded) * real[:, None]
        return self.output_norm(x[real])
