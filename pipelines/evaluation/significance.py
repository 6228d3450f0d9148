"""How sure a metric is: bootstrap intervals over users, and a paired test between two runs on the same queries.

Both work on the distinct values, not on users. A metric of one query depends on its rank up to the cut-off, so
``NDCG@10`` takes eleven values; how often each value is drawn when users are resampled is multinomial. A thousand
resamples of ten million users cost as much as of ten.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.errors import DataError
from pipelines.evaluation.ranking import metric_values


@dataclass(frozen=True)
class Interval:
    """A mean over users with its percentile bootstrap interval."""

    mean: float
    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True)
class PairedTest:
    """Run B against run A on the same queries.

    Attributes:
        difference: mean of B minus mean of A.
        low: lower end of its 95% bootstrap interval.
        high: upper end.
        p_value: two-sided, sign-flip randomisation test; never below ``1 / (resamples + 1)``.
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    ranks: np.ndarray, metric: str, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap over queries (one a user in leave-one-out).

    Args:
        ranks: ``[Q]``, 1 is best.
        metric: e.g. ``NDCG@10``.
        resamples: how many times the users are drawn with replacement.
        level: share of the resampled means inside the interval.
        seed: of the resampling.
    """
    values = _values(ranks, metric)
    means = _resampled_means(values, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), level)


def intervals(
    ranks: np.ndarray, metrics: Iterable[str], *, level: float = 0.95, seed: int = 0
) -> dict[str, list[float]]:
    """``{metric: [low, high]}`` for metrics.json, each as :func:`bootstrap_interval`."""
    found = {metric: bootstrap_interval(ranks, metric, level=level, seed=seed) for metric in metrics}
    return {metric: [interval.low, interval.high] for metric, interval in found.items()}


def paired_test(
    ranks_a: np.ndarray, ranks_b: np.ndarray, metric: str, *, resamples: int = 10_000, seed: int = 0
) -> PairedTest:
    """Whether run B differs from run A: under the null hypothesis each user's difference is as likely with either sign.

    Args:
        ranks_a: ``[Q]`` of run A.
        ranks_b: ``[Q]`` of run B, same queries in the same order.
        metric: e.g. ``NDCG@10``.
        resamples: random sign assignments, and bootstrap resamples of the interval.
        seed: of both.

    Raises:
        DataError: the runs were not asked the same number of queries.
    """
    if len(ranks_a) != len(ranks_b):
        raise DataError(f"the runs answer {len(ranks_a)} and {len(ranks_b)} queries", fix="Compare runs on one split")
    difference = _values(ranks_b, metric) - _values(ranks_a, metric)
    low, high = np.quantile(_resampled_means(difference, resamples, seed), [0.025, 0.975])
    size, count = np.unique(np.abs(difference), return_counts=True)
    kept = np.random.default_rng((seed, 1)).binomial(count, 0.5, size=(resamples, len(count)))  # signs left as they are
    flipped = np.abs((2 * kept - count) @ size)
    as_extreme = int((flipped >= abs(difference.sum()) * (1 - 1e-9)).sum())
    return PairedTest(float(difference.mean()), float(low), float(high), (as_extreme + 1) / (resamples + 1))


def _values(ranks: np.ndarray, metric: str) -> np.ndarray:
    if not len(ranks):
        raise DataError("there is no query to take a mean over")
    values: np.ndarray = metric_values(torch.from_numpy(np.ascontiguousarray(ranks)), metric).numpy()
    return values


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    distinct, count = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), count / len(values), size=resamples)
    means: np.ndarray = draws @ distinct / len(values)
    return means
