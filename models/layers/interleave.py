"""Where the tokens of an interleaved row stand: contextual prefix, then item and action of each event, then candidates.

    c1 .. cC  i1 a1 i2 a2 .. iH aH  k1 .. kK

A candidate has no action token: what the user did with it is what is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.batch import Jagged, SequenceBatch


@dataclass(frozen=True, eq=False)
class Interleaved:
    """Places in the longer rows.

    Attributes:
        offsets: ``[U + 1]`` int64, borders of the longer rows.
        tokens: in all rows, ``N``.
        prefix: ``[U, C]``, places of each row's contextual tokens.
        item: ``[T]``, the place of each event's item.
        action: ``[H]``, the place of each history event's action.
        history: ``[T]`` bool, which events are history, not candidates.
        event: ``[T]``, which place in its row an event has, counted from the oldest; a candidate's is that of a
            candidate right after the history.
        num_candidates: ``[U]``, candidates at the end of each row.
    """

    offsets: Tensor
    tokens: int
    prefix: Tensor
    item: Tensor
    action: Tensor
    history: Tensor
    event: Tensor
    num_candidates: Tensor


def interleave(batch: SequenceBatch, context: int) -> Interleaved:
    """The places of the tokens of ``batch`` behind a prefix of ``context`` tokens a row.

    Where the batch has no candidates (``num_candidates`` None) all events are history.
    """
    lengths, none = batch.lengths, torch.zeros_like(batch.lengths)
    candidates = none if batch.num_candidates is None else batch.num_candidates
    past = lengths - candidates
    offsets = borders_of(context + 2 * past + candidates)
    rows = Jagged(batch.items, batch.offsets)
    row, place = rows.row_of_token(), rows.position_of_token()
    past_of_token = past.index_select(0, row)
    history = place < past_of_token
    item = offsets[:-1].index_select(0, row) + context + torch.where(history, 2 * place, past_of_token + place)
    prefix = offsets[:-1, None] + torch.arange(context, device=offsets.device)
    return Interleaved(
        offsets=offsets,
        tokens=context * batch.num_rows
        + 2 * batch.num_tokens
        - (0 if batch.num_candidates is None else int(candidates.sum())),
        prefix=prefix,
        item=item,
        action=item[history] + 1,
        history=history,
        event=torch.minimum(place, past_of_token),
        num_candidates=candidates,
    )


def borders_of(lengths: Tensor) -> Tensor:
    """Row borders ``[U + 1]`` of rows with ``lengths`` ``[U]``."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
