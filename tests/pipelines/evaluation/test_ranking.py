"""Ranks against a brute-force oracle in exact arithmetic; metrics by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.batch import Jagged
from pipelines.errors import DataError, RecPodError
from pipelines.evaluation.ranking import NonFiniteScoreError, count_ranks, metric_values, metrics_from_ranks
from tests.pipelines.evaluation.scored_tasks import Scores, Vectors, jagged


def exact_score(state: Tensor, vector: Tensor) -> float:
    """The dot product in rational arithmetic, rounded once to fp32."""
    total = sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(state, vector, strict=True))
    return float(torch.tensor(float(total), dtype=torch.float64).float())


def oracle(table: Tensor, states: Tensor, targets: list[int], seen: list[list[int]]) -> list[int]:
    ranks = []
    for state, target, gone in zip(states, targets, seen, strict=True):
        own = exact_score(state, table[target])
        before = 0
        for item in range(1, len(table)):
            if item != target and item not in gone and exact_score(state, table[item]) >= own:
                before += 1
        ranks.append(before + 1)
    return ranks


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[int], list[list[int]], int, int]:
    """Tiny catalogues with many ties (few distinct vectors), seen targets, repeats, blocks of odd sizes."""
    items, queries, width = draw(st.integers(1, 12)), draw(st.integers(1, 19)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    palette = torch.randn(draw(st.integers(1, 6)), width, generator=generator)
    if draw(st.booleans()):
        palette = palette.round()  # whole numbers: ties between different vectors
    table = palette[torch.randint(len(palette), (items + 1,), generator=generator)]
    states = torch.randn(queries, width, generator=generator)
    if draw(st.booleans()):
        states = states.round()
    item = st.integers(1, items)
    targets = draw(st.lists(item, min_size=queries, max_size=queries))
    seen = draw(st.lists(st.lists(item, max_size=8), min_size=queries, max_size=queries))
    return table, states, targets, seen, draw(st.integers(1, 20)), draw(st.integers(1, 13))


@given(cases())
@settings(max_examples=80, deadline=None)
def test_ranks_equal_the_oracle(case) -> None:  # type: ignore[no-untyped-def]
    table, states, targets, seen, query_block, item_block = case
    blocks = {"query_block": query_block, "item_block": item_block}
    asked = torch.tensor(targets)
    masked = count_ranks(Vectors(table), states, asked, jagged(seen), **blocks)
    assert masked.tolist() == oracle(table, states, targets, seen)
    assert masked.dtype == torch.int64
    unmasked = count_ranks(Vectors(table), states, asked, **blocks)
    assert unmasked.tolist() == oracle(table, states, targets, [[] for _ in targets])


@given(cases())
@settings(max_examples=40, deadline=None)
def test_overridden_scores_equal_the_oracle_on_whole_numbers(case) -> None:  # type: ignore[no-untyped-def]
    table, states, targets, seen, query_block, item_block = case
    table, states = table.round(), states.round()  # exact in any arithmetic
    ranks = count_ranks(
        Scores(table), states, torch.tensor(targets), jagged(seen), query_block=query_block, item_block=item_block
    )
    assert ranks.tolist() == oracle(table, states, targets, seen)


def test_blocks_and_threads_do_not_change_ranks() -> None:
    """300 queries x 1,000 items with every vector three times: products of different shapes differ in bits."""
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(334, 48, generator=generator).repeat(3, 1)[:1001]
    states = torch.randn(300, 48, generator=generator)
    targets = torch.randint(1, 1001, (300,), generator=generator)
    seen = Jagged(torch.randint(1, 1001, (3000,), generator=generator), torch.arange(301) * 10)
    expected = count_ranks(Vectors(table), states, targets, seen)
    scores = (states.double() @ table[1:].double().T).float()
    before = scores >= scores.gather(1, targets[:, None] - 1)
    before[torch.arange(300).repeat_interleave(10), seen.values - 1] = False
    before[torch.arange(300), targets - 1] = False
    assert torch.equal(expected, 1 + before.sum(1))
    for query_block, item_block in ((1, 1000), (7, 13), (64, 1), (299, 999), (300, 256), (1000, 5000)):
        ranks = count_ranks(Vectors(table), states, targets, seen, query_block=query_block, item_block=item_block)
        assert torch.equal(ranks, expected), (query_block, item_block)


def test_equal_items_tie_against_the_target_in_every_position() -> None:
    """All items are one vector: every target is last, whatever block its scores come from."""
    table = torch.randn(1, 64, generator=torch.Generator().manual_seed(0)).expand(701, 64)
    states = torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([1, 2, 100, 255, 256, 300, 511, 699, 700])
    for item_block in (1, 64, 255, 300, 10_000):
        for query_block in (1, 4, 9):
            ranks = count_ranks(Vectors(table), states, targets, query_block=query_block, item_block=item_block)
            assert ranks.tolist() == [700] * 9


def test_more_than_255_items_before_the_target_are_counted() -> None:
    """Masks are added up as bytes; 1,000 items above the target would run over if they were added in one go."""
    table = torch.arange(1001.0)[:, None]
    ranks = count_ranks(Vectors(table), torch.ones(3, 1), torch.tensor([1, 500, 1000]))
    assert ranks.tolist() == [1000, 501, 1]


def test_a_target_that_was_seen_still_competes() -> None:
    table = torch.tensor([[0.0], [5.0], [4.0], [3.0], [2.0]])
    ranks = count_ranks(Vectors(table), torch.ones(2, 1), torch.tensor([3, 3]), jagged([[3, 1, 1], []]))
    assert ranks.tolist() == [2, 3]


@pytest.mark.parametrize("task", [Vectors, Scores])
def test_lower_precision_set_by_others_changes_nothing(task) -> None:  # type: ignore[no-untyped-def]
    """Under bf16 autocast, with TF32 and bf16 products allowed: fp32 inside, and the caller's settings stay."""
    inside = []

    class Watched:
        """A table that notes the settings under which it is read."""

        def __init__(self, rows: Tensor) -> None:
            self.rows = rows

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, ids: Tensor) -> Tensor:
            inside.append([backend.fp32_precision for backend in backends])
            return self.rows[ids]

    generator = torch.Generator().manual_seed(5)
    table, states = torch.randn(801, 64, generator=generator), torch.randn(200, 64, generator=generator)
    targets = torch.randint(1, 801, (200,), generator=generator)
    expected = count_ranks(task(table), states, targets)
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    previous = [backend.fp32_precision for backend in backends]
    try:
        backends[0].fp32_precision, backends[1].fp32_precision = "tf32", "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(count_ranks(task(table), states, targets), expected)
            count_ranks(task(Watched(table)), states, targets)
            assert torch.is_autocast_enabled("cpu")
        assert [backend.fp32_precision for backend in backends] == ["tf32", "bf16"]
        assert inside and all(precisions == ["ieee", "ieee"] for precisions in inside)
    finally:
        for backend, precision in zip(backends, previous, strict=True):
            backend.fp32_precision = precision


