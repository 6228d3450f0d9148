"""A control: histories in random order. What a model loses there it had from order; a bag of items loses nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipelines.data.splits import Queries
from pipelines.data.store import SequenceStore


def shuffle_order(store: SequenceStore, seed: int, *, asked: Queries | None = None) -> SequenceStore:
    """The same store with each user's whole history in random order; the timestamps stay where they are.

    Items and their features change places together, so a history holds the same items at the same times in another
    assignment. The arrays are in memory; the content hash says what was done.

    Args:
        store: the sequences.
        seed: of the order.
        asked: queries whose targets stay where they are; only what lies before a target, or between two, is shuffled,
            so that each query keeps its target and the items of its history. None shuffles all events of a user.
    """
    starts = np.zeros(store.num_events + 1, dtype=bool)  # where a stretch begins
    starts[store.offsets] = True
    if asked is not None:
        starts[asked.end] = starts[asked.end + 1] = True
    stretch = np.cumsum(starts[:-1])
    order = np.argsort(stretch + np.random.default_rng(seed).random(len(stretch)), kind="stable")
    manifest = {
        **store.manifest,
        "tie_rule": f"whole histories shuffled, seed {seed}",
        "content_hash": f"{store.manifest['content_hash']}+order-shuffled-{seed}",
    }
    features = {name: values[order] for name, values in store.features.items()}
    return replace(store, items=store.items[order], features=features, manifest=manifest)
