"""Neighbours and scores against the definition over plain sets."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models.item_knn
from models.batch import Jagged, SequenceBatch
from models.item_knn import ItemKNN, nearest_items


def jagged(rows: list[list[int]]) -> Jagged:
    lengths = torch.tensor([0] + [len(row) for row in rows])
    return Jagged(torch.tensor([item for row in rows for item in row], dtype=torch.int64), lengths.cumsum(0))


def batch_of(rows: list[list[int]]) -> SequenceBatch:
    histories = jagged(rows)
    return SequenceBatch(
        offsets=histories.offsets,
        items=histories.values,
        timestamps=torch.zeros_like(histories.values),
        targets=torch.zeros_like(histories.values),
        request_time=torch.zeros(len(rows), dtype=torch.int64),
        user_index=torch.arange(len(rows)),
    )


def plain_neighbours(rows: list[list[int]], num_items: int, count: int) -> dict[int, list[tuple[int, float]]]:
    users = {item: {u for u, row in enumerate(rows) if item in row} for item in range(1, num_items + 1)}
    found = {}
    for item, own in users.items():
        cosines = [
            (other, len(own & theirs) / math.sqrt(len(own) * len(theirs)))
            for other, theirs in users.items()
            if other != item and own & theirs
        ]
        found[item] = sorted(cosines, key=lambda pair: (-round(pair[1], 11), pair[0]))[:count]
    return found


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[int]], int, int]:
    num_items = draw(st.integers(1, 9))
    rows = draw(st.lists(st.lists(st.integers(1, num_items), max_size=12), min_size=1, max_size=12))
    return rows, num_items, draw(st.integers(1, 12))


@given(cases(), st.integers(1, 5), st.integers(1, 200))
@settings(max_examples=80, deadline=None)
def test_equals_the_definition(case, newest: int, cells: int) -> None:  # type: ignore[no-untyped-def]
    """Blocks of a few items: their borders change nothing."""
    rows, num_items, count = case
    expected = plain_neighbours(rows, num_items, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.item_knn, "_CELLS_AT_A_TIME", cells)
        model = ItemKNN.from_histories(jagged(rows), num_items, neighbours=count, newest=newest)
    for item, neighbours in expected.items():
        kept = [i for i in model.neighbour_ids[item].tolist() if i]
        assert kept == [other for other, _ in neighbours]
        assert model.similarities[item][: len(kept)].tolist() == pytest.approx([cosine for _, cosine in neighbours])
        assert float(model.similarities[item][len(kept) :].sum()) == 0
    asked = [row for row in rows if row]
    if not asked:
        return
    ids = torch.arange(num_items, 0, -1)
    scores = model.score_block(model.encode(batch_of(asked)), ids)
    for row, found in zip(asked, scores, strict=True):
        sums = dict.fromkeys(range(1, num_items + 1), 0.0)
        for item in row[-newest:]:
            for other, cosine in expected[item]:
                sums[other] += cosine
        assert found.tolist() == pytest.approx([sums[item] for item in ids.tolist()], abs=1e-6)


def test_a_block_of_items_scores_as_all_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, 41, (15,), generator=generator).tolist() for _ in range(50)]
    model = ItemKNN.from_histories(jagged(rows), 40, neighbours=10, newest=6)
    states = model.encode(batch_of(rows))
    whole = model.score_block(states, torch.arange(1, 41))
    parts = [model.score_block(states, block) for block in torch.arange(1, 41).split(7)]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert float(whole.min()) >= 0 and float(whole.max()) > 0


def test_no_square_of_the_items_is_made() -> None:
    """2,000 items, and room for 40,000 cells: what is allocated stays below that or grows with the pairs alone."""
    tracked: list[int] = []
    zeros = torch.zeros

    def watching(*size: int, **options: object) -> torch.Tensor:
        made = zeros(*size, **options)  # type: ignore[call-overload]
        tracked.append(made.numel())
        return made

    generator = torch.Generator().manual_seed(1)
    items = torch.randint(1, 2_001, (4_000,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "zeros", watching)
        patch.setattr(models.item_knn, "_CELLS_AT_A_TIME", 40_000)
        ids, _ = nearest_items(Jagged(items, torch.arange(0, 4_001, 5)), 2_000, 20)
    assert ids.shape == (2_001, 20) and len(tracked) > 100
    assert max(tracked) <= 2_001 * 20


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: ItemKNN.from_histories(jagged([[1, 2]]), 2, neighbours=0), "neighbours"),
        (lambda: ItemKNN.from_histories(jagged([[1, 2]]), 2, newest=0), "newest"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], ItemKNN], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        make()
