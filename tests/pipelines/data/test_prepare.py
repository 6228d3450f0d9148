from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.prepare import PrepareOptions, _stable_order, core_mask, prepare
from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError, DataError

Build = Callable[..., SequenceStore]


def make(tmp_path: Path, columns: dict[str, Any], **options: Any) -> SequenceStore:
    return prepare(pl.DataFrame(columns), tmp_path / "s", source={"name": "t.csv"}, options=PrepareOptions(**options))


def test_equal_times_keep_the_file_order(build: Build) -> None:
    items = [5, 3, 9, 1, 7, 2, 8, 6]
    store = build([(1, item, 100) for item in items] + [(2, item, 100 - item) for item in items])
    assert store.item_ids()[store.items[:8] - 1].tolist() == items
    assert store.item_ids()[store.items[8:] - 1].tolist() == sorted(items, reverse=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.none() | st.integers(0, 2)), min_size=1, max_size=60)
)
def test_stable_order_is_pythons(rows: list[tuple[int, int, int | None]]) -> None:
    user = np.array([r[0] for r in rows], dtype=np.int32)
    time = np.array([r[1] for r in rows], dtype=np.int64)
    expected = sorted(range(len(rows)), key=lambda row: (user[row], time[row]))
    assert _stable_order(user, time, None).tolist() == expected
    far = time * 2**60  # one key of user and time would overflow
    assert _stable_order(user, far, None).tolist() == expected
    order = np.array([r[2] or 0 for r in rows], dtype=np.int64)
    assert _stable_order(user, time, order).tolist() == sorted(
        range(len(rows)), key=lambda row: (user[row], time[row], order[row])
    )


def test_numbering_does_not_depend_on_the_file_order(build: Build) -> None:
    rows = [
        (user, item, time) for time, (user, item) in enumerate([(30, 7), (10, 9), (30, 9), (20, 7), (10, 1), (20, 2)])
    ]
    first = build(rows)
    ids, arrays = first.item_ids().tolist(), [first.items.tolist(), first.offsets.tolist()]
    second = build(rows[::-1])
    assert second.item_ids().tolist() == ids == [1, 2, 7, 9]
    assert [second.items.tolist(), second.offsets.tolist()] == arrays


def test_sparse_and_string_ids(build: Build) -> None:
    sparse = build([(10**15, -4, 1), (-(10**15), 10**12, 2), (3, -4, 3)])
    assert sparse.user_ids().tolist() == [-(10**15), 3, 10**15]
    assert sparse.item_ids()[sparse.items - 1].tolist() == [10**12, -4, -4]
    text = build([("10", "é", 1), ("9", "a", 2), ("10", "a", 3)])
    assert text.user_ids().tolist() == ["10", "9"]
    assert text.item_ids()[text.items - 1].tolist() == ["é", "a", "a"]


def test_out_of_order_events_are_counted(build: Build) -> None:
    in_order = build([(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 2, 2)])
    assert in_order.manifest["events_out_of_time_order"] == 0
    mixed = build([(1, 1, 5), (1, 2, 4), (1, 3, 6), (2, 1, 1), (2, 2, 2)])
    assert mixed.manifest["events_out_of_time_order"] == mixed.num_out_of_order == 1


def brute_core(rows: list[tuple[int, int]], users: int, items: int) -> list[bool]:
    kept = [True] * len(rows)
    while True:
        left = [row for row, keep in zip(rows, kept, strict=True) if keep]
        by_user, by_item = Counter(r[0] for r in left), Counter(r[1] for r in left)
        new = [k and by_user[r[0]] >= users and by_item[r[1]] >= items for r, k in zip(rows, kept, strict=True)]
        if new == kept:
            return kept
        kept = new


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_core_is_the_brute_force_one(rows: list[tuple[int, int]], users: int, items: int) -> None:
    user = np.array([r[0] for r in rows], dtype=np.int32)
    item = np.array([r[1] for r in rows], dtype=np.int32)
    assert core_mask(user, item, users, items).tolist() == brute_core(rows, users, items)


