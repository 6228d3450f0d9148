"""Sampled ranking: what is drawn, that nothing forbidden ever is, and ranks against a plain count."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.evaluation import sampled
from pipelines.evaluation.protocols import PROTOCOLS, Protocol
from pipelines.evaluation.ranking import NonFiniteScoreError
from pipelines.evaluation.sampled import count_sampled_ranks, draw_negatives
from tests.pipelines.evaluation.scored_tasks import LastItem, Scores, Vectors, jagged


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[list[int]], list[int], int]:
    num_items = draw(st.integers(2, 14))
    item = st.integers(1, num_items)
    rows = draw(st.lists(st.lists(item, max_size=10), min_size=1, max_size=15))
    targets = [draw(item) for _ in rows]
    rows = [row if len({*row, target}) < num_items else row[:1] for row, target in zip(rows, targets, strict=True)]
    return rows, targets, num_items


@given(histories(), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_every_item_that_is_left_is_drawn_and_no_other(case, seed: int) -> None:  # type: ignore[no-untyped-def]
    """400 draws from at most 13 items: each that is allowed appears (else: chance below 13 x (12/13)^400 = 2e-13)."""
    rows, targets, num_items = case
    if num_items == 2:
        rows = [[] for _ in rows]
    drawn = draw_negatives(jagged(rows), torch.tensor(targets), np.arange(len(rows)) + 5, num_items, 400, seed=seed)
    for own, row, target in zip(drawn.tolist(), rows, targets, strict=True):
        assert set(own) == set(range(1, num_items + 1)) - {*row, target}


def test_draws_are_uniform_and_independent_between_queries() -> None:
    seen = jagged([[2, 4, 4, 9]] * 4000)
    drawn = draw_negatives(seen, torch.full((4000,), 7), np.arange(4000), 10, 100)
    shares = torch.bincount(drawn.flatten(), minlength=11) / drawn.numel()
    allowed = torch.tensor([1, 3, 5, 6, 8, 10])
    assert float((shares[allowed] - 1 / 6).abs().max()) < 0.003  # sigma is 0.0006
    assert float(shares[[0, 2, 4, 7, 9]].sum()) == 0
    same = (drawn[:-1] == drawn[1:]).double().mean()  # neighbours in key agree as often as chance has it
    assert float(same) == pytest.approx(1 / 6, abs=0.005)
    assert len(torch.unique(drawn, dim=0)) == 4000


def test_a_draw_depends_on_seed_and_query_alone() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 51, 8).tolist() for _ in range(30)]
    targets, keys = torch.from_numpy(rng.integers(1, 51, 30)), rng.permutation(1000)[:30]
    whole = draw_negatives(jagged(rows), targets, keys, 50, 20, seed=3)
    order = rng.permutation(30)[:11]
    some = draw_negatives(jagged([rows[i] for i in order]), targets[order], keys[order], 50, 20, seed=3)
    assert torch.equal(some, whole[order])
    assert not torch.equal(whole, draw_negatives(jagged(rows), targets, keys, 50, 20, seed=4))


def test_a_user_who_has_seen_everything_is_an_error() -> None:
    with pytest.raises(DataError, match="1 queries leave no item"):
        draw_negatives(jagged([[1, 2], [1]]), torch.tensor([3, 3]), np.arange(2), 3, 5)


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 9), st.integers(1, 30), st.integers(1, 400))
@settings(max_examples=80, deadline=None)
def test_ranks_equal_a_plain_count(seed: int, queries: int, width: int, count: int, cells: int) -> None:
    """Whole numbers: scores are exact, and tie often. Blocks of a few queries change nothing."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(-2, 3, (21, width), generator=generator).float()
    states = torch.randint(-2, 3, (queries, width), generator=generator).float()
    targets = torch.randint(1, 11, (queries,), generator=generator)
    negatives = torch.randint(11, 21, (queries, count), generator=generator)
    expected = [
        1 + sum(int(table[item] @ state >= table[target] @ state) for item in own)
        for state, target, own in zip(states, targets.tolist(), negatives.tolist(), strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampled, "_CELLS", cells)
        for task in (Vectors(table), Scores(table)):
            assert count_sampled_ranks(task, states, targets, negatives).tolist() == expected


def test_equal_vectors_tie_against_the_target_whatever_the_block() -> None:
    table = torch.randn(1, 64, generator=torch.Generator().manual_seed(0)).expand(50, 64)
    states = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    negatives = torch.arange(2, 12).expand(7, 10)
    for states_dtype in (torch.float32, torch.bfloat16):
        ranks = count_sampled_ranks(
            Vectors(table), states.to(states_dtype), torch.ones(7, dtype=torch.int64), negatives
        )
        assert ranks.tolist() == [11] * 7


@pytest.mark.parametrize("task", [Vectors, Scores])
def test_scores_that_are_not_finite_are_errors(task) -> None:  # type: ignore[no-untyped-def]
    table, targets, negatives = torch.ones(9, 4), torch.ones(3, dtype=torch.int64), torch.full((3, 5), 2)
    states = torch.ones(3, 4)
    states[1, 2] = math.nan
    with pytest.raises(NonFiniteScoreError, match="1 of 3 queries .* query 1"):
        count_sampled_ranks(task(table), states, targets, negatives)
    table[2, 0] = math.inf
    with pytest.raises(NonFiniteScoreError, match="3 of 3 queries"):
        count_sampled_ranks(task(table), torch.ones(3, 4), targets, negatives)


def test_the_card_says_what_the_numbers_are_good_for(make_store) -> None:  # type: ignore[no-untyped-def]
    from pipelines.data.splits import make_split

    store = make_store([[1, 2, 3], [2, 3, 1, 2]], 3)
    protocol = PROTOCOLS["sampled-100"]
    card = protocol.describe(
        store,
        make_split(store, "leave-one-out"),
        max_length=5,
        query_time="blind",
        validation="v",
        seeds=[1],
        commit=None,
    )
    assert protocol.negatives == 100 and protocol.ties == "worst" and protocol.split == "leave-one-out"
    assert card["ranking"].startswith("sampled: 100 items drawn uniformly") and "seed 0" in card["ranking"]
    assert "comparable with old papers only" in card["ranking"]
    with pytest.raises(ValueError, match="masks what was seen"):
        Protocol("odd", "leave-one-out", mask_seen=False, negatives=5)


def test_the_evaluator_ranks_among_the_negatives_of_the_protocol(make_store) -> None:  # type: ignore[no-untyped-def]
    from pipelines.data.splits import make_split
    from pipelines.evaluation.evaluator import evaluate, histories

    rng = np.random.default_rng(0)
    store = make_store([rng.integers(1, 301, 8).tolist() for _ in range(40)], 300)
    asked = make_split(store, "leave-one-out").test
    protocol, task = PROTOCOLS["sampled-100"], LastItem(300)
    found = evaluate(task, store, asked, protocol=protocol, max_length=5).ranks
    targets = torch.from_numpy(store.items[asked.end].astype(np.int64))
    negatives = draw_negatives(histories(store, asked), targets, asked.end, 300, 100, seed=protocol.sample_seed)
    wanted = torch.from_numpy(store.items[asked.end - 1].astype(np.int64)) + 1
    distance = (negatives - wanted[:, None]).abs() <= (targets - wanted).abs()[:, None]
    assert found.tolist() == (1 + distance.sum(1)).tolist()
