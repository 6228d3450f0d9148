"""Ranking: how would this user act on these items? The trainer knows `loss` alone, the evaluator `predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batch import SequenceBatch
from models.tasks import LossOutput

ActionKind = Literal["classes", "bits"]


@dataclass(frozen=True)
class RankingData:
    """What a ranking model needs to know of its data.

    Attributes:
        kind: an action is one of several ``classes`` (a rating), or a mask of ``bits`` (click, like, ...).
        names: of the classes, or of the bits, lowest first.
        context: how many codes each user feature has, 0 (unknown) among them.
    """

    kind: ActionKind
    names: Sequence[str]
    context: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_actions(self) -> int:
        """Different actions that an action token can be."""
        return len(self.names) if self.kind == "classes" else 1 << len(self.names)


class Ranking(nn.Module):
    """A model that predicts actions; it derives from this class and writes :meth:`predict`.

    Bits are tasks of their own, each with binary cross-entropy; classes share one cross-entropy.

    Args:
        num_items: items in the catalogue; indices are 1 .. num_items.
        data: what actions are.
        outputs: numbers that ``predict`` makes of a candidate.

    Attributes:
        query_time: ``aware`` where the time of what is asked about is an input.

    Raises:
        ValueError: as many outputs as there are names are needed.
    """

    query_time: str = "blind"

    def __init__(self, num_items: int, data: RankingData, outputs: int) -> None:
        super().__init__()
        if outputs != len(data.names):
            raise ValueError(f"{outputs} outputs for {len(data.names)} {data.kind}: {', '.join(data.names)}")
        self.num_items, self.data = num_items, data

    def predict(self, batch: SequenceBatch) -> Tensor:
        """Logits of what is asked about, row by row, ``[n, tasks]`` (or classes).

        ``n`` is the sum of ``batch.num_candidates``, or every token where that is None. The logits of one candidate
        depend on no other candidate and on nothing that happened after it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define predict")

    def loss(self, batch: SequenceBatch) -> LossOutput:
        """The training loss of what is asked about: a mean over tasks, summed over candidates."""
        logits, labels = self.predict(batch), asked_labels(batch)  # [n, tasks]
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        if self.data.kind == "classes":
            return LossOutput(functional.cross_entropy(logits, labels[:, 0], reduction="sum"), len(logits))
        total = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
        return LossOutput(total / logits.shape[1], len(logits))


def asked_labels(batch: SequenceBatch) -> Tensor:
    """The labels of what is asked about, ``[n, tasks]``.

    Raises:
        ValueError: the batch has no labels.
    """
    if batch.labels is None:
        raise ValueError("a ranking task needs a batch with labels: its data have no actions")
    chosen = asked_tokens(batch)
    return batch.labels if chosen is None else batch.labels[chosen]


def asked_tokens(batch: SequenceBatch) -> Tensor | None:
    """Which tokens are asked about, ``[T]`` bool; None for all."""
    if batch.num_candidates is None:
        return None
    rows = batch.jagged(batch.items)
    history = batch.lengths - batch.num_candidates
    return rows.position_of_token() >= history.index_select(0, rows.row_of_token())


def check_actions(actions: Tensor | None) -> Tensor:
    """The actions ``[T]`` of a batch.

    Raises:
        ValueError: it has none.
    """
    if actions is None:
        raise ValueError("a ranking task reads actions, which this batch does not have")
    return actions.to(torch.int64)
