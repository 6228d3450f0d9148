"""Batches dealt by what attention costs: each row once, the same shares everywhere, and close to the best there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.dealing import balanced_shares, deal_balanced, row_costs
from pipelines.data.loader import deal_rows

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=40)


def spread(costs: np.ndarray, share: np.ndarray, parts: int) -> float:
    """The largest sum over the mean: how much longer the slowest process works."""
    sums = np.bincount(share, weights=costs, minlength=parts)
    return float(sums.max() / sums.mean())


@given(lengths=LENGTHS, world=st.integers(1, 8))
def test_every_row_goes_to_one_process(lengths: list[int], world: int) -> None:
    rows = np.arange(len(lengths))[::-1].copy()
    shares = [deal_balanced(rows, np.array(lengths), rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(lengths)))


@given(lengths=LENGTHS, world=st.integers(2, 8), linear=st.sampled_from([0.0, 100.0]))
def test_no_process_has_more_than_the_mean_and_one_row(lengths: list[int], world: int, linear: float) -> None:
    costs = row_costs(np.array(lengths), linear)
    sums = np.bincount(balanced_shares(costs, world), weights=costs, minlength=world)
    assert sums.max() <= costs.sum() / world + costs.max() + 1e-6


@given(lengths=st.lists(st.integers(1, 60), min_size=2, max_size=9))
def test_close_to_the_best_of_all_shares(lengths: list[int]) -> None:
    costs = row_costs(np.array(lengths))
    best = min(
        max(sums)
        for sums in (
            (costs[np.array(p) == 0].sum(), costs[np.array(p) == 1].sum()) for p in product((0, 1), repeat=len(lengths))
        )
    )
    share = balanced_shares(costs, 2)
    assert np.bincount(share, weights=costs, minlength=2).max() <= 7 / 6 * best + 1e-9


@pytest.mark.parametrize("world", [2, 8])
def test_better_than_dealing_by_tokens(world: int) -> None:
    """Lengths as MovieLens has them: many short rows, a few that are cut at 200."""
    generator = np.random.default_rng(0)
    by_tokens, balanced = [], []
    for _ in range(20):
        lengths = np.minimum(generator.lognormal(4.5, 1.0, 128).astype(np.int64) + 5, 200)
        rows, costs = np.arange(128), row_costs(lengths)
        for deal, into in ((deal_rows, by_tokens), (deal_balanced, balanced)):
            share = np.empty(128, dtype=np.int64)
            for rank in range(world):
                share[deal(rows, lengths, rank, world)] = rank
            into.append(spread(costs, share, world))
    assert max(balanced) < 1.01
    assert np.mean(balanced) - 1 < 0.5 * (np.mean(by_tokens) - 1)


def test_one_process_gets_the_batch_as_it_is() -> None:
    rows = np.array([3, 1, 2])
    assert deal_balanced(rows, np.array([9, 8, 7, 6]), 0, 1) is rows


def test_fewer_rows_than_processes_leave_some_without_any() -> None:
    shares = [deal_balanced(np.array([0]), np.array([5]), rank, 3).tolist() for rank in range(3)]
    assert sorted(shares) == [[], [], [0]]
