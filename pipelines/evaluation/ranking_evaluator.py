"""Evaluation of a ranking task: predict what was asked about, and keep every prediction.

The evaluator knows a task's ``predict``, nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.ranking import Ranking, asked_labels
from pipelines.data.loader import Windows
from pipelines.data.ranking_loader import asked_events, labels_of, ranking_batches, ranking_windows
from pipelines.data.splits import Queries, Split
from pipelines.data.store import SequenceStore
from pipelines.errors import DataError
from pipelines.evaluation.baselines import training_events
from pipelines.evaluation.ranking_metrics import ranking_metrics, scores_of
from pipelines.evaluation.ranking_significance import Asked, ranking_intervals
from pipelines.training.distributed import World


@dataclass(frozen=True)
class RankingEvaluation:
    """What came out.

    Attributes:
        events: ``[n]`` int64, positions of what was asked about in the store.
        users: ``[n]`` int64, whose they are.
        logits: ``[n, names]`` float32.
        labels: ``[n, tasks]`` int64.
        metrics: see :mod:`pipelines.evaluation.ranking_metrics`.
        seconds: loading and predicting, of the slowest process.
    """

    events: np.ndarray
    users: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    metrics: dict[str, float]
    seconds: float


def evaluate_ranking(
    task: Ranking,
    store: SequenceStore,
    queries: Queries,
    *,
    max_length: int,
    asked: int,
    device: torch.device | str = "cpu",
    tokens_per_batch: int = 16384,
    between_batches: Callable[[], None] | None = None,
    world: World | None = None,
) -> RankingEvaluation:
    """Predict the actions of what the queries ask about.

    Args:
        task: a ranking task on ``device``; set to evaluation mode meanwhile and back afterwards.
        store: the sequences, with actions.
        queries: users and the newest event that is asked about.
        max_length: events of a history that the model sees.
        asked: events at the end of each query that are asked about; 0: all of its newest window.
        device: where the task lives.
        tokens_per_batch: events in a batch.
        between_batches: called after each batch; it may raise to break off.
        world: the processes that share the queries out; each gets the whole answer.

    Raises:
        DataError: no queries, a task made for another catalogue, or a prediction that is not finite.
    """
    world, started = world or World(), time.perf_counter()
    described = store.actions
    if not len(queries) or described is None:
        raise DataError("there is nothing to ask: no queries, or data without actions", where=str(store.path))
    if task.num_items != store.num_items:
        raise DataError(
            f"the model knows {task.num_items} items, the data hold {store.num_items}",
            where=str(store.path),
            fix="Evaluate on the data that the model was trained on",
        )
    mine = np.arange(world.rank, len(queries), world.size)
    windows = ranking_windows(store, Queries(queries.user[mine], queries.end[mine]), max_length, asked)

    def predict_share() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
        events, logits, labels = _predicted(task, store, windows, asked, device, tokens_per_batch, between_batches)
        users = np.searchsorted(store.offsets, events, side="right") - 1
        return events, users, logits, labels, time.perf_counter() - started

    training = task.training
    task.eval()
    try:
        parts = world.gather(world.agree(predict_share))
    finally:
        task.train(training)
    events, users, logits, labels = (np.concatenate([part[place] for part in parts]) for place in range(4))
    order = np.argsort(events, kind="stable")
    events, users, logits, labels = events[order], users[order], logits[order], labels[order]
    metrics = ranking_metrics(logits, labels, users, described["kind"], described["names"])
    return RankingEvaluation(events, users, logits, labels, metrics, max(part[4] for part in parts))


def _predicted(
    task: Ranking,
    store: SequenceStore,
    windows: Windows,
    asked: int,
    device: torch.device | str,
    tokens_per_batch: int,
    between_batches: Callable[[], None] | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, logits and labels of what the windows ask about."""
    events, logits, labels = [], [], []
    for rows, batch in ranking_batches(store, windows, asked, tokens_per_batch):
        with torch.inference_mode():
            found = task.predict(batch.to(device)).float().cpu()
        finite = torch.isfinite(found).all(dim=1)
        events.append(asked_events(windows.take(rows), asked))
        if not finite.all():
            user = np.searchsorted(store.offsets, events[-1][int((~finite).nonzero()[0])], side="right") - 1
            raise DataError(f"predictions are not finite, the first is of user {store.user_ids()[user]}")
        logits.append(found.numpy())
        labels.append(asked_labels(batch).numpy())
        if between_batches is not None:
            between_batches()
    if not events:  # a process whose share is empty
        described: Any = store.actions
        outcomes = 1 if described["kind"] == "classes" else len(described["names"])
        return (
            np.zeros(0, np.int64),
            np.zeros((0, len(described["names"])), np.float32),
            np.zeros((0, outcomes), np.int64),
        )
    return np.concatenate(events), np.concatenate(logits), np.concatenate(labels)


def intervals_of(found: RankingEvaluation, kind: str, names: Sequence[str]) -> dict[str, list[float]]:
    """95% bootstrap intervals over users of each AUC and GAUC, ``{metric: [low, high]}`` for metrics.json."""
    outcomes = found.labels == np.arange(len(names)) if kind == "classes" else found.labels > 0
    users = np.unique(found.users, return_inverse=True)[1]
    return ranking_intervals(Asked(users, outcomes, names), scores_of(found.logits, kind))


def item_average(store: SequenceStore, split: Split, events: np.ndarray, prior: float = 10.0) -> np.ndarray:
    """A baseline from training events alone: how users acted on each item on average, as logits ``[n, names]``.

    An item's average is drawn towards that of all items as if so many (``prior``) more events had gone like those.
    """
    described: Any = store.actions
    names, train = len(described["names"]), training_events(store, split)
    actions = torch.from_numpy(store.features["actions"][train].astype(np.int64))
    labels = labels_of(actions, described["kind"], names).numpy()
    outcomes = (labels == np.arange(names)) if described["kind"] == "classes" else labels
    items = store.items[train]
    seen = np.bincount(items, minlength=store.num_items + 1)
    mean = outcomes.mean(axis=0)
    sums = np.stack(
        [np.bincount(items, outcomes[:, place], minlength=store.num_items + 1) for place in range(names)], axis=1
    )
    rate = np.clip((sums + prior * mean) / (seen + prior)[:, None], 1e-9, 1 - 1e-9)
    logits = np.log(rate) if described["kind"] == "classes" else np.log(rate) - np.log1p(-rate)
    chosen: np.ndarray = logits[store.items[events]]
    return chosen


def write_predictions(path: Path, store: SequenceStore, found: RankingEvaluation, names: Sequence[str]) -> None:
    """One row an event to Parquet: ``user_id``, ``item_id``, ``action`` and ``logit:<name>`` each.

    The file is written beside its place and renamed.
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    columns: dict[str, Any] = {
        "user_id": store.user_ids()[found.users],
        "item_id": store.item_ids()[store.items[found.events] - 1],
        "action": store.features["actions"][found.events],
    }
    columns |= {f"logit:{name}": found.logits[:, place] for place, name in enumerate(names)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    parquet.write_table(arrow.table(columns), temporary)
    temporary.replace(path)
