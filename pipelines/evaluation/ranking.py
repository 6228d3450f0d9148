"""Full ranking: how many items stand before each query's target. Counted in blocks; nothing is sorted.

The rank of a target is ``1 + #(items not excluded, other than the target, whose score is at least the target's)``:
ties count against the target. **Seen items** are excluded, except that a target which was seen before is still a
candidate (as in RecBole and SASRec's evaluation). A score is the dot product of state and item vector **rounded once
to fp32**.

Two matrix products of different shapes may differ in the last bits of the same dot product (measured: a product for
one user agrees with one for 512 users in 19% of all scores, bit for bit), so equal items could fail to tie, and ranks
would depend on the block size. Therefore the fp32 product only decides what it can decide: it is off by at most
``gamma_D |state| |item|``, with ``gamma_D = D u / (1 - D u)`` and ``u = 2^-24``, in whatever order it adds (Higham,
*Accuracy and Stability of Numerical Algorithms*, 3.1). Items further from the target's score than that are counted
from the block; the few that are closer are recomputed in fp64 and rounded. Ranks are thus the same for every block
size, thread count and device.

A task that overrides ``score_block`` has an arithmetic of its own: its scores are taken as they come, the target's
from the same block as everyone else's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from models.batch import Jagged, SequenceBatch
from models.tasks import Retrieval
from pipelines.errors import DataError, RecPodError

METRICS = ("HR", "Recall", "NDCG", "MRR")
_UNIT = 2.0**-24  # unit roundoff of fp32
_LANE = 255  # masks are added up as bytes, eight columns an int64: 255 rows fit before a byte runs over
_PAIRS = 1 << 17  # pairs recomputed in fp64 at a time: 64 MB at D = 64


class RankedTask(Protocol):
    """What the ranking needs of a task."""

    num_items: int

    def score_block(self, states: Tensor, ids: Tensor) -> Tensor:
        """Scores of items ``ids`` ``[n]`` for ``states`` ``[U, D]``, ``[U, n]``."""


class VectorTask(RankedTask, Protocol):
    """A task whose scores are dot products, as :meth:`models.tasks.Retrieval.score_block` makes them."""

    def item_vectors(self, ids: Tensor) -> Tensor:
        """Vectors of items ``ids`` ``[n]``, ``[n, D]``."""


def has_vectors(task: RankedTask) -> TypeGuard[VectorTask]:
    """Whether the task's scores are the plain dot products; one that scores otherwise needs no vectors."""
    return type(task).score_block is Retrieval.score_block


class EvaluatedTask(RankedTask, Protocol):
    """What the evaluator needs: a ranked task that makes states of batches, and can be told not to train."""

    training: bool

    def encode(self, batch: SequenceBatch) -> Tensor:
        """A state for each row, ``[U, ...]`` float32; what it means is the task's own business."""

    def eval(self) -> Any:
        """Evaluation mode."""

    def train(self, mode: bool) -> Any:
        """Training mode, or not."""

    def state_dict(self) -> dict[str, Any]:
        """Its tensors; they tell the device."""


class NonFiniteScoreError(RecPodError):
    """A NaN or infinite score: it has no rank.

    Args:
        queries: ``[n]`` int64, positions of the queries that have one.
        total: how many queries were asked.
        first: the name of the first of them, e.g. ``user 17``.
    """

    def __init__(self, queries: Tensor, total: int, first: str | None = None) -> None:
        self.queries, self.total = queries, total
        name = first or f"query {int(queries[0])}"
        super().__init__(
            f"{queries.numel()} of {total} queries have a score that is not finite, the first is {name}",
            fix="The weights are broken: evaluate an earlier checkpoint, or train with --debug to find the origin",
        )


