"""How sure a metric is: bootstrap intervals over users, and a paired test between two runs on the same queries.

Both work on the distinct values, not on users. A metric of one query depends on its rank up to the cut-off, so
``NDCG@10`` takes eleven values; how often each value is drawn when users are resampled is multinomial. A thousand
resamples of ten million users cost as much as of ten.

Where a model was trained with several seeds, a user's value is the mean over them: the intervals and the test are about
users then, with these seeds given. How far seeds part is another question, answered by their standard deviation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.errors import DataError
from pipelines.evaluation.ranking import metric_values

_DRAWS = 1 << 22  # numbers drawn at a time: 32 MB


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
        ranks: ``[Q]``, 1 is best, or ``[seeds, Q]``.
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
        ranks_a: ``[Q]`` of run A, or ``[seeds, Q]`` of its seeds.
        ranks_b: likewise of run B, same queries in the same order; it may have another number of seeds.
        metric: e.g. ``NDCG@10``.
        resamples: random sign assignments, and bootstrap resamples of the interval.
        seed: of both.

    Raises:
        DataError: the runs were not asked the same number of queries.
    """
    queries_a, queries_b = ranks_a.shape[-1], ranks_b.shape[-1]
    if queries_a != queries_b:
        raise DataError(f"the runs answer {queries_a} and {queries_b} queries", fix="Compare runs on one split")
    difference = _values(ranks_b, metric) - _values(ranks_a, metric)
    low, high = np.quantile(_resampled_means(difference, resamples, seed), [0.025, 0.975])
    size, count = _distinct(np.abs(difference))
    rng, least, as_extreme = np.random.default_rng((seed, 1)), abs(difference.sum()) * (1 - 1e-9), 0
    for rows in _at_a_time(resamples, len(count)):
        kept = rng.binomial(count, 0.5, size=(rows, len(count)))  # signs left as they are
        as_extreme += int((np.abs((2 * kept - count) @ size) >= least).sum())
    return PairedTest(float(difference.mean()), float(low), float(high), (as_extreme + 1) / (resamples + 1))


def _values(ranks: np.ndarray, metric: str) -> np.ndarray:
    if not ranks.size:
        raise DataError("there is no query to take a mean over")
    seeds = torch.from_numpy(np.ascontiguousarray(np.atleast_2d(ranks)))
    values: np.ndarray = metric_values(seeds, metric).mean(dim=0).numpy()
    return values


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values and how often each stands; sums over seeds differ in their last bits and count as equal."""
    found, count = np.unique(np.round(values, 14), return_counts=True)
    return found, count


def _at_a_time(resamples: int, distinct: int) -> Iterator[int]:
    """How many resamples to draw at once, until all are: with several seeds there are thousands of distinct values."""
    rows = max(1, _DRAWS // distinct)
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start)


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    distinct, count = _distinct(values)
    rng, share = np.random.default_rng(seed), count / len(values)
    parts = (rng.multinomial(len(values), share, size=rows) for rows in _at_a_time(resamples, len(count)))
    means: np.ndarray = np.concatenate([draws @ distinct for draws in parts]) / len(values)
    return means
