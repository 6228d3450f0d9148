from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.data.prepare import PrepareOptions, prepare
from pipelines.data.splits import Queries, make_split
from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError, DataError
from tests.pipelines.conftest import memory_store

Build = Callable[..., SequenceStore]


def pairs(queries: Queries) -> list[tuple[int, int]]:
    return list(zip(queries.user.tolist(), queries.end.tolist(), strict=True))


def sequences(lengths: list[int]) -> list[tuple[int, int, int]]:
    return [(user, event % 3, 10 * event + user) for user, length in enumerate(lengths) for event in range(length)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 7), min_size=2, max_size=12))
def test_leave_one_out_is_the_brute_force_one(build: Build, lengths: list[int]) -> None:
    lengths = [*lengths, 5]
    store = build(sequences(lengths))
    train, valid, test, start = [], [], [], 0
    for user, length in enumerate(lengths):
        end = start + length
        held = 2 if length >= 3 else 0
        if held:
            test.append((user, end - 1))
            valid.append((user, end - 2))
        if length - held >= 2:
            train.append((user, end - held - 1))
        start = end
    split = make_split(store, "leave-one-out")
    assert (pairs(split.train), pairs(split.valid), pairs(split.test)) == (train, valid, test)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(1, 30)), min_size=8, max_size=50),
    targets=st.sampled_from(["first", "all"]),
)
def test_global_time_is_the_brute_force_one(build: Build, rows: list[tuple[int, int, int]], targets: str) -> None:
    # two users with an event in every period keep each part inhabited
    rows = [*rows, *[(user, time % 2, time) for user in (8, 9) for time in (2, 3, 12, 22)]]
    store = build(rows)
    wanted: dict[str, list[tuple[int, int]]] = {"train": [], "valid": [], "test": []}
    for user in range(store.num_users):
        asked = set()
        for event in range(int(store.offsets[user]), int(store.offsets[user + 1])):
            time = int(store.timestamps[event])
            part = "train" if time < 10 else "valid" if time < 20 else "test"
            if event == store.offsets[user]:
                continue
            if part == "train":
                wanted["train"] = [q for q in wanted["train"] if q[0] != user]
            elif targets == "first" and part in asked:
                continue
            wanted[part].append((user, event))
            asked.add(part)
    split = make_split(store, "global-time", valid_from=10, test_from=20, targets=targets)
    assert pairs(split.train) == wanted["train"]
    assert pairs(split.valid) == wanted["valid"]
    assert pairs(split.test) == wanted["test"]


def test_shares_are_shares_of_events_by_time(build: Build) -> None:
    store = build([(event % 2, event % 5, 1000 + event) for event in range(100)])
    split = make_split(store, "global-time", targets="all")
    assert sorted(store.timestamps[split.valid.end].tolist()) == list(range(1080, 1090))
    assert sorted(store.timestamps[split.test.end].tolist()) == list(range(1090, 1100))
    assert store.timestamps[split.train.end].tolist() == [1078, 1079]
    assert "1080" in split.description


def test_digest_tells_splits_apart(build: Build) -> None:
    rows = sequences([5, 6, 7])
    store = build(rows)
    digests = {
        make_split(store, "leave-one-out").digest,
        make_split(store, "global-time", valid_from=20, test_from=40).digest,
        make_split(store, "global-time", valid_from=20, test_from=40, targets="all").digest,
    }
    assert len(digests) == 3
    assert make_split(store, "leave-one-out").digest in digests
    rows[0] = (0, 2, 0)
    assert make_split(build(rows), "leave-one-out").digest not in digests  # same queries, other events


def test_too_small_data(build: Build) -> None:
    with pytest.raises(DataError, match="at least 2 users and 2 items, the data have 1 and 3.*loosen the filters"):
        make_split(build(sequences([6])), "leave-one-out")
    with pytest.raises(DataError, match="leaves no training query.*at least 4 events"):
        make_split(build(sequences([3, 3])), "leave-one-out")
    with pytest.raises(DataError, match="leaves no validation query"):
        make_split(build(sequences([2, 2])), "leave-one-out")
    with pytest.raises(DataError, match="leaves no test query.*Move valid_from"):
        make_split(build(sequences([6, 6])), "global-time", valid_from=20, test_from=1000)


