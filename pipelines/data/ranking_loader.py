"""Batches for ranking: each row is the newest part of a user's history, and the events that are asked about.

Either the newest ``candidates`` events of a row are asked about, of which the model knows the items alone; or, with
``candidates`` 0, every event is, given the events before it and what the user did with them. In both a row holds the
events that are asked about, so a window ``[start, end)`` ends behind the newest of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from models.batch import SequenceBatch
from pipelines.data.loader import Gather, Windows, user_context
from pipelines.data.splits import Queries
from pipelines.data.store import SequenceStore
from pipelines.errors import DataError


def ranking_windows(
    store: SequenceStore, queries: Queries, max_length: int, candidates: int, which: str = "newest"
) -> Windows:
    """Windows whose newest event is each query's own, ``end``.

    Args:
        store: the sequences.
        queries: users and the newest event that is asked about.
        max_length: events of a history; with ``candidates`` they come on top.
        candidates: events that are asked about in each window; 0: all of them.
        which: ``newest``: one window a query; ``all``: windows back to the user's first event, in which each event is
            asked about once.
    """
    first = np.asarray(store.offsets)[queries.user]
    events = queries.end + 1 - first
    asked = candidates or max_length
    count = np.ones_like(events) if which == "newest" else -(-events // asked)
    row = np.repeat(np.arange(len(queries.user)), count)
    back = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)  # 0 is the newest window of its query
    end = queries.end[row] + 1 - back * asked
    return Windows(queries.user[row], np.maximum(first[row], end - max_length - candidates), end)


def ranking_gather(candidates: int) -> Gather:
    """How windows of a ranking task become a batch; see :func:`gather_ranking`."""
    return lambda store, windows: gather_ranking(store, windows, candidates)


def gather_ranking(store: SequenceStore, windows: Windows, candidates: int) -> SequenceBatch:
    """The events of ``windows`` with what their users did, as one batch.

    Args:
        store: one with the token feature ``actions``.
        windows: of :func:`ranking_windows`.
        candidates: as there; a window with fewer events has nothing but candidates.

    Raises:
        DataError: the store has no actions.
    """
    described = store.actions
    if described is None:
        raise DataError(
            "the data have no actions to predict", where=str(store.path), fix="Name them with prepare.rating_levels"
        )
    lengths = windows.lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    index = np.arange(offsets[-1]) + np.repeat(windows.start - offsets[:-1], lengths)
    actions = torch.from_numpy(store.features["actions"][index].astype(np.int64))
    timestamps = torch.from_numpy(np.ascontiguousarray(store.timestamps[index]))
    ratings = store.features.get("ratings")
    borders = torch.from_numpy(offsets)
    return SequenceBatch(
        offsets=borders,
        items=torch.from_numpy(store.items[index].astype(np.int64)),
        timestamps=timestamps,
        targets=torch.zeros_like(timestamps),
        request_time=timestamps[borders[1:] - 1],
        user_index=torch.from_numpy(windows.user),
        ratings=None if ratings is None else torch.from_numpy(np.ascontiguousarray(ratings[index])),
        actions=actions,
        labels=labels_of(actions, described["kind"], len(described["names"])),
        num_candidates=torch.from_numpy(np.minimum(lengths, candidates)) if candidates else None,
        context=user_context(store, windows.user),
    )


def labels_of(actions: torch.Tensor, kind: str, names: int) -> torch.Tensor:
    """What is predicted of ``actions`` ``[T]``: the class ``[T, 1]``, or each of the bits ``[T, names]``; int64."""
    if kind == "classes":
        return actions[:, None]
    return (actions[:, None] >> torch.arange(names)) & 1


def asked_events(windows: Windows, candidates: int) -> np.ndarray:
    """Positions in the store's event arrays of what is asked about, row by row, ``[n]`` int64."""
    lengths = np.minimum(windows.lengths, candidates) if candidates else windows.lengths
    starts = windows.end - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)


def ranking_batches(
    store: SequenceStore, windows: Windows, candidates: int, tokens_per_batch: int
) -> Iterator[tuple[np.ndarray, SequenceBatch]]:
    """``(rows of windows, batch)``, longest first, with about so many tokens in a batch."""
    order = np.argsort(-windows.lengths, kind="stable")
    batch = np.cumsum(windows.lengths[order]) // tokens_per_batch
    for rows in np.split(order, np.flatnonzero(np.diff(batch)) + 1):
        if len(rows):
            yield rows, gather_ranking(store, windows.take(rows), candidates)