def count_ranks(
    task: RankedTask,
    states: Tensor,
    targets: Tensor,
    seen: Jagged | None = None,
    *,
    query_block: int | None = None,
    item_block: int | None = None,
) -> Tensor:
    """The rank of each query's target in the full catalogue 1 .. ``task.num_items``.

    Args:
        task: gives item vectors or scores.
        states: ``[Q, D]``, one state a query.
        targets: ``[Q]`` int64, item indices.
        seen: ``Q`` rows of item indices that do not compete; repeats are harmless. None excludes nothing.
        query_block: queries scored at a time; the default suits the device.
        item_block: items scored at a time. Neither changes the result.

    Returns:
        ``[Q]`` int64 on the device of ``states``; 1 is best, ``num_items`` the worst.

    Raises:
        NonFiniteScoreError: a score is NaN or infinite.
        DataError: a target or a seen item outside the catalogue.
    """
    for name, items in (("targets", targets), *(() if seen is None else (("seen items", seen.values),))):
        low, high = (int(edge) for edge in items.aminmax()) if items.numel() else (1, 1)
        if low < 1 or high > task.num_items:
            raise DataError(f"{name} reach from {low} to {high}, items from 1 to {task.num_items}")
    default_queries, default_items = (4096, 64 * _LANE) if states.is_cuda else (1024, 16 * _LANE)
    blocks = (query_block or default_queries, item_block or default_items)
    with torch.inference_mode(), full_precision(states.device):
        finite = torch.isfinite(states).all(dim=1)
        if not finite.all():
            raise NonFiniteScoreError((~finite).nonzero().squeeze(1), len(states))
        if has_vectors(task):
            return _by_vectors(task, states.float(), targets, seen, *blocks)
        return _by_scores(task, states.float(), targets, seen, *blocks)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32 or bf16 inside matrix products: the error bound is one of fp32."""
    # One by one: torch.get_float32_matmul_precision raises once anybody has set these.
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    previous = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device_type=device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, previous, strict=True):
            backend.fp32_precision = precision


def _by_vectors(
    task: VectorTask, states: Tensor, targets: Tensor, seen: Jagged | None, query_block: int, item_block: int
) -> Tensor:
    """Ranks where a score is a dot product."""
    queries, width = states.shape
    norms = states.double().norm(dim=1)  # [Q]
    target_scores = _target_scores(task, states, targets)
    gamma = width * _UNIT / (1 - width * _UNIT)
    ranks = torch.ones(queries, dtype=torch.int64, device=states.device)
    block = _Block(min(query_block, queries), min(item_block, task.num_items), states.device)
    for first in range(1, task.num_items + 1, item_block):
        ids = torch.arange(first, min(first + item_block, task.num_items + 1), device=states.device)
        vectors = task.item_vectors(ids).float()  # [n, D]
        longest = float(vectors.double().norm(dim=1).max())
        if not math.isfinite(longest):
            raise NonFiniteScoreError(torch.arange(queries), queries)
        # One u more for rounding the exact score, 4 u of the target's for rounding the borders; underflow apart.
        margins = norms * (longest * (gamma + _UNIT)) + 4 * _UNIT * target_scores.double().abs() + width * 2.0**-126
        for start in range(0, queries, query_block):
            rows = slice(start, min(start + query_block, queries))
            block.score(states[rows], vectors)
            if longest * float(norms[rows].max()) > 1e38:  # else no sum can overflow
                require_finite(block.scores.T[: rows.stop - start], start, queries)
            out = _not_competing(seen, targets, rows, first, len(ids), len(ids) == task.num_items)
            ranks[rows] += block.count(target_scores[rows], margins[rows], *out)
    return ranks


class _Block:
    """Scores of some items (rows) for some queries (columns), and who stands before the targets.

    Items by row, because the borders then lie along the contiguous dimension and masks add up row to row. The three
    buffers live as long as the count: fresh ones cost more than the comparisons (page faults).
    """

    def __init__(self, queries: int, items: int, device: torch.device) -> None:
        columns, rows = _multiple(queries, 8), _multiple(items, _LANE)
        self._scores = torch.empty(columns * rows, device=device)
        self._above = torch.empty(columns * rows, dtype=torch.bool, device=device)
        self._not_below = torch.empty_like(self._above)

    def score(self, states: Tensor, vectors: Tensor) -> None:
        """``states`` ``[queries, D]``, ``vectors`` ``[items, D]``."""
        self.num_queries, self.num_items = len(states), len(vectors)
        self.columns = _multiple(self.num_queries, 8)  # eight columns are one int64 of a mask
        self.states = torch.nn.functional.pad(states, (0, 0, 0, self.columns - self.num_queries))  # [u, D]
        self.vectors = vectors  # [n, D]
        self.scores = self._scores[: self.num_items * self.columns].view(self.num_items, self.columns)  # [n, u]
        torch.mm(vectors, self.states.T, out=self.scores)

    def count(self, target_scores: Tensor, margins: Tensor, query: Tensor, item: Tensor) -> Tensor:
        """Items at least as good as each query's target, ``[queries]`` int64, but for the pairs ``(query, item)``."""
        padding = (0, self.columns - self.num_queries)
        target_scores = torch.nn.functional.pad(target_scores, padding, value=math.inf)  # nothing beats padding
        margins = torch.nn.functional.pad(margins, padding)
        above = self._mask(self._above, torch.gt, (target_scores.double() + margins).float())
        not_below = self._mask(self._not_below, torch.ge, (target_scores.double() - margins).float())
        excluded = item * self.columns + query
        for mask in (above, not_below):
            mask.view(-1).index_fill_(0, excluded, False)
        counted = _true_in_columns(above)
        not_below.view(torch.int64).bitwise_xor_(above.view(torch.int64))  # now: those too close to tell
        counted += self._close_wins(not_below.view(torch.int64), target_scores)
        return counted[: self.num_queries]

    def _mask(self, buffer: Tensor, compare: Callable[..., Tensor], border: Tensor) -> Tensor:
        """``compare(scores, border)``, rows filled up with False to a multiple of what a byte can count."""
        rows = _multiple(self.num_items, _LANE)
        mask = buffer[: rows * self.columns].view(rows, self.columns)
        compare(self.scores, border, out=mask[: self.num_items])
        mask[self.num_items :] = False
        return mask

    def _close_wins(self, close: Tensor, target_scores: Tensor) -> Tensor:
        """Pairs too close for fp32 (bytes of ``close`` ``[rows, u / 8]``) that reach the target, ``[u]`` int64."""
        row, word = close.nonzero(as_tuple=True)
        hit = close[row, word].view(torch.uint8).nonzero().squeeze(1)  # byte of a word: one query of its eight
        item, query = row[hit // 8], word[hit // 8] * 8 + hit % 8
        wins = torch.zeros(self.columns, dtype=torch.int64, device=close.device)
        for pair in range(0, len(item), _PAIRS):
            i, q = item[pair : pair + _PAIRS], query[pair : pair + _PAIRS]
            won = exact_scores(self.states[q], self.vectors[i]) >= target_scores[q]
            wins += torch.bincount(q[won], minlength=self.columns)
        return wins


def exact_scores(states: Tensor, vectors: Tensor) -> Tensor:
    """Dot products along the last dimension, fp32. Products of fp32 numbers are exact in fp64: one rounding is seen."""
    return (states.double() * vectors.double()).sum(dim=-1).float()


def _target_scores(task: VectorTask, states: Tensor, targets: Tensor) -> Tensor:
    """The score of each query's target, ``[Q]`` fp32."""
    scores = states.new_empty(len(states))
    for start in range(0, len(states), _PAIRS):
        rows = slice(start, start + _PAIRS)
        scores[rows] = exact_scores(states[rows], task.item_vectors(targets[rows]).float())
    require_finite(scores[:, None], 0, len(scores))
    return scores


def _multiple(number: int, of: int) -> int:
    """``number`` rounded up."""
    return -(-number // of) * of


def _true_in_columns(mask: Tensor) -> Tensor:
    """Trues in each column of a bool ``[255 g, u]``, ``[u]`` int64, eight columns an addition."""
    groups, columns = mask.shape[0] // _LANE, mask.shape[1]
    lanes = mask.view(torch.int64).view(groups, _LANE, columns // 8).sum(dim=1)
    return lanes.view(torch.uint8).view(groups, columns).sum(dim=0, dtype=torch.int64)


def _not_competing(
    seen: Jagged | None, targets: Tensor, rows: slice, first: int, num_items: int, whole: bool
) -> tuple[Tensor, Tensor]:
    """Pairs (query, item) of the block that are out: seen items, and every target against itself.

    ``whole``: the block holds the whole catalogue.
    """
    query = torch.arange(rows.stop - rows.start, device=targets.device)
    item = targets[rows] - first
    if seen is not None:
        offsets = seen.offsets[rows.start : rows.stop + 1]
        begin, end = int(offsets[0]), int(offsets[-1])
        item = torch.cat([item, seen.values[begin:end].to(torch.int64) - first])
        query = torch.cat([query, torch.repeat_interleave(query, offsets[1:] - offsets[:-1], output_size=end - begin)])
    if whole:  # choosing costs as much as excluding
        return query, item
    inside = (item >= 0) & (item < num_items)
    return query[inside], item[inside]


def _by_scores(
    task: RankedTask, states: Tensor, targets: Tensor, seen: Jagged | None, query_block: int, item_block: int
) -> Tensor:
    """Ranks where the task scores by itself: all items at once, for so few queries that they fit."""
    queries = len(states)
    query_block = max(1, min(query_block, query_block * item_block // task.num_items))
    ids = torch.arange(1, task.num_items + 1, device=states.device)
    ranks = torch.empty(queries, dtype=torch.int64, device=states.device)
    for start in range(0, queries, query_block):
        rows = slice(start, min(start + query_block, queries))
        scores = torch.cat(
            [task.score_block(states[rows], block).float() for block in torch.split(ids, item_block)], dim=1
        )
        require_finite(scores, start, queries)
        before = scores >= scores.gather(1, targets[rows, None] - 1)
        before[_not_competing(seen, targets, rows, 1, task.num_items, True)] = False
        ranks[rows] = 1 + before.count_nonzero(dim=1)
    return ranks


def require_finite(scores: Tensor, start: int, total: int) -> None:
    """Raise for rows of ``scores`` ``[u, n]`` that are not finite; row 0 is query ``start``."""
    finite = torch.isfinite(scores).all(dim=1)
    if not finite.all():
        raise NonFiniteScoreError((~finite).nonzero().squeeze(1) + start, total)


def cutoff_of(metric: str) -> int | None:
    """The cut-off of a metric of ranks, 10 of ``NDCG@10``; None for any other name."""
    kind, _, cutoff = metric.partition("@")
    known = kind in METRICS and re.fullmatch("[1-9][0-9]*", cutoff) is not None
    return int(cutoff) if known else None


def metric_values(ranks: Tensor, name: str) -> Tensor:
    """One metric for each query: ``HR@k``, ``Recall@k``, ``NDCG@k`` or ``MRR@k`` with one relevant item.

    A query has one target, so the share of targets that is found (Recall) is whether any is (HR). Of a user with
    several targets, as after a cut in time, each is a query of its own, asked with the history up to it.

    Args:
        ranks: ``[Q]``, 1 is best.
        name: e.g. ``NDCG@10``: ``1 / log2(rank + 1)`` where the rank is at most 10, else 0.

    Returns:
        ``[Q]`` float64.
    """
    cutoff = cutoff_of(name)
    if cutoff is None:
        raise ValueError(f"unknown metric {name}")
    rank = ranks.double()
    kind = name.partition("@")[0]
    gain = {"MRR": 1 / rank, "NDCG": 1 / torch.log2(rank + 1)}.get(kind, torch.ones_like(rank))
    return torch.where(rank <= cutoff, gain, 0.0)


def metrics_from_ranks(ranks: Tensor, ks: Sequence[int]) -> dict[str, float]:
    """Means over queries of every metric at each k.

    Args:
        ranks: ``[Q]``, 1 is best; at least one query.
        ks: cut-offs.
    """
    if not len(ranks):
        raise DataError("there is no query to take a mean over")
    return {name: float(metric_values(ranks, name).mean()) for name in metric_names(ks)}


def metric_names(ks: Sequence[int]) -> list[str]:
    """The metrics of ranks at the cut-offs ``ks``."""
    return [f"{kind}@{k}" for k in ks for kind in METRICS]
