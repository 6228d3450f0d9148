"""Batches gathered on the device from resident events are the loader's, bit for bit, and ``auto`` leaves room."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batch import SequenceBatch
from pipelines.data.loader import (
    LoaderOptions,
    Windows,
    cut_windows,
    evaluation_batches,
    gather_batch,
    training_batches,
)
from pipelines.data.ranking_loader import ranking_gather
from pipelines.data.resident import SHARE, Residence, ResidentEvents, events_bytes, fits, resident_gather
from pipelines.data.splits import Queries, make_split
from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError, MachineError
from tests.pipelines.conftest import memory_store

CPU = torch.device("cpu")


def rich_store(lengths: list[int], seed: int = 0) -> SequenceStore:
    """Every kind of feature that a batch can hold."""
    store, random = memory_store(lengths, seed=seed), np.random.default_rng(seed)
    actions = random.integers(0, 200, len(store.items)).astype(np.uint8)
    users = {"sex": random.integers(0, 3, len(lengths)).astype(np.int32)}
    return replace(store, features={**store.features, "actions": actions}, user_features=users)


def same(one: SequenceBatch, other: SequenceBatch) -> bool:
    """Equal values, types and options in every field."""

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
        return bool(a == b)

    return all(equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))


@settings(deadline=None)
@given(
    st.lists(st.integers(4, 30), min_size=2, max_size=8),
    st.integers(1, 12),
    st.sampled_from(["rows", "tokens"]),
    st.sampled_from(["newest", "all"]),
    st.booleans(),
    st.integers(1, 3),
)
def test_batches_are_the_loaders_bit_for_bit(
    users: list[int], longest: int, batch: str, which: str, rich: bool, world: int
) -> None:
    store = rich_store(users) if rich else memory_store(users)
    windows = cut_windows(store, make_split(store, "leave-one-out").train, longest, which)
    options = LoaderOptions(max_length=longest, batch=batch, rows_per_batch=3, tokens_per_batch=20, resident="on")
    gather = resident_gather(store, options, gather_batch, CPU)
    assert gather is not None
    for rank in range(world):
        place = {"seed": 3, "epoch": 1, "first": 1, "rank": rank, "world": world}
        ours = list(training_batches(store, windows, options, gather=gather, **place))  # type: ignore[arg-type]
        theirs = list(training_batches(store, windows, options, **place))  # type: ignore[arg-type]
        assert len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 12), st.booleans(), st.integers(1, 40))
def test_batches_of_queries_are_the_loaders_bit_for_bit(
    users: list[int], longest: int, rich: bool, tokens: int
) -> None:
    """Of users with no history at all, too."""
    store = rich_store(users) if rich else memory_store(users)
    asked = Queries(np.arange(len(users)), np.asarray(store.offsets)[1:] - 1)
    size = {"max_length": longest, "tokens_per_batch": tokens}
    ours = list(evaluation_batches(store, asked, gather=ResidentEvents.of(store, CPU).gather, **size))
    theirs = list(evaluation_batches(store, asked, **size))
    assert len(ours) == len(theirs)
    for (rows, batch), (expected_rows, expected) in zip(ours, theirs, strict=True):
        assert rows.tolist() == expected_rows.tolist() and same(batch, expected)
        assert not batch.all_targets and int((batch.targets > 0).sum()) == batch.num_rows


def test_events_are_where_training_brought_them() -> None:
    store, residence = memory_store([9, 12]), Residence()
    assert residence.on(CPU) is None
    assert residence.bring(store, LoaderOptions(resident="on"), gather_batch, CPU) is not None
    assert residence.on(CPU) is residence.gather is not None and residence.on(torch.device("meta")) is None
    assert residence.bring(store, LoaderOptions(resident="off"), gather_batch, CPU) is None is residence.on(CPU)


def test_the_store_is_read_once() -> None:
    store = rich_store([9, 12, 7])
    gather = ResidentEvents.of(store, CPU).gather
    windows = cut_windows(store, make_split(store, "leave-one-out").train, 5)
    expected = gather_batch(store, windows)
    forgotten = replace(store, items=store.items[:0], timestamps=store.timestamps[:0], features={}, user_features={})
    assert same(gather(forgotten, windows), expected)


def test_a_batch_is_not_changed_by_the_next() -> None:
    store = memory_store([9, 12, 7])
    gather = ResidentEvents.of(store, CPU).gather
    windows = cut_windows(store, make_split(store, "leave-one-out").train, 5)
    expected, first = gather_batch(store, windows), gather(store, windows)
    second = gather(store, windows)
    second.items.zero_(), second.targets.zero_(), second.offsets.zero_(), second.timestamps.zero_()
    assert same(first, expected) and same(gather(store, windows), expected)


def test_an_empty_share_is_an_empty_batch() -> None:
    store = memory_store([9, 12])
    none = Windows(*(np.zeros(0, dtype=np.int64) for _ in range(3)))
    assert same(ResidentEvents.of(store, CPU).gather(store, none), gather_batch(store, none))


def test_on_a_cpu_auto_leaves_the_batches_to_the_loader() -> None:
    store = memory_store([9, 12])
    for resident, expected in (("auto", False), ("off", False), ("on", True)):
        found = resident_gather(store, LoaderOptions(resident=resident), gather_batch, CPU)
        assert (found is not None) == expected


def test_auto_takes_a_share_of_a_gpus_free_memory_and_on_all_of_it() -> None:
    assert fits("auto", int(SHARE * 1000) - 1, 1000) and not fits("auto", int(SHARE * 1000), 1000)
    assert fits("on", 1000, 1000) and not fits("off", 1, 1000)
    with pytest.raises(MachineError) as caught:
        fits("on", 3 << 30, 1 << 30)
    said = "loader.resident: the events take 3.00 GiB and the GPU has 1.00 GiB free. set loader.resident=auto."
    assert str(caught.value) == said


def test_the_bytes_are_those_of_the_tensors() -> None:
    store = rich_store([9, 12, 7])
    held = ResidentEvents.of(store, CPU)
    tensors = [held.items, held.timestamps, held.ratings, held.actions, *held.user_features.values()]
    assert events_bytes(store) == sum(t.numel() * t.element_size() for t in tensors if t is not None)
    assert held.items.dtype == torch.int32 and held.actions is not None and held.actions.dtype == torch.uint8


def test_batches_of_a_ranking_model_stay_on_the_host() -> None:
    store = memory_store([9, 12])
    assert resident_gather(store, LoaderOptions(), ranking_gather(0), CPU) is None
    with pytest.raises(ConfigError, match=r"loader.resident: .* actions"):
        resident_gather(store, LoaderOptions(resident="on"), ranking_gather(0), CPU)
