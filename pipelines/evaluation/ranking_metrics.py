"""Metrics of a ranking task: AUC and AUC inside each user (GAUC) a task, and log loss.

AUC is the share of pairs of a positive and a negative that the scores put in order, ties counted half. It is
torchmetrics' (extra ``hstu``), exact, of the scores' places in their order: torchmetrics takes scores outside [0, 1]
for logits and squashes them, which makes ties of large ones.

A task without both outcomes has no AUC and none is given; ``AUC`` is the mean over those that have one. GAUC is the
mean of each user's own AUC, weighted by how many events they were asked about, over users with both outcomes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch

from pipelines.errors import MachineError

_NAME = re.compile(r"(AUC|GAUC)(:.+)?")


def is_ranking_metric(name: str) -> bool:
    """Whether a gate or a selection may name it: greater is better, so not the log loss."""
    return _NAME.fullmatch(name) is not None


def torchmetrics_classification() -> ModuleType:
    """Torchmetrics' functions of classification.

    Raises:
        MachineError: it is not installed.
    """
    try:
        from torchmetrics.functional import classification
    except ModuleNotFoundError as error:
        raise MachineError(
            "AUC needs the package torchmetrics", where="evaluation", fix="pip install 'recpod[hstu]'"
        ) from error
    found: ModuleType = classification
    return found


def ranking_metrics(
    logits: np.ndarray, labels: np.ndarray, users: np.ndarray, kind: str, names: Sequence[str]
) -> dict[str, float]:
    """All metrics of some predictions.

    Args:
        logits: ``[n, names]``.
        labels: ``[n, names]`` of 0 and 1 for ``bits``; ``[n, 1]``, the class, for ``classes``.
        users: ``[n]``, whom each event belongs to.
        kind: ``bits``: each name is a task; ``classes``: each name against all others.
        names: of the bits or classes.
    """
    scores, outcomes = scores_of(logits, kind), labels == np.arange(len(names)) if kind == "classes" else labels > 0
    if kind == "classes":
        log_loss = -np.take_along_axis(scores, labels.astype(np.int64), axis=1).mean()
    else:
        log_loss = (np.logaddexp(0, scores) - outcomes * scores).mean()
    found: dict[str, float] = {}

    def of_users(scores: np.ndarray, positive: np.ndarray) -> float | None:
        return grouped_auc(scores, positive, users)

    measures: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {"AUC": auc, "GAUC": of_users}
    for metric, measure in measures.items():
        each = {name: measure(scores[:, place], outcomes[:, place]) for place, name in enumerate(names)}
        known = {name: value for name, value in each.items() if value is not None}
        if known:
            found[metric] = float(np.mean(list(known.values())))
            found |= {f"{metric}:{name}": value for name, value in known.items()} if len(names) > 1 else {}
    return found | {"LogLoss": float(log_loss)}


def scores_of(logits: np.ndarray, kind: str) -> np.ndarray:
    """What puts events in order, ``[n, names]`` float64: the logits of ``bits``, log probabilities of ``classes``."""
    scores = logits.astype(np.float64)
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True) if kind == "classes" else scores


def outcomes_of(actions: np.ndarray, kind: str, names: int) -> np.ndarray:
    """Whether each of ``names`` bits or classes is what the actions ``[n]`` say, ``[n, names]`` bool."""
    wide = actions.astype(np.int64)[:, None]
    return wide == np.arange(names) if kind == "classes" else (wide >> np.arange(names)) & 1 > 0


def auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Of ``scores`` ``[n]`` for ``positive`` ``[n]`` bool; None where one outcome is missing."""
    if positive.all() or not positive.any():
        return None
    distinct, place = np.unique(scores, return_inverse=True)
    between = torch.from_numpy(place / max(len(distinct) - 1, 1))
    value = torchmetrics_classification().binary_auroc(between, torch.from_numpy(positive.astype(np.int64)))
    return float(value)


def grouped_auc(scores: np.ndarray, positive: np.ndarray, users: np.ndarray) -> float | None:
    """The mean of each user's AUC, weighted by their events; None where no user has both outcomes."""
    _, each, events = auc_of_each_user(scores, positive, users)
    return float(np.average(each, weights=events)) if len(each) else None


def auc_of_each_user(
    scores: np.ndarray, positive: np.ndarray, users: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the users who have both outcomes: which they are, the AUC of each, and how many events each has.

    From the sum of the positives' ranks inside their user (Mann and Whitney), equal scores sharing their mean rank.
    """
    order = np.lexsort((scores, users))
    user, score, hit = users[order], scores[order], positive[order]
    new_user = np.diff(user, prepend=user[:1] - 1) != 0
    new_score = new_user | (np.diff(score, prepend=score[:1] - 1) != 0)
    starts, group = np.flatnonzero(new_user), np.cumsum(new_user) - 1
    place = np.arange(len(order)) - starts[group] + 1.0
    tie = np.cumsum(new_score) - 1
    rank = (np.bincount(tie, place) / np.bincount(tie))[tie]
    events, hits = np.bincount(group), np.bincount(group, hit)
    both = (hits > 0) & (hits < events)
    above = np.bincount(group, rank * hit) - hits * (hits + 1) / 2
    each = above[both] / (hits * (events - hits))[both]
    return user[starts][both], each, events[both]
