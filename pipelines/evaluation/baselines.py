"""What every number is read against: baselines made from the training events alone."""

from __future__ import annotations

import numpy as np
import torch

from models.batch import Jagged
from models.item_knn import ItemKNN
from models.popularity import Popularity
from models.recent_popularity import RecentPopularity
from pipelines.data.splits import Split
from pipelines.data.store import SequenceStore
from pipelines.evaluation.ranking import EvaluatedTask

RECENT = "popularity, last 7 days"  # the one that is told when it is asked


def training_events(store: SequenceStore, split: Split) -> np.ndarray:
    """Which events train, ``[events]`` bool: those of each training user up to the newest training target."""
    border = np.zeros(store.num_events + 1, dtype=np.int64)  # +1 where a user's training events begin, -1 behind them
    np.add.at(border, np.asarray(store.offsets)[split.train.user], 1)
    np.add.at(border, split.train.end + 1, -1)
    inside: np.ndarray = np.cumsum(border[:-1]) > 0
    return inside


def baselines(store: SequenceStore, split: Split) -> dict[str, EvaluatedTask]:
    """The baselines that these data allow, by name; all on the CPU.

    ``popularity``; ``popularity, last 7 days`` where timestamps are seconds that users share; ``item-kNN``.
    """
    inside = training_events(store, split)
    items = torch.from_numpy(store.items[inside].astype(np.int64))
    counts = torch.bincount(items, minlength=store.num_items + 1)
    found: dict[str, EvaluatedTask] = {"popularity": Popularity(counts)}
    if store.manifest.get("timestamps") == "seconds":
        timestamps = torch.from_numpy(np.ascontiguousarray(store.timestamps[inside]))
        found[RECENT] = RecentPopularity(items, timestamps, store.num_items)
    lengths = np.add.reduceat(inside, store.offsets[:-1], dtype=np.int64)
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    found["item-kNN"] = ItemKNN.from_histories(Jagged(items, offsets), store.num_items)
    return found
