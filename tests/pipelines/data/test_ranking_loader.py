"""Batches of a ranking task, against plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.loader import LoaderOptions, cut_windows, gather_batch, training_batches
from pipelines.data.ranking_loader import (
    asked_events,
    gather_ranking,
    labels_of,
    ranking_batches,
    ranking_gather,
    ranking_windows,
)
from pipelines.data.splits import make_split
from pipelines.data.store import SequenceStore
from pipelines.errors import DataError
from tests.pipelines.conftest import memory_store

lengths = st.lists(st.integers(4, 23), min_size=2, max_size=6)


def ranked_store(users: list[int], kind: str = "bits") -> SequenceStore:
    """Actions that name their event, in three bits or eight classes."""
    store = memory_store(users)
    actions = (np.arange(store.num_events) % 8).astype(np.uint8)
    names = ["a", "b", "c"] if kind == "bits" else list("01234567")
    manifest = {**store.manifest, "actions": {"kind": kind, "names": names}, "user_features": {"age": 9}}
    ages = np.arange(1, len(users) + 1, dtype=np.int32)
    features = {**store.features, "actions": actions}
    return replace(store, features=features, manifest=manifest, user_features={"age": ages})


@given(lengths, st.integers(1, 9), st.integers(0, 4))
def test_all_windows_ask_about_every_training_event_once(users: list[int], max_length: int, candidates: int) -> None:
    store = ranked_store(users)
    train = make_split(store, "leave-one-out").train
    windows = ranking_windows(store, train, max_length, candidates, "all")
    asked = asked_events(windows, candidates)
    expected = [p for u, end in zip(train.user, train.end, strict=True) for p in range(store.offsets[u], end + 1)]
    assert sorted(asked.tolist()) == expected
    assert windows.lengths.max() <= max_length + candidates


@given(lengths, st.integers(1, 9), st.integers(0, 4))
def test_newest_windows_end_with_what_is_asked(users: list[int], max_length: int, candidates: int) -> None:
    store = ranked_store(users)
    test = make_split(store, "leave-one-out", held_out=max(candidates, 1) if min(users) >= 10 else 1).test
    windows = ranking_windows(store, test, max_length, candidates)
    assert (windows.end - 1).tolist() == test.end.tolist()
    for user, start, end in zip(windows.user, windows.start, windows.end, strict=True):
        assert start == max(store.offsets[user], end - max_length - candidates)


@pytest.mark.parametrize("candidates", [0, 2, 50])
def test_a_batch_is_what_the_store_says(candidates: int) -> None:
    store = ranked_store([6, 9])
    windows = ranking_windows(store, make_split(store, "leave-one-out").test, 4, candidates)
    batch = gather_ranking(store, windows, candidates)
    rows = [list(range(start, end)) for start, end in zip(windows.start, windows.end, strict=True)]
    events = [event for row in rows for event in row]
    assert batch.items.tolist() == store.items[events].tolist()
    assert batch.timestamps.tolist() == store.timestamps[events].tolist()
    assert batch.actions is not None and batch.actions.tolist() == [event % 8 for event in events]
    assert batch.labels is not None
    assert batch.labels.tolist() == [[event % 8 >> bit & 1 for bit in range(3)] for event in events]
    assert batch.request_time.tolist() == [store.timestamps[row[-1]] for row in rows]
    assert batch.context is not None and batch.context["age"].tolist() == [1, 2]
    assert not batch.targets.any()
    if candidates:
        assert batch.num_candidates is not None
        assert batch.num_candidates.tolist() == [min(candidates, len(row)) for row in rows]
    else:
        assert batch.num_candidates is None


def test_classes_are_one_label() -> None:
    assert labels_of(torch.tensor([4, 0]), "classes", 5).tolist() == [[4], [0]]


def test_data_without_actions_are_refused() -> None:
    store = memory_store([6, 9])
    with pytest.raises(DataError, match="no actions to predict"):
        gather_ranking(store, ranking_windows(store, make_split(store, "leave-one-out").test, 4, 1), 1)


def test_evaluation_batches_hold_every_window_once_and_few_tokens() -> None:
    store = ranked_store([20, 4, 9, 12])
    windows = ranking_windows(store, make_split(store, "leave-one-out").test, 8, 1)
    found = list(ranking_batches(store, windows, 1, 12))
    assert sorted(row for rows, _ in found for row in rows) == [0, 1, 2, 3]
    assert max(batch.num_tokens for _, batch in found) <= 12 + 9
    assert [batch.offsets.diff().max() for _, batch in found] == sorted(
        (batch.offsets.diff().max() for _, batch in found), reverse=True
    )


def test_training_batches_are_made_by_the_gatherer_they_are_given() -> None:
    store = ranked_store([20] * 5)
    windows = ranking_windows(store, make_split(store, "leave-one-out").train, 4, 2, "all")
    options = LoaderOptions(max_length=4, rows_per_batch=3)
    batches = list(training_batches(store, windows, options, seed=1, epoch=0, gather=ranking_gather(2)))
    assert all(batch.num_candidates is not None and int(batch.num_candidates.max()) == 2 for batch in batches)
    assert sum(batch.num_rows for batch in batches) == len(windows.user)


def test_retrieval_batches_carry_actions_and_context_too() -> None:
    store = ranked_store([6, 9])
    batch = gather_batch(store, cut_windows(store, make_split(store, "leave-one-out").train, 3))
    assert batch.actions is not None and batch.actions.shape == batch.items.shape
    assert batch.context is not None and batch.context["age"].tolist() == [1, 2]
    assert batch.labels is None and batch.num_candidates is None
    assert (
        gather_batch(memory_store([6, 9]), cut_windows(store, make_split(store, "leave-one-out").train, 3)).context
        is None
    )
