"""Counts in each request's own window, against a count event by event."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batch import SequenceBatch
from models.recent_popularity import DAY, RecentPopularity


def asked_at(times: list[int]) -> SequenceBatch:
    rows = len(times)
    return SequenceBatch(
        offsets=torch.arange(rows + 1),
        items=torch.ones(rows, dtype=torch.int64),
        timestamps=torch.zeros(rows, dtype=torch.int64),
        targets=torch.ones(rows, dtype=torch.int64),
        request_time=torch.tensor(times),
        user_index=torch.arange(rows),
    )


def test_the_window_by_hand() -> None:
    """Item 1 eight days ago, item 2 six days ago and just now, item 3 in the future."""
    now = 978_300_000
    items = torch.tensor([3, 2, 1, 2])
    times = torch.tensor([now + 5, now - 6 * DAY, now - 8 * DAY, now - 1])
    model = RecentPopularity(items, times, num_items=4)
    scores = model.score_block(model.encode(asked_at([now, now - 5 * DAY, now + 10])), torch.tensor([1, 2, 3, 4]))
    assert scores.tolist() == [[0, 2, 0, 0], [1, 1, 0, 0], [0, 2, 1, 0]]
    # The newest event is known up to itself, and a request long after the end looks at the last days that are known.
    late = model.score_block(model.encode(asked_at([now + 300 * DAY])), torch.tensor([3, 2]))
    assert late.tolist() == [[1, 2]]
    exactly = model.encode(asked_at([now - 1, now - 8 * DAY + 7 * DAY]))
    assert model.score_block(exactly, torch.tensor([2, 1])).tolist() == [[1, 0], [1, 1]]
    assert model.query_time == "aware"


@settings(max_examples=60, deadline=None)
@given(
    events=st.integers(1, 60),
    items=st.integers(1, 7),
    rows=st.integers(1, 12),
    span=st.integers(1, 40),
    days=st.sampled_from([1.0, 3.5, 7.0]),
    seed=st.integers(0, 2**20),
)
def test_equals_counting_event_by_event(events: int, items: int, rows: int, span: int, days: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    item = torch.randint(1, items + 1, (events,), generator=generator)
    time = 10**9 + torch.randint(0, span, (events,), generator=generator) * (DAY // 2)
    asked = (10**9 + torch.randint(-3, span + 30, (rows,), generator=generator) * (DAY // 2)).tolist()
    ids = torch.randperm(items, generator=generator)[: max(1, items - 1)] + 1
    model = RecentPopularity(item, time, items, days=days)
    found = model.score_block(model.encode(asked_at(asked)), ids)
    expected = []
    for request in asked:
        end = min(request, int(time.max()) + 1)
        inside = [i for i, t in zip(item.tolist(), time.tolist(), strict=True) if end - days * DAY <= t < end]
        expected.append([inside.count(one) for one in ids.tolist()])
    assert found.tolist() == expected


def test_places_beyond_what_float32_counts_are_exact() -> None:
    """30 million events: a place alone would be rounded to a multiple of two."""
    events = 30_000_001
    times = torch.arange(events) * 10
    model = RecentPopularity(torch.ones(events, dtype=torch.int64), times, num_items=1, days=1.0)
    request = 10 * 29_999_999
    assert model.score_block(model.encode(asked_at([request])), torch.tensor([1])).tolist() == [[8640]]
    assert model.score_block(model.encode(asked_at([request + 5])), torch.tensor([1])).tolist() == [[8640]]


def test_what_makes_no_sense_is_refused() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least one event"):
        RecentPopularity(none, none, 3)
    with pytest.raises(ValueError, match="days"):
        RecentPopularity(torch.tensor([1]), torch.tensor([1]), 3, days=0)
