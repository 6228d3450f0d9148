"""A sequence store of made-up histories with MovieLens-1M's shape, for machines that have no data. Needs numpy alone.

Lengths are log-normal between 20 and 2,314 (mean 165), films long-tailed, nearly half of a user's gaps 0, the others
spread over seven orders of magnitude. A quarter of the films follow from the one before, so that there is something to
learn; nothing else about these data is real, and no quality figure may be taken from them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.data.store import SequenceStore, building, write_arrays

USERS, ITEMS, EVENTS = 6_040, 3_706, 1_000_209
SHORTEST, LONGEST = 20, 2_314


def synthetic_store(folder: Path, *, share: float = 1.0, seed: int = 0) -> SequenceStore:
    """Write a store at ``folder`` and open it.

    Args:
        folder: where; a store that is there is replaced.
        share: of MovieLens-1M's users; the catalogue shrinks with its square root.
        seed: of all random numbers.
    """
    rng = np.random.default_rng(seed)
    users, items = max(round(USERS * share), 4), max(round(ITEMS * share**0.5), 16)
    lengths = _lengths(rng, users, round(EVENTS * users / USERS))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    arrays = {"offsets": offsets, "items": _items(rng, offsets, items), "timestamps": _times(rng, offsets)}
    manifest = {
        "source": {
            "name": f"synthetic, seed {seed}",
            "files": [],
            "note": "made up: MovieLens-1M's shape, not its content",
        },
        "counts": {"users": users, "items": items, "events": int(offsets[-1])},
        "filters": {},
        "timestamps": "seconds",
        "tie_rule": "none: events are made in order",
    }
    with building(folder) as place:
        write_arrays(place, arrays, manifest, ids=())
    return SequenceStore.open(folder)


def _lengths(rng: np.random.Generator, users: int, events: int) -> np.ndarray:
    """Events of each user, about ``events`` in all, ``[users]`` int64."""
    drawn = rng.lognormal(mean=0.0, sigma=1.1, size=users)
    extra = drawn / drawn.sum() * (events - SHORTEST * users)
    return np.minimum(SHORTEST + extra.astype(np.int64), LONGEST)


def _items(rng: np.random.Generator, offsets: np.ndarray, items: int) -> np.ndarray:
    """``[events]`` int32, every item at least likely, a quarter of the events a fixed step from the one before."""
    events = int(offsets[-1])
    weight = 1.0 / (np.arange(items) + 30.0)
    drawn = rng.choice(items, size=events, p=weight / weight.sum())
    follows = rng.random(events) < 0.25
    follows[offsets[:-1]] = False
    drawn[follows] = (drawn[np.flatnonzero(follows) - 1] + 1) % items
    return (drawn + 1).astype(np.int32)


def _times(rng: np.random.Generator, offsets: np.ndarray) -> np.ndarray:
    """``[events]`` int64 seconds that never decrease inside a user."""
    events = int(offsets[-1])
    gaps = np.where(rng.random(events) < 0.45, 0, np.exp(rng.exponential(2.5, events)).clip(max=3e7)).astype(np.int64)
    gaps[offsets[:-1]] = 0
    total = np.cumsum(gaps)
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    start = rng.integers(956_703_932, 1_046_454_590, len(offsets) - 1)
    return start[user] + total - total[offsets[:-1]][user]
