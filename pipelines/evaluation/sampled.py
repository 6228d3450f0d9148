"""Ranking among a few sampled items, as papers before 2020 did. For comparison with their numbers and for nothing else.

Which items are drawn for a query depends on the seed, the query and the user's history alone: not on the model, the
order of the queries or the size of the batches, so two models are asked the same.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.batch import Jagged
from pipelines.errors import DataError
from pipelines.evaluation.ranking import (
    NonFiniteScoreError,
    RankedTask,
    VectorTask,
    exact_scores,
    full_precision,
    has_vectors,
    require_finite,
)

_CELLS = 1 << 23  # numbers of candidates' vectors, or scores, held at a time: 64 MB of float64


def draw_negatives(
    seen: Jagged, targets: Tensor, keys: np.ndarray, num_items: int, count: int, *, seed: int = 0
) -> Tensor:
    """Items drawn uniformly, with replacement as in SASRec's evaluation, from those neither seen nor the target.

    The r-th item that is left is found by counting, not by drawing until one fits: every query costs the same.

    Args:
        seen: ``Q`` rows, the history of each query; repeats are harmless.
        targets: ``[Q]`` int64.
        keys: ``[Q]`` int64, a number for each query that tells it from every other: its event's place in the store.
        num_items: items are 1 .. ``num_items``.
        count: draws for each query.
        seed: of all draws.

    Returns:
        ``[Q, count]`` int64 on the device of ``targets``.

    Raises:
        DataError: a query whose history and target leave no item.
    """
    queries, width = len(targets), num_items + 1
    row = np.concatenate([seen.row_of_token().cpu().numpy(), np.arange(queries)])
    item = np.concatenate([seen.values.cpu().numpy().astype(np.int64), targets.cpu().numpy()])
    out = np.unique(row * width + item)  # by query, then by item: what is not drawn
    row, item = out // width, out % width
    excluded = np.bincount(row, minlength=queries)
    left = num_items - excluded
    if queries and int(left.min()) < 1:
        raise DataError(f"{int((left < 1).sum())} queries leave no item to draw: their users have seen the catalogue")
    begin = np.cumsum(excluded) - excluded
    place = np.arange(len(row)) - begin[row]  # 0 is the lowest excluded item of its query
    left_below = row * width + (item - 1 - place)  # so many items that are left have a lower index; never descends
    drawn = _numbers(keys, count, seed) % left[:, None].astype(np.uint64)  # [Q, count], from 0
    drawn = drawn.astype(np.int64)
    asked = np.arange(queries)[:, None] * width + drawn
    skipped = np.searchsorted(left_below, asked.ravel(), side="right").reshape(asked.shape) - begin[:, None]
    return torch.from_numpy(drawn + 1 + skipped).to(targets.device)


def _numbers(keys: np.ndarray, count: int, seed: int) -> np.ndarray:
    """``[Q, count]`` uint64, equal for equal (seed, key, draw): SplitMix64 (Steele et al. 2014), applied twice."""
    stream = _mix(np.asarray(keys).astype(np.uint64) + _mix(np.array([seed], dtype=np.uint64)))
    draws = np.arange(1, count + 1, dtype=np.uint64)
    return _mix(stream[:, None] + draws * np.uint64(0x9E3779B97F4A7C15))


def _mix(numbers: np.ndarray) -> np.ndarray:
    mixed = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def count_sampled_ranks(task: RankedTask, states: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """The rank of each query's target among its own negatives; the target stands behind those of equal score.

    Scores are those of :func:`pipelines.evaluation.ranking.count_ranks`: dot products rounded once to fp32, or what the
    task's own ``score_block`` gives.

    Args:
        task: gives item vectors or scores.
        states: ``[Q, D]``.
        targets: ``[Q]`` int64.
        negatives: ``[Q, n]`` int64, none of them the query's target; see :func:`draw_negatives`.

    Returns:
        ``[Q]`` int64, 1 .. ``n + 1``.

    Raises:
        NonFiniteScoreError: a state, or a candidate's score, is NaN or infinite.
    """
    candidates = torch.cat([targets[:, None], negatives], dim=1)  # [Q, 1 + n]
    held = candidates.shape[1] * states.shape[1] if has_vectors(task) else min(task.num_items, 1 << 20)
    step = max(1, _CELLS // held)
    ranks = torch.empty_like(targets)
    with torch.inference_mode(), full_precision(states.device):
        finite = torch.isfinite(states).all(dim=1)
        if not finite.all():
            raise NonFiniteScoreError((~finite).nonzero().squeeze(1), len(states))
        for start in range(0, len(states), step):
            rows = slice(start, min(start + step, len(states)))
            some = states[rows].float(), candidates[rows]
            scores = _vector_scores(task, *some) if has_vectors(task) else _own_scores(task, *some)  # [u, 1 + n]
            require_finite(scores, start, len(states))
            ranks[rows] = 1 + (scores[:, 1:] >= scores[:, :1]).sum(dim=1)
    return ranks


def _vector_scores(task: VectorTask, states: Tensor, candidates: Tensor) -> Tensor:
    vectors = task.item_vectors(candidates.flatten()).float().view(*candidates.shape, -1)  # [u, 1 + n, D]
    return exact_scores(states[:, None, :], vectors)


def _own_scores(task: RankedTask, states: Tensor, candidates: Tensor) -> Tensor:
    ids = torch.unique(candidates)
    scores = task.score_block(states, ids).float()  # [u, ids]
    return scores.gather(1, torch.searchsorted(ids, candidates))
