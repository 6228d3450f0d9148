"""AUC, GAUC and log loss against counting pairs."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import MachineError
from pipelines.evaluation.ranking_metrics import auc, grouped_auc, is_ranking_metric, ranking_metrics

events = st.lists(st.tuples(st.integers(0, 3), st.integers(-4, 4), st.booleans()), min_size=1, max_size=40)


def pairs_in_order(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Every pair of a positive and a negative, looked at."""
    pairs = [(high, low) for high in scores[positive] for low in scores[~positive]]
    return sum(1.0 * (high > low) + 0.5 * (high == low) for high, low in pairs) / len(pairs) if pairs else None


@settings(max_examples=60, deadline=None)
@given(events, st.sampled_from([1.0, 1e-9, 100.0]))
def test_auc_counts_pairs_whatever_the_scale(rows: list[tuple[int, int, bool]], scale: float) -> None:
    scores, positive = np.array([r[1] for r in rows]) * scale + 30, np.array([r[2] for r in rows])
    expected, found = pairs_in_order(scores, positive), auc(scores, positive)
    assert found is None if expected is None else found == pytest.approx(expected, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(events)
def test_gauc_is_each_user_s_auc_by_their_events(rows: list[tuple[int, int, bool]]) -> None:
    users, scores, positive = (np.array([r[place] for r in rows]) for place in range(3))
    each = [(pairs_in_order(scores[users == u], positive[users == u]), (users == u).sum()) for u in np.unique(users)]
    known = [(value, weight) for value, weight in each if value is not None]
    found = grouped_auc(scores.astype(float), positive, users)
    if not known:
        assert found is None
    else:
        values, weights = zip(*known, strict=True)
        assert found == pytest.approx(np.average(values, weights=weights))


def test_each_bit_is_a_task() -> None:
    logits = np.array([[2.0, 0.0], [-1.0, 5.0], [0.5, 1.0], [3.0, 2.0]])
    labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    found = ranking_metrics(logits, labels, np.array([0, 0, 1, 1]), "bits", ["click", "like"])
    assert found["AUC:click"] == pytest.approx(0.5)
    assert found["AUC:like"] == pytest.approx(0.75)
    assert found["AUC"] == pytest.approx(0.625)
    assert found["GAUC:click"] == pytest.approx(0.5) and found["GAUC:like"] == pytest.approx(0.5)
    probability = 1 / (1 + np.exp(-logits))
    expected = -(labels * np.log(probability) + (1 - labels) * np.log(1 - probability)).mean()
    assert found["LogLoss"] == pytest.approx(expected)


def test_each_class_stands_against_all_others() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 3)), rng.integers(0, 3, (40, 1))
    found = ranking_metrics(logits, labels, np.zeros(40, int), "classes", ["1", "2", "3"])
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    each = [pairs_in_order(probability[:, place], labels[:, 0] == place) for place in range(3)]
    assert [found[f"AUC:{name}"] for name in "123"] == pytest.approx(each, abs=1e-6)
    assert found["AUC"] == pytest.approx(np.mean([value for value in each if value is not None]), abs=1e-6)
    assert found["LogLoss"] == pytest.approx(-np.log(probability[np.arange(40), labels[:, 0]]).mean())


def test_a_task_without_both_outcomes_has_no_auc() -> None:
    labels = np.array([[0, 1], [0, 0]])
    found = ranking_metrics(np.array([[1.0, 2.0], [3.0, 1.0]]), labels, np.array([0, 1]), "bits", ["hate", "click"])
    assert "AUC:hate" not in found and found["AUC:click"] == found["AUC"] == 1.0
    assert not [name for name in found if name.startswith("GAUC")]  # no user has both
    only = ranking_metrics(np.zeros((2, 1)), np.zeros((2, 1)), np.array([0, 1]), "bits", ["hate"])
    assert only.keys() == {"LogLoss"}


def test_selection_takes_what_is_better_when_greater() -> None:
    assert all(is_ranking_metric(name) for name in ("AUC", "GAUC", "AUC:click", "GAUC:4.5"))
    assert not any(is_ranking_metric(name) for name in ("LogLoss", "NDCG@10", "auc", "AUC@10", "AUC:"))


def test_a_missing_torchmetrics_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional", None)
    with pytest.raises(MachineError, match=r"torchmetrics.*recpod\[hstu\]"):
        auc(np.array([1.0, 2.0]), np.array([True, False]))
