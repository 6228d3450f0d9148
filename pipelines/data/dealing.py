"""Dealing a global batch to processes so that all finish together: attention costs a row its length squared.

``pipelines.data.loader.deal_rows`` evens out tokens, which is what layers other than attention cost. Here each row
costs ``linear * length + length^2`` and the shares are made by the largest differencing method (Karmarkar and Karp
1982, "The differencing method of set partitioning"): of the partial solutions - each a list of as many sums as
processes - the two that differ most are joined, the largest sum of one with the smallest of the other, until one is
left. A last pass moves or swaps single rows as long as that lowers the largest sum.
"""

from __future__ import annotations

import heapq
from itertools import count

import numpy as np

_PASSES = 32  # over all rows of the fullest process; each lowers the largest sum


def row_costs(lengths: np.ndarray, linear: float = 0.0) -> np.ndarray:
    """What rows of ``lengths`` ``[R]`` cost, ``[R]`` float64; ``linear`` tokens' cost in units of a pair of tokens."""
    wide = lengths.astype(np.float64)
    return wide * (linear + wide)


def deal_balanced(rows: np.ndarray, lengths: np.ndarray, rank: int, world: int, *, linear: float = 0.0) -> np.ndarray:
    """This process' share of a global batch, so that the most that any process has to do is little.

    Args:
        rows: ``[B]`` int64, the batch, as indices of ``lengths``.
        lengths: ``[W]``, tokens of every window.
        rank: this process.
        world: how many there are.
        linear: cost of a token besides attention, in units of a pair of tokens; 0 counts attention alone.

    Returns:
        Some of ``rows``, longest first; over all ranks each row once. All processes compute the same shares.
    """
    if world == 1:
        return rows
    order = rows[np.argsort(-lengths[rows], kind="stable")]
    return order[balanced_shares(row_costs(lengths[order], linear), world) == rank]


def balanced_shares(costs: np.ndarray, parts: int) -> np.ndarray:
    """Which of ``parts`` each item goes to, ``[R]`` int64, so that the largest sum of ``costs`` ``[R]`` is small."""
    share = np.zeros(len(costs), dtype=np.int64)
    if not len(costs):
        return share
    for part, members in enumerate(_differenced(costs, parts)):
        share[members] = part
    return _improved(costs, share, parts)


def _differenced(costs: np.ndarray, parts: int) -> list[list[int]]:
    """The largest differencing method: the members of each part."""
    number = count()  # keeps the order of equal differences the same everywhere
    heap: list[tuple[float, int, list[tuple[float, list[int]]]]] = []
    for item, cost in enumerate(costs.tolist()):
        solution: list[tuple[float, list[int]]] = [(0.0, []) for _ in range(parts - 1)]
        heapq.heappush(heap, (-cost, next(number), [*solution, (cost, [item])]))
    while len(heap) > 1:
        (_, _, first), (_, _, second) = heapq.heappop(heap), heapq.heappop(heap)
        pairs = zip(first, reversed(second), strict=True)  # both ascending: the largest meets the smallest
        joined = sorted(((a + b, [*x, *y]) for (a, x), (b, y) in pairs), key=lambda pair: pair[0])
        heapq.heappush(heap, (joined[0][0] - joined[-1][0], next(number), joined))
    return [members for _, members in heap[0][2]]


def _improved(costs: np.ndarray, share: np.ndarray, parts: int) -> np.ndarray:
    """Move a row from the fullest part to the emptiest, or swap two, while that lowers the larger of both sums."""
    sums = np.bincount(share, weights=costs, minlength=parts)
    for _ in range(_PASSES):
        full, empty = int(sums.argmax()), int(sums.argmin())
        gap = sums[full] - sums[empty]
        ours, theirs = np.flatnonzero(share == full), np.flatnonzero(share == empty)
        given = np.concatenate([costs[theirs], [0.0]])  # nothing in return: a move
        change = costs[ours][:, None] - given[None, :]
        better = np.abs(change - gap / 2)
        if not better.size or better.min() >= gap / 2 * (1 - 1e-12):
            break
        one, other = np.unravel_index(int(better.argmin()), better.shape)
        share[ours[one]] = empty
        if other < len(theirs):
            share[theirs[other]] = full
        sums[full] -= change[one, other]
        sums[empty] += change[one, other]
    return share
