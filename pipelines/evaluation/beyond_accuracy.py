"""What a model shows rather than whether it is right: how much of the catalogue, and how popular.

Both are read off top-k lists that are made block by block; ``[users, items]`` is never there at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.batch import Jagged
from pipelines.evaluation.ranking import RankedTask, full_precision, has_vectors, require_finite
from pipelines.training.distributed import World


def top_k(
    task: RankedTask,
    states: Tensor,
    k: int,
    seen: Jagged | None = None,
    *,
    query_block: int = 1024,
    item_block: int = 4096,
) -> Tensor:
    """The ``k`` items of highest score for each query, best first; of equal scores the lower index.

    Args:
        task: gives item vectors or scores.
        states: ``[Q, D]``.
        k: items wanted.
        seen: ``Q`` rows of items that are not recommended; repeats are harmless. None leaves nothing out.
        query_block: queries scored at a time.
        item_block: items scored at a time.

    Returns:
        ``[Q, k]`` int64; 0 where fewer than ``k`` items are left.

    Raises:
        NonFiniteScoreError: a score is NaN or infinite.
    """
    queries = len(states)
    best = torch.full((queries, k), float("-inf"), device=states.device)
    items = torch.zeros(queries, k, dtype=torch.int64, device=states.device)
    with torch.inference_mode(), full_precision(states.device):
        for first in range(1, task.num_items + 1, item_block):
            ids = torch.arange(first, min(first + item_block, task.num_items + 1), device=states.device)
            vectors = task.item_vectors(ids).float() if has_vectors(task) else None
            for start in range(0, queries, query_block):
                rows = slice(start, min(start + query_block, queries))
                some = states[rows].float()
                scores = task.score_block(some, ids).float() if vectors is None else some @ vectors.T  # [u, n]
                if not torch.isfinite(scores.sum(dim=1)).all():  # a tenth of the time of looking at each; may overflow
                    require_finite(scores, start, queries)
                if seen is not None:
                    own = scores.clone() if vectors is None else scores  # a task may hand out a view of its own
                    scores = _without(own, seen, rows, first)
                value, place = _highest(scores, min(k, len(ids)))
                value, found = torch.cat([best[rows], value], dim=1), torch.cat([items[rows], first + place], dim=1)
                best[rows], place = _highest(value, k)
                items[rows] = found.gather(1, place)
    return torch.where(best > float("-inf"), items, 0)


def _without(scores: Tensor, seen: Jagged, rows: slice, first: int) -> Tensor:
    """``scores`` ``[u, n]`` of items ``first`` on, now minus infinity where the query has seen the item."""
    offsets = seen.offsets[rows.start : rows.stop + 1]
    item = seen.values[int(offsets[0]) : int(offsets[-1])].to(torch.int64) - first
    query = torch.repeat_interleave(torch.arange(len(scores), device=scores.device), offsets[1:] - offsets[:-1])
    inside = (item >= 0) & (item < scores.shape[1])
    scores[query[inside], item[inside]] = float("-inf")
    return scores


def _highest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` highest in each row and their places, best first, the first of equals."""
    values, places = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    equal = (values[:, 1:] == values[:, :-1]).any(dim=1)  # only there may topk take another, or order them otherwise
    values, places = values[:, :k].contiguous(), places[:, :k].contiguous()
    if equal.any():
        places[equal] = _highest_of_equals(scores[equal], k)
        values[equal] = scores[equal].gather(1, places[equal])
    return values, places


def _highest_of_equals(scores: Tensor, k: int) -> Tensor:
    """Places of the ``k`` highest in each row, best first, the first of equals."""
    border = scores.topk(k, dim=1).values[:, -1:]
    above, level = scores > border, scores == border
    room = k - above.sum(dim=1, keepdim=True)
    chosen = above | (level & (level.cumsum(dim=1) <= room))
    place = chosen.nonzero()[:, 1].view(len(scores), k)
    order = scores.gather(1, place).sort(dim=1, descending=True, stable=True).indices
    return place.gather(1, order)


def popularity_percentiles(counts: Tensor) -> Tensor:
    """The share of the catalogue that is less popular than each item, equals counting half.

    Args:
        counts: ``[num_items + 1]``, training events of each item; row 0 is padding.

    Returns:
        ``[num_items + 1]`` float64; the mean over all items is 0.5, padding is 0.
    """
    ordered = counts[1:].sort().values
    below = torch.searchsorted(ordered, counts[1:], right=False)
    up_to = torch.searchsorted(ordered, counts[1:], right=True)
    share = (below + up_to).double() / (2 * len(ordered))
    return torch.cat([share.new_zeros(1), share])


class Exposure:
    """Adds up what is recommended, batch after batch.

    Args:
        counts: ``[num_items + 1]``, training events of each item.
        ks: lengths of the lists.
    """

    def __init__(self, counts: Tensor, ks: Sequence[int]) -> None:
        self.ks = tuple(ks)
        self.percentiles = popularity_percentiles(counts.cpu())
        self.shown = torch.zeros(len(self.ks), counts.numel(), dtype=torch.int64)

    def observe(self, task: RankedTask, states: Tensor, seen: Jagged | None = None) -> None:
        """Recommend to the queries of ``states`` ``[Q, D]``, but nothing of ``seen``, and count."""
        items = top_k(task, states, min(max(self.ks), task.num_items), seen).cpu()
        for row, k in enumerate(self.ks):
            self.shown[row] += torch.bincount(items[:, :k].flatten(), minlength=self.shown.shape[1])

    def gather(self, world: World) -> None:
        """Add what the other processes have counted; to be called once, in all of them."""
        self.shown = torch.stack(world.gather(self.shown)).sum(dim=0)

    def metrics(self) -> dict[str, float]:
        """``Coverage@k`` and ``Popularity@k`` for each k.

        Coverage is the share of the catalogue that is in anybody's list. Popularity is the mean popularity percentile
        of all recommended items: 0.5 is what random lists have, 1 is the head alone (average recommendation popularity,
        Abdollahpouri et al. 2019, arXiv 1901.07555, in percentiles so that catalogues can be compared).
        """
        shown = self.shown[:, 1:]
        coverage = (shown > 0).double().mean(dim=1)
        popularity = (shown * self.percentiles[1:]).sum(dim=1) / shown.sum(dim=1).clamp(min=1)
        found = {}
        for k, covered, popular in zip(self.ks, coverage.tolist(), popularity.tolist(), strict=True):
            found[f"Coverage@{k}"], found[f"Popularity@{k}"] = covered, popular
        return found

    def of_targets(self, targets: Tensor) -> dict[str, float]:
        """``Coverage`` and ``Popularity`` of what was chosen, to read the lists' against.

        Args:
            targets: ``[Q]`` int64, the item that each query was about.
        """
        percentiles = self.percentiles[targets.cpu()]
        covered = len(torch.unique(targets)) / (self.shown.shape[1] - 1)
        return {"Coverage": covered, "Popularity": float(percentiles.mean())}