def test_filters_close_the_gaps_in_the_numbering(tmp_path: Path) -> None:
    columns = {
        "user_id": [1, 1, 2, 2, 3, 4],
        "item_id": [10, 30, 10, 30, 20, 10],
        "timestamp": [1, 2, 3, 4, 5, 6],
        "rating": [5.0, 4.0, 4.0, 4.5, 5.0, 1.0],
    }
    store = make(tmp_path, columns, min_user_events=2, min_item_events=2, min_rating=4)
    assert store.user_ids().tolist() == [1, 2]
    assert store.item_ids().tolist() == [10, 30]
    assert store.items.tolist() == [1, 2, 1, 2]
    assert store.features["ratings"].tolist() == [5.0, 4.0, 4.0, 4.5]
    assert store.manifest["counts"] == {"users": 2, "items": 2, "events": 4}
    assert store.manifest["events_before_filters"] == 6
    assert store.manifest["filters"]["min_rating"] == 4


def test_oldest_share_cuts_by_time(build: Build) -> None:
    store = build([(1 + time % 2, time, 1000 - time) for time in range(10)], oldest_share=0.8)
    assert sorted(store.timestamps.tolist()) == list(range(991, 999))


def test_milliseconds_are_named_and_converted_after_sorting(build: Build) -> None:
    rows = [(1, 1, 1_506_826_828_900), (1, 2, 1_506_826_828_020), (1, 3, 1_506_826_858_020)]
    with pytest.raises(DataError, match="look like milliseconds.*--set dataset.timestamp_unit=ms .*timestamp_unit: ms"):
        build(rows)
    store = build(rows, timestamp_unit="ms")
    assert store.timestamps.tolist() == [1_506_826_828, 1_506_826_828, 1_506_826_858]
    assert store.items.tolist() == [2, 1, 3]
    with pytest.raises(DataError, match="microseconds"):
        build([(1, 1, 1_506_826_828_900_000), (1, 2, 5)])
    assert build([(1, 1, 15_000), (1, 2, 15_001)], timestamp_unit="days").timestamps.tolist() == [
        1_296_000_000,
        1_296_086_400,
    ]
    with pytest.raises(DataError, match="beyond the year 5138"):
        build(rows, timestamp_unit="days")


def test_order_column_breaks_ties_before_the_file_order(tmp_path: Path) -> None:
    store = make(tmp_path, {"user_id": [1, 1, 1], "item_id": [1, 2, 3], "timestamp": [9, 9, 8], "order": [1, 0, 2]})
    assert store.items.tolist() == [3, 2, 1]


def test_order_stands_for_missing_times(tmp_path: Path) -> None:
    store = make(tmp_path, {"user_id": [2, 1, 2, 2], "item_id": [1, 2, 3, 4], "order": [10, 11, 12, 5]})
    assert store.timestamps.tolist() == [0, 0, 1, 2]
    assert store.items.tolist() == [2, 4, 1, 3]
    assert store.manifest["timestamps"] == "order"


def test_features_follow_their_events(tmp_path: Path) -> None:
    columns = {"user_id": [1, 1, 1], "item_id": [1, 2, 3], "timestamp": [3, 2, 1], "dwell": [0.3, 0.2, 0.1]}
    store = make(tmp_path, columns, features=("dwell",))
    assert store.features["dwell"].tolist() == [0.1, 0.2, 0.3]


GOOD = {"user_id": [1, 2], "item_id": [1, 2], "timestamp": [1, 2], "rating": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"item_id": None, "timestamp": None}, {}, r"columns missing: item_id, timestamp .*found: user_id, rating"),
        ({"rating": None}, {"min_rating": 3}, "columns missing: rating; .*dataset.options.rating=COLUMN"),
        ({name: [] for name in GOOD}, {}, "holds no events"),
        ({"timestamp": [1, None]}, {}, "1 of 2 events have no timestamp"),
        ({"timestamp": [-1, 2]}, {}, "1 of 2 timestamps are negative"),
        ({"timestamp": [1.5, 2.5]}, {}, "timestamp holds Float64, not whole numbers"),
        ({"user_id": [1.5, 2.5]}, {}, "user_id holds Float64"),
        ({"rating": [1.0, float("nan")]}, {}, "ratings holds values that are not finite"),
        ({}, {"min_rating": 9}, "leave none of 2 events"),
        ({}, {"min_user_events": 5}, "leave none of 2 events"),
    ],
)
def test_bad_tables(tmp_path: Path, change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    columns = {name: values for name, values in (GOOD | change).items() if values is not None}
    with pytest.raises(DataError, match=message) as caught:
        make(tmp_path, columns, **options)
    assert str(caught.value).startswith("t.csv: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [{"min_user_events": 0}, {"oldest_share": 1.5}, {"timestamp_unit": "sec"}, {"timestamps": "second"}],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PrepareOptions(**options)