@pytest.mark.parametrize("clock", ["relative", "order"])
def test_global_time_needs_a_shared_clock(tmp_path: Path, clock: str) -> None:
    times = {"order" if clock == "order" else "timestamp": list(range(12))}
    table = pl.DataFrame({"user_id": [0, 1, 2] * 4, "item_id": [0, 1] * 6} | times)
    options = PrepareOptions(timestamps="relative") if clock == "relative" else PrepareOptions()
    store = prepare(table, tmp_path / "s", source={"name": "t"}, options=options)
    assert len(make_split(store, "leave-one-out").test) == 3
    with pytest.raises(DataError, match=f"have '{clock}'.*leave-one-out"):
        make_split(store, "global-time")


def test_wrong_arguments(build: Build) -> None:
    store = build(sequences([6, 6]))
    with pytest.raises(ConfigError, match="did you mean 'leave-one-out'"):
        make_split(store, "leave_one_out")
    with pytest.raises(ConfigError, match="unknown targets 'firs'.*did you mean 'first'"):
        make_split(store, "global-time", targets="firs")
    with pytest.raises(ConfigError, match="belong to a global-time split"):
        make_split(store, "leave-one-out", test_from=5)
    with pytest.raises(ConfigError, match="must lie before"):
        make_split(store, "global-time", valid_from=40, test_from=20)
    with pytest.raises(ConfigError, match="share between 0 and 1"):
        make_split(store, "global-time", valid_from=-0.5)


@given(st.lists(st.integers(1, 12), min_size=12, max_size=40), st.integers(0, 5))
def test_users_who_are_tested_train_nothing(users: list[int], seed: int) -> None:
    store = memory_store(users)
    split = make_split(store, "users", shares=(0.2, 0.3), seed=seed) if sum(u >= 2 for u in users) > 9 else None
    if split is None:
        return
    groups = [set(queries.user.tolist()) for queries in (split.train, split.valid, split.test)]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    asked = np.flatnonzero(np.diff(store.offsets) >= 2)
    assert groups[0] | groups[1] | groups[2] == set(asked.tolist())
    assert [len(split.valid), len(split.test)] == [round(0.2 * len(asked)), round(0.3 * len(asked))]
    for queries in (split.train, split.valid, split.test):
        assert (queries.end == store.offsets[queries.user + 1] - 1).all()
        assert (np.diff(queries.user) > 0).all()


def test_the_draw_of_users_is_repeatable_and_has_a_seed() -> None:
    store = memory_store([5] * 60)
    first, again, other = (make_split(store, "users", seed=seed) for seed in (1, 1, 2))
    assert first.digest == again.digest != other.digest
    with pytest.raises(ConfigError, match="shares of users"):
        make_split(store, "users", shares=(0.5, 0.5))
    with pytest.raises(DataError, match="leaves no validation query"):
        make_split(memory_store([5] * 4), "users")


def test_several_events_of_a_user_can_be_held_out() -> None:
    store = memory_store([9, 6, 7, 3])
    split = make_split(store, "leave-one-out", held_out=3)
    assert split.test.user.tolist() == split.valid.user.tolist() == [0, 2]  # the others have fewer than 7
    assert split.test.end.tolist() == [8, 21]
    assert split.valid.end.tolist() == [5, 18]
    assert split.train.end.tolist() == [2, 14, 24]  # user 2's only training event has no history; the short ones train
    assert make_split(store, "leave-one-out").digest == make_split(store, "leave-one-out", held_out=1).digest
    with pytest.raises(ConfigError, match="held_out is 0"):
        make_split(store, "leave-one-out", held_out=0)
