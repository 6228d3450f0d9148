"""Stores in memory, for what comes after the store; no test leaves a process group to the next."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.data.store import SequenceStore


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """A run in one process that spreads its table makes a group of one, as TorchRec wants it, and leaves it there."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def memory_store(lengths: list[int], num_items: int = 20, seed: int = 0) -> SequenceStore:
    """Users with the given numbers of events: random items, times that never decrease, ratings that name the event."""
    rng = np.random.default_rng(seed)
    events = sum(lengths)
    return SequenceStore(
        path=Path("memory"),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=rng.integers(1, num_items + 1, events).astype(np.int32),
        timestamps=978_300_000 + np.cumsum(rng.integers(0, 500, events)).astype(np.int64),
        features={"ratings": np.arange(events, dtype=np.float32)},
        manifest={
            "counts": {"items": num_items},
            "content_hash": "0" * 64,
            "timestamps": "seconds",
            "source": {"name": "memory"},
        },
    )
