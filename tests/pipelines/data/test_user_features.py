"""Users' features and actions on their way into a store and out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.data.actions import checked_mask, classes_of_ratings
from pipelines.data.prepare import PrepareOptions, prepare
from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError, DataError

TABLE = pl.DataFrame(
    {
        "user_id": [30, 10, 30, 10, 20],
        "item_id": [1, 2, 3, 4, 5],
        "timestamp": [1, 2, 3, 4, 5],
        "rating": [5.0, 0.5, 3.0, 4.5, 1.0],
        "actions": [3, 0, 1, 2, 3],
    }
)
USERS = pl.DataFrame({"user_id": [40, 30, 20, 10], "sex": ["F", "M", None, "F"], "age": [50, 7, 35, 7]})


def build(tmp_path: Path, users: pl.DataFrame | None = USERS, **options: Any) -> SequenceStore:
    return prepare(TABLE, tmp_path / "s", source={"name": "t"}, options=PrepareOptions(**options), users=users)


def test_codes_follow_the_store_s_users_and_zero_is_unknown(tmp_path: Path) -> None:
    store = build(tmp_path, user_features=("user_id", "sex", "age"))
    assert store.user_ids().tolist() == [10, 20, 30]
    assert {name: codes.tolist() for name, codes in store.user_features.items()} == {
        "user_id": [1, 2, 3],
        "sex": [1, 0, 2],
        "age": [1, 2, 1],
    }
    assert store.user_feature_sizes == {"user_id": 4, "sex": 3, "age": 3}  # user 40 has no events
    assert store.user_feature_values("sex").tolist() == ["F", "M"]
    assert store.user_feature_values("age").tolist() == [7, 35]
    assert all(isinstance(codes, np.memmap) for codes in store.user_features.values())  # opening reads nothing
    assert store.features.keys() == {"ratings"}


def test_a_user_without_a_row_is_unknown(tmp_path: Path) -> None:
    store = build(tmp_path, USERS.filter(pl.col("user_id") != 20), user_features=("age",))
    assert store.user_features["age"].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("users", "problem"),
    [
        (None, "user features missing: sex; found: no table of users"),
        (USERS.drop("sex"), "user features missing: sex; found: user_id, age"),
        (pl.concat([USERS, USERS[:1]]), "user 40 stands twice"),
        (USERS[:1], "knows none of the users"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, users: pl.DataFrame | None, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        build(tmp_path, users, user_features=("sex",))


def test_filters_keep_users_and_features_together(tmp_path: Path) -> None:
    store = build(tmp_path, user_features=("sex",), min_user_events=2)
    assert store.user_ids().tolist() == [10, 30]
    assert store.user_features["sex"].tolist() == [1, 2]


def test_ratings_become_classes(tmp_path: Path) -> None:
    store = build(tmp_path, rating_levels=[0.5, 1, 3, 4.5, 5])
    assert store.features["actions"].tolist() == [0, 3, 1, 4, 2]  # users 10, 20, 30, each by time
    assert store.features["actions"].dtype == np.uint8
    assert store.actions == {"kind": "classes", "names": ["0.5", "1", "3", "4.5", "5"]}
    with pytest.raises(DataError, match=r"2 of 5 ratings are none of rating_levels, such as 0.5"):
        build(tmp_path, rating_levels=[1, 3, 5])


def test_bits_are_kept_as_they_are(tmp_path: Path) -> None:
    store = build(tmp_path, action_bits=["click", "like"])
    assert store.features["actions"].tolist() == [0, 2, 3, 3, 1]
    assert store.actions == {"kind": "bits", "names": ["click", "like"]}
    with pytest.raises(DataError, match="actions reach from 0 to 3, 1 bits have names"):
        build(tmp_path, action_bits=["click"])


def test_masks_and_classes_in_the_narrowest_type() -> None:
    assert checked_mask(np.array([0, 511]), list("abcdefghi"), "t").dtype == np.uint16
    assert classes_of_ratings(np.array([1, 2], dtype=np.float32), [1, 2], "t").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rating_levels": [1, 2], "action_bits": ["click"]}, "not from both"),
        ({"rating_levels": [2, 1]}, "ascending"),
        ({"action_bits": [f"b{place}" for place in range(17)]}, "17 names"),
        ({"user_features": ["age", "age"]}, "age twice"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        PrepareOptions(**options)


def test_a_token_feature_may_not_take_a_users_name(tmp_path: Path) -> None:
    table = TABLE.with_columns(user_sex=pl.lit(1))
    options = PrepareOptions(features=("user_sex",), user_features=("sex",))
    with pytest.raises(DataError, match="user_sex is a token feature and a user feature"):
        prepare(table, tmp_path / "s", source={"name": "t"}, options=options, users=USERS)


def test_a_store_without_features_is_described_as_before(tmp_path: Path) -> None:
    store = build(tmp_path)
    later = {"rating_levels", "action_bits", "user_features"}
    assert not later & PrepareOptions().described().keys()
    assert not (later | {"actions"}) & (store.manifest.keys() | store.manifest["filters"].keys())
    assert (store.actions, store.user_features, store.user_feature_sizes) == (None, {}, {})


def test_lost_codes_are_noticed(tmp_path: Path) -> None:
    path = build(tmp_path, user_features=("sex",)).path
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["arrays"].pop("user_sex")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="lacks a usable user_sex"):
        SequenceStore.open(path)
