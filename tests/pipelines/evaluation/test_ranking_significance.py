"""AUC under resampled users: held against pairs that are looked at one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.evaluation.ranking_metrics import ranking_metrics
from pipelines.evaluation.ranking_significance import (
    Asked,
    paired_ranking_tests,
    ranking_intervals,
    resampled_metrics,
)
from tests.pipelines.evaluation.test_ranking_metrics import pairs_in_order

rows = st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3), st.booleans()), min_size=2, max_size=40)


def asked_of(found: list[tuple[int, int, bool]]) -> tuple[Asked, np.ndarray]:
    users = np.unique([user for user, _, _ in found], return_inverse=True)[1]
    outcome = np.array([[hit] for _, _, hit in found])
    return Asked(users, outcome, ["click"]), np.array([[score] for _, score, _ in found], np.float64)


def noisy(users: int, events: int, noise: float, seed: int = 0) -> tuple[Asked, np.ndarray]:
    """Two tasks; the scores tell the outcomes but for noise."""
    rng = np.random.default_rng(seed)
    outcomes = rng.random((users * events, 2)) < 0.4
    scores = outcomes + noise * rng.normal(size=outcomes.shape)
    return Asked(np.repeat(np.arange(users), events), outcomes, ["click", "like"]), scores


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(0, 5))
def test_a_user_drawn_twice_counts_with_all_events_twice(found: list[tuple[int, int, bool]], seed: int) -> None:
    asked, scores = asked_of(found)
    values = resampled_metrics(asked, [scores], 1, seed)
    if not asked.outcomes.any() or asked.outcomes.all():
        assert not values
        return
    weights = np.random.default_rng(seed).multinomial(asked.num_users, np.full(asked.num_users, 1 / asked.num_users))
    for row, times in enumerate((np.ones_like(weights), weights)):
        copied = np.repeat(np.arange(len(scores)), times[asked.users])
        expected = pairs_in_order(scores[copied, 0], asked.outcomes[copied, 0])
        auc = values["AUC"][row, 0]
        assert np.isnan(auc) if expected is None else auc == pytest.approx(expected)
        each = [(n, scores[asked.users == u, 0], asked.outcomes[asked.users == u, 0]) for u, n in enumerate(times)]
        known = [(pairs_in_order(s, hit), n * len(s)) for n, s, hit in each if n and pairs_in_order(s, hit) is not None]
        if known and "GAUC" in values:
            found_mean = np.average([value for value, _ in known], weights=[weight for _, weight in known])
            assert values["GAUC"][row, 0] == pytest.approx(found_mean)


def test_what_was_found_is_what_the_metrics_say() -> None:
    asked, scores = noisy(20, 7, 1.0)
    metrics = ranking_metrics(scores, asked.outcomes, asked.users, "bits", asked.names)
    values = resampled_metrics(asked, [scores, -scores], 3, 0)
    assert set(values) == set(metrics) - {"LogLoss"}
    for metric, each in values.items():
        assert each.shape == (4, 2) and each[0, 0] == pytest.approx(metrics[metric], abs=1e-6)
        assert each[0, 1] == pytest.approx(1 - metrics[metric], abs=1e-6)


def test_intervals_are_about_users_and_not_about_their_events() -> None:
    """The same events ten times over say nothing new: the interval stays; ten times as many users narrow it."""
    asked, scores = noisy(40, 5, 1.5)
    tenfold = np.repeat(np.arange(len(scores)), 10)
    repeated = Asked(asked.users[tenfold], asked.outcomes[tenfold], asked.names)
    once, often = ranking_intervals(asked, scores), ranking_intervals(repeated, scores[tenfold])
    assert set(once) == {"AUC", "GAUC", "AUC:click", "AUC:like", "GAUC:click", "GAUC:like"}
    for metric, ends in once.items():
        assert often[metric] == pytest.approx(ends)
    many = ranking_intervals(*noisy(400, 5, 1.5))
    narrower = (many["AUC"][1] - many["AUC"][0]) / (once["AUC"][1] - once["AUC"][0])
    assert 0.2 < narrower < 0.5  # a third
    found = resampled_metrics(asked, [scores], 0, 0)["AUC"][0, 0]
    assert once["AUC"][0] < found < once["AUC"][1]


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Of 150 samples of 30 users who differ in how easy they are, 19 in 20 intervals hold the AUC of all."""
    whole, scores = noisy(4500, 4, 1.0, seed=9)
    ease = np.repeat(np.random.default_rng(1).normal(size=4500), 4)[:, None]
    scores = scores + 2 * ease * whole.outcomes
    truth = resampled_metrics(whole, [scores], 0, 0)["AUC"][0, 0]
    held = 0
    for part in range(150):
        own = slice(part * 120, part * 120 + 120)
        asked = Asked(whole.users[own] - part * 30, whole.outcomes[own], whole.names)
        low, high = ranking_intervals(asked, scores[own], resamples=200)["AUC"]
        held += low <= truth <= high
    assert 0.87 < held / 150 <= 0.99


def test_a_pair_of_runs_is_tested_on_the_same_resamples() -> None:
    asked, scores = noisy(60, 6, 2.0)
    better = 0.5 * asked.outcomes + scores
    for metric, (values, test) in paired_ranking_tests(asked, [scores], [better], resamples=300).items():
        assert test.difference == pytest.approx(values[1] - values[0]) and 0 < test.low < test.difference < test.high
        assert test.p_value == pytest.approx(1 / 301), metric
    for _, test in paired_ranking_tests(asked, [scores], [2 * scores], resamples=50).values():
        assert (test.difference, test.low, test.high, test.p_value) == (0.0, 0.0, 0.0, 1.0)  # the same order
    seeds = paired_ranking_tests(asked, [scores, better], [better, better], resamples=50)["AUC"]
    assert len(seeds[0]) == 4
    assert seeds[1].difference == pytest.approx((seeds[0][1] - seeds[0][0]) / 2)


def test_runs_that_do_not_differ_are_seldom_told_apart() -> None:
    """Two equally noisy models, 200 times: about one in twenty p-values is below .05."""
    below = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        outcomes = rng.random((160, 1)) < 0.4
        asked = Asked(np.repeat(np.arange(40), 4), outcomes, ["click"])
        pair = ([outcomes + 2 * rng.normal(size=(160, 1))] for _ in range(2))
        below += paired_ranking_tests(asked, *pair, resamples=200)["AUC"][1].p_value < 0.05
    assert 0.005 < below / 200 < 0.1


def test_no_events_are_refused_and_a_task_without_both_outcomes_has_no_value() -> None:
    with pytest.raises(DataError, match="no event"):
        resampled_metrics(Asked(np.zeros(0, int), np.zeros((0, 1), bool), ["x"]), [np.zeros((0, 1))], 1, 0)
    asked, scores = noisy(10, 4, 1.0)
    asked.outcomes[:, 1] = False
    assert set(resampled_metrics(asked, [scores], 5, 0)) == {"AUC", "GAUC", "AUC:click", "GAUC:click"}
