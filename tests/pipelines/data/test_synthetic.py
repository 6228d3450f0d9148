"""Made-up data: distributions are what they say, descriptions give the same events again, stores come out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.formats import read_interactions, read_users
from pipelines.data.synthetic import Description, Distribution, read_description
from pipelines.errors import ConfigError, DataError


def drawn(size: int = 20_000, **options: Any) -> np.ndarray:
    return Distribution(**options).draw(np.random.default_rng(0), size)


def test_uniform() -> None:
    found = drawn(kind="uniform", low=3, high=8)
    assert set(found.tolist()) == {3, 4, 5, 6, 7} and found.dtype == np.int64


def test_normal_and_lognormal_have_the_mean_and_spread_of_the_numbers_themselves() -> None:
    for kind in ("normal", "lognormal"):
        found = drawn(kind=kind, mean=512.0, std=100.0)
        assert found.mean() == pytest.approx(512, rel=0.02) and found.std() == pytest.approx(100, rel=0.05)
    assert drawn(kind="lognormal", mean=100.0).std() == pytest.approx(50, rel=0.05)  # half the mean
    assert np.median(drawn(kind="lognormal", mean=100.0)) < 92  # skewed to the right


def test_zipf_begins_at_low_with_the_likeliest() -> None:
    found = drawn(kind="zipf", low=4, alpha=2.0)
    share = np.bincount(found)[[4, 5, 6]] / len(found)
    assert share == pytest.approx([6 / np.pi**2, 6 / np.pi**2 / 4, 6 / np.pi**2 / 9], rel=0.06)
    assert drawn(kind="zipf", alpha=1.05).min() == 0


@given(
    kind=st.sampled_from(["uniform", "normal", "zipf", "lognormal"]),
    low=st.integers(0, 50),
    width=st.integers(1, 50),
    mean=st.floats(0.5, 200),
    std=st.floats(0.1, 500),
    alpha=st.floats(1.01, 5),
)
def test_numbers_stay_inside(kind: str, low: int, width: int, mean: float, std: float, alpha: float) -> None:
    found = drawn(200, kind=kind, low=low, high=low + width, mean=mean, std=std, alpha=alpha)
    assert found.min() >= low and found.max() < low + width


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"kind": "gauss"}, "unknown distribution 'gauss'"),
        ({"kind": "uniform"}, "needs 'high'"),
        ({"kind": "uniform", "low": 3, "high": 3}, "no whole number lies from 3 to below 3"),
        ({"kind": "zipf", "low": -1}, "no whole number"),
        ({"kind": "zipf", "alpha": 1.0}, "above 1, not 1.0"),
        ({"kind": "normal", "mean": 1.0}, "needs 'std'"),
        ({"kind": "normal", "std": 1.0}, "needs 'mean'"),
        ({"kind": "lognormal", "mean": 0.0}, "above 0, not 0.0"),
        ({"kind": "normal", "mean": 1.0, "std": 0.0}, "above 0, not 0.0"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        Distribution(**options)


def description(**changes: Any) -> Description:
    values: dict[str, Any] = {
        "users": 30,
        "lengths": Distribution("uniform", low=0, high=6),
        "items": Distribution("zipf", high=12),
        "actions": Distribution("uniform", high=8),
        "context": {"age": Distribution("uniform", high=4), "sex": Distribution("uniform", high=2)},
        "seed": 5,
    }
    return Description(**{**values, **changes})


def test_a_description_gives_the_same_events_again(tmp_path: Path) -> None:
    path = tmp_path / "made-up.json"
    path.write_text(description().to_json(), encoding="utf-8")
    assert read_description(path) == description()
    for name, values in description().events().items():
        assert np.array_equal(values, read_description(path).events()[name]), name
    other = description(seed=6).events()
    assert not np.array_equal(description().events()["user_id"], other["user_id"])


def test_a_change_of_one_part_leaves_the_others(tmp_path: Path) -> None:
    before = description().events()
    after = description(items=Distribution("uniform", high=12), context=None).events()
    assert np.array_equal(before["user_id"], after["user_id"]) and np.array_equal(before["actions"], after["actions"])
    both, one = description().user_table(["sex", "age"]), description().user_table(["age"])
    assert np.array_equal(both["age"], one["age"]) and not np.array_equal(both["age"], both["sex"])


def test_the_reader_gives_events_and_users(tmp_path: Path) -> None:
    path = tmp_path / "made-up.json"
    path.write_text(description(action_column="rating").to_json(), encoding="utf-8")
    table = read_interactions(path, "synthetic")
    assert table.columns == ["user_id", "item_id", "timestamp", "rating"]
    assert table.group_by("user_id").len()["len"].max() == 5
    users = read_users(path, ["age"], "synthetic")
    assert users.columns == ["user_id", "age"] and users.height == 30
    with pytest.raises(ConfigError, match="no feature 'agee' is described. did you mean 'age'"):
        read_users(path, ["agee"], "synthetic")


@pytest.mark.parametrize("text", ["[]", "{", '{"users": 3}', '{"users": 3, "lengths": {"kind": "gauss"}, "items": 3}'])
def test_what_is_no_description_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "made-up.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"made-up.json"):
        read_description(path)
