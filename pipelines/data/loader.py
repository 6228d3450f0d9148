"""From the sequence store to batches: jagged, deterministic, and able to start anywhere in an epoch.

A training *window* is a run of consecutive events ``[start, end)`` of one user; its targets are the events one place
further. One causal pass trains every position of it. Nothing is padded, so windows need no bucketing by length: an
epoch is one random permutation, cut either every so many rows or every so many tokens.

The order depends on ``(seed, epoch)`` alone. A resumed run asks for the same epoch and skips the batches it has done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from models.batch import SequenceBatch
from pipelines.data.dealing import deal_balanced
from pipelines.data.splits import Queries
from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError

_CHOICES: dict[str, tuple[str, ...]] = {
    "windows": ("newest", "all"),
    "batch": ("rows", "tokens"),
    "deal": ("tokens", "attention"),
    "resident": ("auto", "on", "off"),
}


@dataclass(frozen=True)
class LoaderOptions:
    """How histories become training batches."""

    max_length: int = 200
    """Items of a history that the model sees; the newest are kept."""
    windows: str = "newest"
    """``newest``: each user's newest ``max_length`` targets. ``all``: every target, in windows of ``max_length``."""
    batch: str = "rows"
    """``rows``: a fixed number of windows in a batch, as in the papers. ``tokens``: a fixed number of tokens."""
    rows_per_batch: int = 128
    """Windows in a batch over all processes (``batch: rows``)."""
    tokens_per_batch: int = 16384
    """Tokens in a batch over all processes (``batch: tokens``), and in an evaluation batch."""
    shuffle: bool = True
    """Windows in another random order each epoch, or always in the order of the data."""
    deal: str = "tokens"
    """What is made even when a batch's windows are dealt to several processes: ``tokens``, or ``attention``: each
    window's length squared. Either way the batch is the same, and so are its loss and gradients but for rounding."""
    resident: str = "auto"
    """Training events on the device, where batches are put together, in place of batches copied to it: ``on``,
    ``off``, or ``auto``: on a GPU on which they take less than a quarter of the memory that is free when training
    begins. Validation and test of the same run are asked from there, too. The numbers are the same. Not for models that
    predict actions."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        for key, valid in _CHOICES.items():
            if getattr(self, key) not in valid:
                raise ConfigError(f"'{getattr(self, key)}' is not one of {', '.join(valid)}", where=f"loader.{key}")
        for key in ("max_length", "rows_per_batch", "tokens_per_batch"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{getattr(self, key)} is less than 1", where=f"loader.{key}")


@dataclass(frozen=True)
class Windows:
    """Runs of consecutive events: ``user``, ``start``, ``end``, each ``[W]`` int64; ``end`` is the last target."""

    user: np.ndarray
    start: np.ndarray
    end: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each window, ``[W]``."""
        return self.end - self.start

    def take(self, rows: np.ndarray) -> Windows:
        """The windows named by ``rows``, in that order."""
        return Windows(self.user[rows], self.start[rows], self.end[rows])


def cut_windows(store: SequenceStore, queries: Queries, max_length: int, which: str = "newest") -> Windows:
    """Windows of at most ``max_length`` tokens that end at each query's target; with ``all``, also all older ones.

    Users whose history before the target is empty have no window.
    """
    first = np.asarray(store.offsets)[queries.user]
    history = queries.end - first
    count = (history > 0).astype(np.int64) if which == "newest" else -(-history // max_length)
    row = np.repeat(np.arange(len(queries.user)), count)
    back = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)  # 0 is the newest window of its user
    end = queries.end[row] - back * max_length
    return Windows(queries.user[row], np.maximum(first[row], end - max_length), end)


def gather_batch(store: SequenceStore, windows: Windows, *, last_target_only: bool = False) -> SequenceBatch:
    """The events of ``windows`` as one batch; with ``last_target_only`` only each row's newest token has a target."""
    lengths = windows.lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    index = np.arange(offsets[-1]) + np.repeat(windows.start - offsets[:-1], lengths)
    targets = store.items[index + 1].astype(np.int64)
    if last_target_only:
        newest = np.zeros(len(targets), dtype=bool)
        newest[offsets[1:] - 1] = True
        targets[~newest] = 0
    ratings, actions = store.features.get("ratings"), store.features.get("actions")
    return SequenceBatch(
        offsets=torch.from_numpy(offsets),
        items=torch.from_numpy(store.items[index].astype(np.int64)),
        timestamps=torch.from_numpy(np.ascontiguousarray(store.timestamps[index])),
        targets=torch.from_numpy(targets),
        request_time=torch.from_numpy(np.ascontiguousarray(store.timestamps[windows.end])),
        user_index=torch.from_numpy(windows.user),
        ratings=None if ratings is None else torch.from_numpy(np.ascontiguousarray(ratings[index])),
        actions=None if actions is None else torch.from_numpy(actions[index].astype(np.int64)),
        context=user_context(store, windows.user),
        all_targets=not last_target_only,
    )


