"""Bootstrap intervals and the paired test: coverage, agreement with plain resampling, power and size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipelines.errors import DataError
from pipelines.evaluation import significance
from pipelines.evaluation.significance import bootstrap_interval, paired_test


def ranks(seed: int, hit: float, users: int = 400) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(users) < hit, rng.integers(1, 11, users), 1000)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """300 samples of 400 users with HR@10 = .25: a 90% interval must cover 270 of them, give or take 3 sigma (15)."""
    covered = 0
    for seed in range(300):
        interval = bootstrap_interval(ranks(seed, 0.25), "HR@10", level=0.9, seed=seed)
        covered += interval.low <= 0.25 <= interval.high
    assert 252 <= covered <= 288


def test_interval_agrees_with_plain_resampling_of_users() -> None:
    observed = ranks(0, 0.3, users=2000)
    gains = np.where(observed <= 10, 1 / np.log2(observed + 1.0), 0)
    rng = np.random.default_rng(9)
    plain = gains[rng.integers(0, 2000, size=(2000, 2000))].mean(axis=1)
    interval = bootstrap_interval(observed, "NDCG@10", resamples=20_000)
    assert interval.mean == pytest.approx(gains.mean(), abs=1e-12)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=8e-4)
    assert bootstrap_interval(observed, "NDCG@10", seed=3) == bootstrap_interval(observed, "NDCG@10", seed=3)


def test_users_cost_no_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resample draws a number for each distinct value, however many users share them."""
    drawn: list[int] = []

    class Counted:
        def __init__(self, seed: object) -> None:
            self.rng = make(seed)

        def __getattr__(self, name: str) -> Callable[..., np.ndarray]:
            def draw(*arguments: object, **options: object) -> np.ndarray:
                found: np.ndarray = getattr(self.rng, name)(*arguments, **options)
                drawn.append(found.size)
                return found

            return draw

    many, make = ranks(1, 0.3, users=100_000), np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", Counted)
    bootstrap_interval(many, "NDCG@10", resamples=1000)
    assert 1000 < sum(drawn) <= 1000 * 11  # NDCG@10 takes eleven values


def test_paired_test_finds_a_difference_and_its_direction() -> None:
    worse = ranks(4, 0.2, users=3000)
    better = np.where(np.random.default_rng(5).random(3000) < 0.05, 1, worse)
    result = paired_test(worse, better, "NDCG@10")
    assert result.p_value == pytest.approx(1 / 10_001)
    assert 0 < result.low < result.difference < result.high
    assert paired_test(better, worse, "NDCG@10").difference == pytest.approx(-result.difference)


def test_paired_test_stays_quiet_without_a_difference() -> None:
    """Two runs of equal quality: p below .05 in about 5% of 200 pairs (10, sigma 3)."""
    small = sum(
        paired_test(ranks(s, 0.3), ranks(1000 + s, 0.3), "NDCG@10", resamples=500).p_value < 0.05 for s in range(200)
    )
    assert 1 <= small <= 21
    same = ranks(0, 0.3)
    assert paired_test(same, same, "HR@10").p_value == 1.0


def test_paired_test_by_hand() -> None:
    """Three users, two differ in B's favour by 1: both signs agree in half of the assignments, p = 1/2."""
    result = paired_test(np.array([99, 99, 1]), np.array([1, 1, 1]), "HR@1", resamples=20_000)
    assert result.difference == pytest.approx(2 / 3)
    assert result.p_value == pytest.approx(0.5, abs=0.02)


def test_several_seeds_are_their_mean_for_each_user() -> None:
    """Against plain NumPy: gains averaged over seeds first, then users resampled and signs flipped."""
    a, b = (np.stack([ranks(10 * side + s, 0.3 + 0.03 * side, users=500) for s in range(3)]) for side in (0, 1))
    gains = [np.where(one <= 10, 1 / np.log2(one + 1.0), 0).mean(axis=0) for one in (a, b)]
    difference = gains[1] - gains[0]
    rng = np.random.default_rng(7)
    plain = difference[rng.integers(0, 500, size=(4000, 500))].mean(axis=1)
    signs = rng.choice([-1, 1], size=(4000, 500))
    p = (np.abs(signs @ difference) >= abs(difference.sum())).mean()
    found = paired_test(a, b, "NDCG@10")
    assert found.difference == pytest.approx(difference.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=2e-3)
    assert found.p_value == pytest.approx(p, abs=0.03) and 0.001 < p < 0.9
    single = paired_test(a[0], b[0], "NDCG@10")
    assert found.high - found.low < single.high - single.low  # seeds' noise averages out
    assert paired_test(a[:1], b[:1], "NDCG@10") == single
    interval = bootstrap_interval(a, "NDCG@10")
    assert interval.mean == pytest.approx(gains[0].mean(), abs=1e-12)


def test_drawing_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = ranks(1, 0.3), ranks(2, 0.3)

    def numbers() -> list[float]:
        test, interval = paired_test(a, b, "NDCG@10", resamples=300), bootstrap_interval(a, "NDCG@10", resamples=300)
        return [test.low, test.high, test.p_value, interval.low, interval.high]

    whole = numbers()
    monkeypatch.setattr(significance, "_DRAWS", 100)
    assert numbers() == pytest.approx(whole, abs=1e-12)


def test_runs_on_different_queries_are_refused() -> None:
    with pytest.raises(DataError, match="answer 3 and 2 queries"):
        paired_test(np.array([1, 2, 3]), np.array([1, 2]), "HR@10")