@pytest.mark.parametrize("task", [Vectors, Scores])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_state_that_is_not_finite_is_an_error(task, bad) -> None:  # type: ignore[no-untyped-def]
    states = torch.ones(6, 4)
    states[2, 1] = states[5, 0] = bad
    with pytest.raises(NonFiniteScoreError, match="2 of 6 queries .* the first is query 2") as caught:
        count_ranks(task(torch.ones(9, 4)), states, torch.ones(6, dtype=torch.int64))
    assert isinstance(caught.value, RecPodError)
    assert caught.value.queries.tolist() == [2, 5]


@pytest.mark.parametrize("task", [Vectors, Scores])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_an_item_that_is_not_finite_is_an_error(task, bad) -> None:  # type: ignore[no-untyped-def]
    table = torch.ones(9, 4)
    table[7, 1] = bad
    with pytest.raises(NonFiniteScoreError, match="3 of 3 queries"):
        count_ranks(task(table), torch.ones(3, 4), torch.ones(3, dtype=torch.int64), item_block=4)


@pytest.mark.parametrize("task", [Vectors, Scores])
def test_a_product_that_overflows_is_an_error_and_a_large_finite_one_is_not(task) -> None:  # type: ignore[no-untyped-def]
    table = torch.full((4, 2), 1e19)
    table[1] = 1e10
    states = torch.tensor([[1e18, 1e18], [9e18, 9e18], [1e18, -1e18]])  # scores to 1.8e38 of fp32's 3.4e38; ties at 0
    asked = torch.tensor([1, 1, 1])
    assert count_ranks(task(table), states, asked).tolist() == [3, 3, 3]
    with pytest.raises(NonFiniteScoreError, match="1 of 3 queries .* query 1"):
        count_ranks(task(table), states * torch.tensor([1.0, 10.0, 1.0])[:, None], asked)


def test_items_outside_the_catalogue_are_an_error() -> None:
    for item in (0, 4):
        with pytest.raises(DataError, match=f"targets reach from {item} to {item}, items from 1 to 3"):
            count_ranks(Vectors(torch.ones(4, 2)), torch.ones(1, 2), torch.tensor([item]))
        with pytest.raises(DataError, match="seen items reach from"):
            count_ranks(Vectors(torch.ones(4, 2)), torch.ones(1, 2), torch.tensor([1]), jagged([[2, item]]))


def test_metrics_by_hand() -> None:
    """Ranks 1, 3, 10, 11: HR@10 = 3/4, NDCG@10 = (1 + 1/2 + 1/log2(11)) / 4, MRR@10 = (1 + 1/3 + 1/10) / 4."""
    metrics = metrics_from_ranks(torch.tensor([1, 3, 10, 11]), (1, 10))
    assert metrics == pytest.approx(
        {
            "HR@1": 0.25,
            "Recall@1": 0.25,
            "NDCG@1": 0.25,
            "MRR@1": 0.25,
            "HR@10": 0.75,
            "Recall@10": 0.75,
            "NDCG@10": (1 + 0.5 + 1 / math.log2(11)) / 4,
            "MRR@10": (1 + 1 / 3 + 1 / 10) / 4,
        },
        abs=1e-12,
    )
    assert metric_values(torch.tensor([2, 7]), "NDCG@5").tolist() == pytest.approx([1 / math.log2(3), 0.0])


def test_metrics_without_queries_or_of_unknown_name_are_errors() -> None:
    with pytest.raises(DataError):
        metrics_from_ranks(torch.tensor([], dtype=torch.int64), (10,))
    for name in ("AUC@10", "HR@0", "HR@", "HR@1x", "NDCG", "HR@-1", "HR@01"):
        with pytest.raises(ValueError, match=f"unknown metric {name}"):
            metric_values(torch.tensor([1]), name)
