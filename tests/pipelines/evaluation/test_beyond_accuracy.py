"""Top-k lists, coverage and popularity against plain definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.beyond_accuracy import Exposure, popularity_percentiles, top_k
from pipelines.evaluation.ranking import NonFiniteScoreError
from tests.pipelines.evaluation.scored_tasks import Scores, Vectors, jagged


@st.composite
def cases(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    items, queries, width = draw(st.integers(1, 15)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    table = torch.randint(-1, 2, (items + 1, width), generator=generator).float()  # ties by the dozen
    states = torch.randint(-1, 2, (queries, width), generator=generator).float()
    seen = draw(st.lists(st.lists(st.integers(1, items), max_size=6), min_size=queries, max_size=queries))
    return table, states, seen, draw(st.integers(1, items)), draw(st.integers(1, 14)), draw(st.integers(1, 9))


@given(cases())
@settings(max_examples=100, deadline=None)
def test_equals_sorting_by_score_and_index(case) -> None:  # type: ignore[no-untyped-def]
    table, states, seen, k, query_block, item_block = case
    expected = []
    for state, gone in zip(states, seen, strict=True):
        left = [item for item in range(1, len(table)) if item not in gone]
        order = sorted(left, key=lambda item: (-float(table[item] @ state), item))[:k]
        expected.append(order + [0] * (k - len(order)))
    for task in (Vectors(table), Scores(table)):
        found = top_k(task, states, k, jagged(seen), query_block=query_block, item_block=item_block)
        assert found.tolist() == expected
        whole = top_k(task, states, k, query_block=query_block, item_block=item_block)
        assert whole.min() >= 1


def test_no_more_than_a_block_is_scored_at_once() -> None:
    shapes = []

    class Watched(Scores):
        def score_block(self, states, ids):  # type: ignore[no-untyped-def, override]
            shapes.append((len(states), len(ids)))
            return super().score_block(states, ids)

    top_k(Watched(torch.randn(1001, 4)), torch.randn(70, 4), 5, query_block=32, item_block=300)
    assert max(rows for rows, _ in shapes) == 32 and max(columns for _, columns in shapes) == 300
    assert sum(rows * columns for rows, columns in shapes) == 70 * 1000


def test_percentiles_by_hand() -> None:
    """Counts 0, 5, 5, 9: one item below the fives, and half of the two."""
    assert popularity_percentiles(torch.tensor([99, 5, 0, 9, 5])).tolist() == [0, 0.5, 0.125, 0.875, 0.5]
    counts = torch.randint(0, 50, (401,), generator=torch.Generator().manual_seed(0))
    assert float(popularity_percentiles(counts)[1:].mean()) == pytest.approx(0.5, abs=1e-12)


def test_coverage_and_popularity_by_hand() -> None:
    """Two users; lists 4 3 | 4 1: three of four items; the first places alone are one item, the most popular."""
    table = torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 0.0], [2.0, 0.0], [3.0, 3.0]])
    exposure = Exposure(torch.tensor([0, 1, 2, 3, 4]), ks=(1, 2))
    exposure.observe(Vectors(table), torch.tensor([[1.0, 0.0]]))
    exposure.observe(Vectors(table), torch.tensor([[0.0, 1.0]]))
    found = exposure.metrics()
    assert found == {
        "Coverage@1": 0.25,
        "Popularity@1": 0.875,
        "Coverage@2": 0.75,
        "Popularity@2": pytest.approx((0.875 * 2 + 0.625 + 0.125) / 4),
    }
    masked = Exposure(torch.tensor([0, 1, 2, 3, 4]), ks=(10,))  # more than there is: what is left counts, padding not
    masked.observe(Vectors(table), torch.tensor([[1.0, 0.0]]), jagged([[4, 3, 2]]))
    assert masked.metrics() == {"Coverage@10": 0.25, "Popularity@10": 0.125}


def test_what_was_chosen_by_hand() -> None:
    """Targets 4, 4 and 1 of four items: half of the catalogue, percentiles .875, .875 and .125."""
    exposure = Exposure(torch.tensor([0, 1, 2, 3, 4]), ks=(1,))
    found = exposure.of_targets(torch.tensor([4, 4, 1]))
    assert found == {"Coverage": 0.5, "Popularity": pytest.approx((0.875 * 2 + 0.125) / 3)}


def test_a_task_s_own_scores_are_left_as_they_are() -> None:
    """A task may hand out a view of its own table: what was seen is left out of a copy."""

    class Kept(Scores):
        def score_block(self, states, ids):  # type: ignore[no-untyped-def, override]
            return self.table[: len(states), 1:]

    table = torch.rand(3, 6)
    before = table.clone()
    assert top_k(Kept(table), torch.zeros(3, 1), 2, jagged([[1], [2], [3]])).shape == (3, 2)
    assert torch.equal(table, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_errors(bad: float) -> None:
    states = torch.ones(3, 4)
    states[1, 0] = bad
    with pytest.raises(NonFiniteScoreError, match="query 1"):
        top_k(Vectors(torch.ones(9, 4)), states, 2)
    large = torch.full((9, 1), 3e38)  # a sum of them overflows, none of them does
    assert top_k(Vectors(large), torch.ones(3, 1), 2).tolist() == [[1, 2]] * 3