def user_context(store: SequenceStore, user: np.ndarray) -> dict[str, torch.Tensor] | None:
    """The features of users ``[U]``, each ``[U]`` int64; None where the store has none."""
    features = store.user_features
    return {name: torch.from_numpy(codes[user].astype(np.int64)) for name, codes in features.items()} or None


Gather = Callable[[SequenceStore, Windows], SequenceBatch]


class AnyGather(Protocol):
    """Makes training batches and, with ``last_target_only``, those of queries, as :func:`gather_batch` does."""

    def __call__(self, store: SequenceStore, windows: Windows, *, last_target_only: bool = False) -> SequenceBatch:
        """The events of ``windows`` as one batch."""


def epoch_batches(windows: Windows, options: LoaderOptions, *, seed: int, epoch: int) -> list[np.ndarray]:
    """The rows of ``windows`` in each global batch of an epoch; the same for every process."""
    order = np.arange(len(windows.user))
    if options.shuffle:
        order = np.random.default_rng((seed, epoch)).permutation(order)
    if options.batch == "rows":
        return np.split(order, range(options.rows_per_batch, len(order), options.rows_per_batch))
    batch = (np.cumsum(windows.lengths[order]) - 1) // options.tokens_per_batch
    return np.split(order, np.flatnonzero(np.diff(batch)) + 1)


def deal_rows(rows: np.ndarray, lengths: np.ndarray, rank: int, world: int) -> np.ndarray:
    """This process's share of a global batch: longest first, dealt back and forth, so that tokens are even."""
    if world == 1:
        return rows
    longest_first = rows[np.argsort(-lengths[rows], kind="stable")]
    place = np.arange(len(rows)) % (2 * world)
    return longest_first[np.minimum(place, 2 * world - 1 - place) == rank]


def dealt_rows(
    windows: Windows, options: LoaderOptions, *, seed: int, epoch: int, first: int = 0, rank: int = 0, world: int = 1
) -> Iterator[np.ndarray]:
    """This process's rows of ``windows`` in each batch of one epoch, from global batch number ``first`` on."""
    deal, lengths = deal_balanced if options.deal == "attention" else deal_rows, windows.lengths
    for rows in epoch_batches(windows, options, seed=seed, epoch=epoch)[first:]:
        yield deal(rows, lengths, rank, world)


def training_batches(
    store: SequenceStore,
    windows: Windows,
    options: LoaderOptions,
    *,
    seed: int,
    epoch: int,
    first: int = 0,
    rank: int = 0,
    world: int = 1,
    gather: Gather = gather_batch,
) -> Iterator[SequenceBatch]:
    """This process's batches of one epoch, from global batch number ``first`` on; ``gather`` makes one of windows."""
    for rows in dealt_rows(windows, options, seed=seed, epoch=epoch, first=first, rank=rank, world=world):
        yield gather(store, windows.take(rows))


def evaluation_batches(
    store: SequenceStore,
    queries: Queries,
    *,
    max_length: int,
    tokens_per_batch: int,
    gather: AnyGather | None = None,
) -> Iterator[tuple[np.ndarray, SequenceBatch]]:
    """Batches of queries, longest first: ``(positions in queries, batch)``; each row's newest token has the target.

    ``gather`` makes them, by default :func:`gather_batch`.

    Queries without any history yield no row: a sequence model has nothing to say about them.
    """
    with_history = np.flatnonzero(queries.end > np.asarray(store.offsets)[queries.user])
    windows = cut_windows(store, queries, max_length)
    order = np.argsort(-windows.lengths, kind="stable")
    batch = np.cumsum(windows.lengths[order]) // tokens_per_batch
    for rows in np.split(order, np.flatnonzero(np.diff(batch)) + 1):
        if len(rows):
            yield with_history[rows], (gather or gather_batch)(store, windows.take(rows), last_target_only=True)
