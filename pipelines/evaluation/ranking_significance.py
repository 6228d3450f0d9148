"""How sure AUC and GAUC are: bootstrap intervals over users, and a paired test between runs on the same events.

A user's events hang together, so users are what is drawn with replacement: one who is drawn twice counts with all
events twice. AUC stays that of all events, pairs of different users among them. Nothing is sorted again for a resample:
events are in the order of their scores once, and a resample is a weight a user, one running sum and two look-ups
(``O(resamples x events)``).

Where a model was trained with several seeds, a metric is the mean over them, with these seeds given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.errors import DataError
from pipelines.evaluation.ranking_metrics import auc_of_each_user
from pipelines.evaluation.significance import PairedTest

RESAMPLES = 1000


@dataclass(frozen=True)
class Asked:
    """What was asked, the same for all runs that are compared.

    Attributes:
        users: ``[n]`` whose each event is, 0 .. ``num_users - 1``.
        outcomes: ``[n, names]`` bool.
        names: of the bits or classes, each a task.
    """

    users: np.ndarray
    outcomes: np.ndarray
    names: Sequence[str]

    @property
    def num_users(self) -> int:
        """Users that are drawn from."""
        return int(self.users.max()) + 1 if len(self.users) else 0


def ranking_intervals(
    asked: Asked, scores: np.ndarray, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> dict[str, list[float]]:
    """``{metric: [low, high]}`` for metrics.json: percentile bootstrap over users of every metric that there is.

    Args:
        asked: the events.
        scores: ``[n, names]`` of one run.
        resamples: how many times the users are drawn with replacement.
        level: share of the resampled values inside the interval.
        seed: of the resampling.
    """
    found: dict[str, list[float]] = {}
    for metric, values in resampled_metrics(asked, [scores], resamples, seed).items():
        low, high = np.nanquantile(values[1:, 0], [(1 - level) / 2, (1 + level) / 2])
        found[metric] = [float(low), float(high)]
    return found


def paired_ranking_tests(
    asked: Asked, scores_a: Sequence[np.ndarray], scores_b: Sequence[np.ndarray], *, resamples: int, seed: int = 0
) -> dict[str, tuple[np.ndarray, PairedTest]]:
    """Whether run B differs from run A on the same events: both are looked at in the same resamples.

    The p-value is that of the bootstrap moved to no difference: how often a resample's difference is at least as far
    from the one found as that is from 0.

    Args:
        asked: the events of both.
        scores_a: ``[n, names]`` of run A, or of each of its seeds.
        scores_b: likewise of run B.
        resamples: how many times the users are drawn with replacement.
        seed: of the resampling.

    Returns:
        By metric: the value of every run of A and then of B, and the test.
    """
    found, of_a = {}, len(scores_a)
    for metric, values in resampled_metrics(asked, [*scores_a, *scores_b], resamples, seed).items():
        differences = values[:, of_a:].mean(axis=1) - values[:, :of_a].mean(axis=1)
        difference, drawn = differences[0], differences[1:][~np.isnan(differences[1:])]
        low, high = np.quantile(drawn, [0.025, 0.975])
        as_extreme = int((np.abs(drawn - difference) >= abs(difference) * (1 - 1e-9)).sum())
        test = PairedTest(float(difference), float(low), float(high), (as_extreme + 1) / (len(drawn) + 1))
        found[metric] = values[0], test
    return found


def resampled_metrics(
    asked: Asked, scores: Sequence[np.ndarray], resamples: int, seed: int
) -> Mapping[str, np.ndarray]:
    """AUC and GAUC of runs in the same resamples, ``{metric: [1 + resamples, runs]}``; row 0 is what was found.

    A resample in which nobody has both outcomes of a task has no value of it (NaN), and ``AUC`` is then the mean over
    the other tasks.

    Raises:
        DataError: there is no event.
    """
    users = asked.num_users
    if not users:
        raise DataError("there is no event to take a metric of")
    rng, runs = np.random.default_rng(seed), len(scores)
    tasks = [place for place in range(len(asked.names)) if _both(asked.outcomes[:, place])]
    orders = [[_Order.of(one[:, task], asked.outcomes[:, task], asked.users) for one in scores] for task in tasks]
    own = [[_OfUsers.of(one[:, task], asked.outcomes[:, task], asked.users) for one in scores] for task in tasks]
    values = np.empty((2, 1 + resamples, len(tasks), runs))
    for row in range(1 + resamples):
        weights = rng.multinomial(users, np.full(users, 1 / users)).astype(np.float64) if row else np.ones(users)
        for place in range(len(tasks)):
            for run in range(runs):
                values[0, row, place, run] = orders[place][run].auc(weights)
                values[1, row, place, run] = own[place][run].mean(weights)
    found: dict[str, np.ndarray] = {}
    for metric, each in zip(("AUC", "GAUC"), values, strict=True):
        known = [place for place in range(len(tasks)) if not np.isnan(each[0, place]).any()]
        if known:
            found[metric] = _mean_of_known(each[:, known])
        if len(asked.names) > 1:
            found |= {f"{metric}:{asked.names[tasks[place]]}": each[:, place] for place in known}
    return found


def _mean_of_known(each: np.ndarray) -> np.ndarray:
    """``[rows, tasks, runs]`` to ``[rows, runs]``; NaN where a row knows none."""
    known = ~np.isnan(each)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(known, each, 0).sum(axis=1) / known.sum(axis=1)
    return mean


def _both(outcome: np.ndarray) -> bool:
    return bool(outcome.any() and not outcome.all())


@dataclass(frozen=True)
class _Order:
    """The events of a task in the order of one run's scores.

    Attributes:
        positive: users of the positive events.
        negative: users of the negative ones, lowest score first.
        below: of each positive event, how many negative ones have lower scores.
        not_above: likewise lower or equal ones.
    """

    positive: np.ndarray
    negative: np.ndarray
    below: np.ndarray
    not_above: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, outcome: np.ndarray, users: np.ndarray) -> _Order:
        order = np.argsort(scores, kind="stable")
        score, hit, user = scores[order], outcome[order], users[order]
        below, not_above = (np.searchsorted(score[~hit], score[hit], side=side) for side in ("left", "right"))
        return cls(user[hit], user[~hit], below, not_above)

    def auc(self, weights: np.ndarray) -> float:
        """Weighted share of pairs in order, ties half; NaN without a pair."""
        sums = np.zeros(len(self.negative) + 1)
        np.cumsum(weights[self.negative], out=sums[1:])
        counted = weights[self.positive]
        pairs = counted.sum() * sums[-1]
        # sums of products and no dot products: BLAS' threads wait for each other longer than they compute
        ordered = (counted * (sums[self.below] + sums[self.not_above])).sum() / 2
        return float(ordered / pairs) if pairs else float("nan")


@dataclass(frozen=True)
class _OfUsers:
    """Each user's own AUC: ``users`` who have both outcomes, ``each`` of theirs, and how many ``events`` they have."""

    users: np.ndarray
    each: np.ndarray
    events: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, outcome: np.ndarray, users: np.ndarray) -> _OfUsers:
        return cls(*auc_of_each_user(scores, outcome, users))

    def mean(self, weights: np.ndarray) -> float:
        """Weighted by events and by how often a user was drawn; NaN where none was."""
        share = weights[self.users] * self.events
        total = share.sum()
        return float((share * self.each).sum() / total) if total else float("nan")
