"""Baselines from a split: training events alone, and what the evaluator makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from models.popularity import Popularity
from pipelines.data.splits import Queries, make_split
from pipelines.evaluation.baselines import baselines, training_events
from pipelines.evaluation.evaluator import evaluate
from pipelines.evaluation.protocols import PROTOCOLS

DAY = 86_400


def test_only_training_events_count(make_store) -> None:  # type: ignore[no-untyped-def]
    store = make_store([[1, 2, 3, 4, 2], [1, 2], [5, 1, 3, 2]], 5)
    split = make_split(store, "leave-one-out")
    inside = training_events(store, split)
    assert inside.tolist() == [True, True, True, False, False, True, True, True, True, False, False]
    popular = baselines(store, split)["popularity"]
    assert isinstance(popular, Popularity)
    assert popular.counts[:, 0].tolist() == [0, 3, 2, 1, 0, 1]


def test_item_knn_ranks_by_hand(make_store) -> None:  # type: ignore[no-untyped-def]
    """Training: u0 {1, 2}, u1 {1, 2}, u2 {1, 3}: cos(1, 2) = 2 / sqrt(6), cos(1, 3) = 1 / sqrt(3), others 0.

    The newest two items speak: u0's 2 and 3, both for 1 alone, so its target 4 ties with all the rest; u1's 2 and 5,
    again for 1; u2's 3 and 2, for 1, which is its target.
    """
    store = make_store([[1, 2, 3, 4], [1, 2, 5, 3], [1, 3, 2, 1]], 5)
    split = make_split(store, "leave-one-out")
    knn = baselines(store, split)["item-kNN"]
    ranks = evaluate(knn, store, split.test, protocol=PROTOCOLS["loo-full"], max_length=10).ranks  # type: ignore[arg-type]
    assert ranks.tolist() == [5, 5, 1]


def test_recent_popularity_reads_the_time_of_the_request(make_store) -> None:  # type: ignore[no-untyped-def]
    """Item 1 was popular long ago, item 2 this week; u3 and u4 want the same item 2 at different times."""
    old, new = 100 * DAY, 200 * DAY
    histories = [[1, 1, 3, 4], [1, 2, 3, 4], [2, 1, 3, 4], [5, 3, 4, 2], [5, 3, 4, 2]]
    times = [
        [old, old + 1, old + 2, old + 3],
        [old + 1, new, new + 1, new + 2],
        [new, old + 2 + 100 * DAY, new + 3, new + 4],
        [old, old + 1, old + 2, old + 5],
        [new + 1, new + 1, new + 2, new + DAY],
    ]
    times[2].sort()
    store = make_store(histories, 5, times)
    split = make_split(store, "leave-one-out")
    recent = baselines(store, split)["popularity, last 7 days"]
    asked = Queries(split.test.user[3:], split.test.end[3:])
    ranks = evaluate(recent, store, asked, protocol=PROTOCOLS["loo-full"], max_length=10).ranks  # type: ignore[arg-type]
    # u3, five seconds into the old week: 1 three times, 5 and 3 once (training), 2 never and ties with 4: last.
    # u4, a day into the new week: 2 twice, 1 and 3 and 5 once at most: first.
    assert ranks.tolist() == [5, 1]


@pytest.mark.parametrize("clock", ["relative", "order"])
def test_without_a_shared_clock_there_is_no_recent_popularity(make_store, clock) -> None:  # type: ignore[no-untyped-def]
    from dataclasses import replace

    store = make_store([[1, 2, 3, 4], [2, 1, 3, 1]], 4)
    store = replace(store, manifest={**store.manifest, "timestamps": clock})
    assert set(baselines(store, make_split(store, "leave-one-out"))) == {"popularity", "item-kNN"}


def test_after_a_cut_in_time_the_last_training_days_stand(make_store) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    histories = [rng.integers(1, 11, 12).tolist() for _ in range(40)]
    times = [np.sort(rng.integers(0, 300, 12) * DAY).tolist() for _ in range(40)]
    store = make_store(histories, 10, times)
    split = make_split(store, "global-time")
    recent = baselines(store, split)["popularity, last 7 days"]
    inside = training_events(store, split)
    end = int(store.timestamps[inside].max()) + 1
    counts = np.bincount(store.items[inside & (store.timestamps >= end - 7 * DAY)], minlength=11)
    found = evaluate(recent, store, split.test, protocol=PROTOCOLS["global-time"], max_length=10).ranks  # type: ignore[arg-type]
    assert counts.max() > 0
    targets = store.items[split.test.end]
    assert found.tolist() == [int((counts[1:] >= counts[target]).sum()) for target in targets]
