"""Who sees whom in HSTU's attention: as options, and as the per-token numbers that every implementation reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.batch import Jagged

# Columns of the numbers, all counted inside the row. Query i sees key j where j < UP_TO[i] or FROM[i] <= j < TO[i];
# no query before FIRST[j] sees key j; relative positions are differences of PLACE.
UP_TO, FROM, TO, FIRST, PLACE = range(5)


@dataclass(frozen=True, eq=False)
class AttentionMask:
    """The three masks of HSTU, which combine.

    Attributes:
        causal: a token sees itself and older tokens; False: every token of its row that is no target.
        num_context: ``[U]``, the oldest tokens of a row that are its contextual prefix: they see each other fully, and
            every token sees them. None: there is none.
        num_candidates: ``[U]``, the newest tokens of a row that are targets: they are seen by no history, and see the
            history and, causally, their own group. None: there are none.
        target_group_size: neighbouring targets that belong together (an item and its action: 2).
    """

    causal: bool = True
    num_context: Tensor | None = None
    num_candidates: Tensor | None = None
    target_group_size: int = 1

    def __post_init__(self) -> None:
        if self.target_group_size < 1:
            raise ValueError(f"target_group_size: {self.target_group_size} is less than 1")

    def seen(self, offsets: Tensor, tokens: int) -> Tensor:
        """The numbers of each token, ``[T, 5]`` int32.

        A target's place is that of a target right after the history, whatever targets stand between: its state is what
        it would be if its group were the only one.

        Raises:
            ValueError: offsets that do not end at T, or a prefix and targets that do not fit into their row (noticed on
                a CPU only: a GPU would wait).
        """
        if offsets.device.type == "cpu" and (int(offsets[0]), int(offsets[-1])) != (0, tokens):
            raise ValueError(f"offsets must run from 0 to the number of tokens, {tokens}, not to {int(offsets[-1])}")
        rows = Jagged(torch.empty(tokens, 0, device=offsets.device), offsets)
        of_token, i, group = rows.row_of_token(), rows.position_of_token(), self.target_group_size
        none = torch.zeros_like(rows.lengths)
        context = none if self.num_context is None else self.num_context.to(none)
        targets = none if self.num_candidates is None else self.num_candidates.to(none)
        if offsets.device.type == "cpu":
            _check(context, targets, rows.lengths)
        length, c = rows.lengths[of_token], context[of_token]
        history = length - targets[of_token]
        is_target = i >= history
        start = history + (i - history).clamp(min=0) // group * group  # of a target's group
        if self.causal:
            up_to = torch.where(i < c, c, i + 1)
            to, first = i + 1, torch.where(is_target, i, torch.where(i < c, 0, i))
        else:
            up_to, to = history, torch.minimum(start + group, length)
            first = torch.where(is_target, start, 0)
        place = torch.where(is_target, history + i - start, i)
        columns = (torch.where(is_target, history, up_to), *(torch.where(is_target, v, 0) for v in (start, to)))
        return torch.stack((*columns, first, place), 1).to(torch.int32)


def _check(context: Tensor, targets: Tensor, lengths: Tensor) -> None:
    for name, counts in (("num_context", context), ("num_candidates", targets)):
        if counts.shape != lengths.shape:
            raise ValueError(f"hstu_attention: {name} has shape {tuple(counts.shape)}, expected {tuple(lengths.shape)}")
        if counts.numel() and int(counts.min()) < 0:
            raise ValueError(f"hstu_attention: {name} is negative")
    over = (context + targets > lengths).nonzero()
    if over.numel():
        row = int(over[0])
        raise ValueError(
            f"hstu_attention: row {row} has {int(lengths[row])} tokens, fewer than its contextual prefix "
            f"({int(context[row])}) and targets ({int(targets[row])}) together"
        )


def visible(seen: Tensor, keys: Tensor) -> Tensor:
    """Whether each query of ``seen`` ``[..., L, 5]`` sees ``keys`` ``[L]`` (places in the row), ``[..., L, L]``."""
    up_to, start, to = (seen[..., column, None] for column in (UP_TO, FROM, TO))
    return (keys < up_to) | ((keys >= start) & (keys < to))
