"""How much a run has to go through: windows, targets, batches and queries, from the store or from published counts.

**From the store** everything is counted with the loader's own functions, so that the steps are the trainer's.
**From counts** (``counts`` of configs/datasets: users, items, events, and the fewest events of a user) the following is
exact for leave-one-out and ``windows: all``: every user with ``n`` events, n at least 3, gives ``n - 3`` training
targets, one validation and one test query, so there are ``events - 3 users`` targets; with ``batch: tokens`` they make
``ceil(targets / tokens_per_batch)`` batches. What needs the lengths of histories (windows, hence steps with
``batch: rows``) is taken from a geometric distribution above the shortest one with the right mean, and marked as such:
on MovieLens-100K and 1M it is off by 3% in windows, and by up to 13% in targets with ``windows: newest``.

Ranking models go through events, of which those that are asked about are targets: see
:mod:`pipelines.estimate.ranking_volume`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines import stages
from pipelines.config import RunConfig
from pipelines.data.dataset_store import input_key
from pipelines.data.datasets import DatasetSpec, data_folder, load_dataset_spec
from pipelines.data.loader import LoaderOptions, Windows, cut_windows, epoch_batches
from pipelines.data.resident import events_bytes
from pipelines.data.splits import Queries, make_split
from pipelines.data.store import SequenceStore, read_manifest
from pipelines.errors import ConfigError, DataError
from pipelines.estimate.lengths import Lengths
from pipelines.estimate.ranking_layers import RankingShape

EVENT_BYTES = 4 + 8 + 4  # item, time and rating, which a file may lack
HELD_OUT = 2  # newest events of a user that validate and test (leave-one-out)


@dataclass(frozen=True)
class Volume:
    """What one epoch and one evaluation go through.

    Attributes:
        source: where the counts come from.
        exact: whether every number here is counted; False where lengths of histories had to be supposed.
        users: in the data.
        items: in the catalogue.
        events: in the data.
        windows: rows of an epoch.
        targets: training targets of an epoch; for retrieval equal to its tokens.
        batches: global batches of an epoch, before accumulation.
        longest: tokens of the longest window.
        shared_length: tokens that a token shares its row with, on average (``sum l^2 / sum l``): attention's cost.
        largest_batch: tokens of the largest batch that any order of the windows can give.
        queries: validation queries; the test asks as many.
        query_tokens: tokens of their histories inside the model's window.
        seen: events of their whole histories, which masking looks up.
        ranking: what a ranking model's count needs besides; None for retrieval.
        event_bytes: of the events and users' features that batches are made of, where they lie on a device.
    """

    source: str
    exact: bool
    users: int
    items: int
    events: int
    windows: int
    targets: int
    batches: int
    longest: int
    shared_length: float
    largest_batch: int
    queries: int
    query_tokens: int
    seen: int
    ranking: RankingShape | None = None
    event_bytes: int = 0

    @property
    def tokens(self) -> int:
        """Of an epoch; of a ranking model its events."""
        return self.targets if self.ranking is None else round(self.ranking.mean_length * self.windows)

    @property
    def window_length(self) -> float:
        """Tokens of a window, on average."""
        return self.tokens / max(self.windows, 1)


def find_volume(config: RunConfig) -> Volume:
    """The volume of a run: from its prepared store when there is one, else from the dataset's published counts.

    Raises:
        ConfigError: neither is there, or the counts cannot answer for this recipe.
    """
    spec = stages.dataset_spec(config)
    store = find_store(spec, config.dataset.cache or data_folder())
    return from_counts(config, spec) if store is None else from_store(config, store)


def find_store(spec: DatasetSpec, cache: Path) -> SequenceStore | None:
    """The newest store under ``cache`` that this code made from this dataset with these filters, or None.

    Nothing is fetched: the raw file behind it is the one that was at hand then.
    """
    reader = {"format": spec.format, "options": dict(spec.options)}
    if spec.prepare.features:
        reader["options"]["features"] = list(spec.prepare.features)  # type: ignore[index]
    found = []
    for folder in (cache / "stores").glob(f"{spec.name}-*"):
        try:
            source = read_manifest(folder).get("source", {})
            sha256 = source["files"][0]["sha256"]
        except (DataError, KeyError, IndexError, TypeError):
            continue  # damaged or of another version: `prepare` would build it anew
        if source.get("key") == input_key(sha256, reader, spec.prepare):
            found.append(folder)
    return SequenceStore.open(max(found, key=lambda path: path.stat().st_mtime)) if found else None


def from_store(config: RunConfig, store: SequenceStore) -> Volume:
    """Everything counted by the loader itself."""
    if config.ranks:
        from pipelines.estimate.ranking_volume import ranking_from_store  # which is made of what stands here

        return ranking_from_store(config, store)
    loader, protocol = config.loader, stages.protocol_of(config)
    split = make_split(store, protocol.split)
    asked = cut_windows(store, split.valid, loader.max_length)
    return replace(
        volume_of_windows(config, store, cut_windows(store, split.train, loader.max_length, loader.windows)),
        queries=len(split.valid),
        query_tokens=int(asked.lengths.sum()),
        seen=_history_events(store, split.valid),
    )


def volume_of_windows(config: RunConfig, store: SequenceStore, windows: Windows) -> Volume:
    """What training on ``windows`` takes, each event of them a target; nothing is asked."""
    loader, lengths = config.loader, windows.lengths
    longest, total = int(lengths.max()), int(lengths.sum())
    rows = min(loader.rows_per_batch, len(lengths))
    heaviest = int(np.partition(lengths, len(lengths) - rows)[-rows:].sum())
    return Volume(
        source=f"the prepared store {store.path.name}",
        exact=True,
        users=store.num_users,
        items=store.num_items,
        events=store.num_events,
        windows=len(lengths),
        targets=total,
        batches=len(epoch_batches(windows, loader, seed=config.seed, epoch=0)),
        longest=longest,
        shared_length=float((lengths.astype(np.float64) ** 2).sum() / total),
        largest_batch=heaviest if loader.batch == "rows" else min(total, loader.tokens_per_batch + longest - 1),
        queries=0,
        query_tokens=0,
        seen=0,
        event_bytes=events_bytes(store),
    )


def _history_events(store: SequenceStore, queries: Queries) -> int:
    return int((queries.end - np.asarray(store.offsets)[queries.user]).sum())


def from_counts(config: RunConfig, spec: DatasetSpec) -> Volume:
    """From published counts: see the module docstring for what is exact.

    Raises:
        ConfigError: there are none for this dataset and these filters, or they do not decide this recipe's numbers.
    """
    counts, loader = _usable_counts(config, spec), config.loader
    if config.ranks:
        from pipelines.estimate.ranking_volume import ranking_from_counts

        return ranking_from_counts(config, spec, counts, _prepare_first(config))
    _check_leave_one_out(config, spec)
    users, events, least = counts["users"], counts["events"], counts["least"]
    longer = Lengths(least - HELD_OUT - 1, (events - 3 * users) / users)  # training targets of a user
    asked = Lengths(least - HELD_OUT, events / users - HELD_OUT)  # history of a validation query
    limit, every = loader.max_length, loader.windows == "all"
    targets = events - 3 * users if every else round(users * longer.capped(limit))
    windows = round(users * (longer.pieces(limit) if every else float(longer.share_above(0))))
    batches, exact = _batches(loader, windows, targets, every)
    return Volume(
        source=f"published counts of {spec.name} (configs/datasets)",
        exact=exact,
        users=users,
        items=counts["items"],
        events=events,
        windows=windows,
        targets=targets,
        batches=batches,
        longest=limit,
        shared_length=longer.shared(limit, every),
        largest_batch=min(targets, loader.rows_per_batch * limit)
        if loader.batch == "rows"
        else min(targets, loader.tokens_per_batch + limit - 1),
        queries=users,
        query_tokens=round(users * asked.capped(limit)),
        seen=events - HELD_OUT * users,
        event_bytes=EVENT_BYTES * events,
    )


def _prepare_first(config: RunConfig) -> str:
    return f"run `recpod prepare {config.recipe or config.name}` first: a machine without a GPU does"


def _usable_counts(config: RunConfig, spec: DatasetSpec) -> Mapping[str, int]:
    fix = _prepare_first(config)
    if not spec.counts:
        raise ConfigError(f"there is neither a prepared store of '{spec.name}' nor are its counts known", fix=fix)
    plain = load_dataset_spec(config.dataset.name, config.dataset.cache)
    if spec.prepare != plain.prepare or spec.options != plain.options:
        raise ConfigError(f"the published counts of '{spec.name}' do not hold with filters", where="dataset", fix=fix)
    return spec.counts


def _check_leave_one_out(config: RunConfig, spec: DatasetSpec) -> None:
    fix = _prepare_first(config)
    if stages.protocol_of(config).split != "leave-one-out":
        what = "only leave-one-out can be told from counts"
        raise ConfigError(what, where="evaluation.protocol", fix=fix)
    if spec.counts["least"] < HELD_OUT + 2:
        raise ConfigError(f"users of '{spec.name}' may be too short to train: counts do not decide", fix=fix)


def _batches(loader: LoaderOptions, windows: int, targets: int, every: bool) -> tuple[int, bool]:
    """Global batches of an epoch, and whether that number is exact."""
    if loader.batch == "rows":
        return -(-windows // loader.rows_per_batch), False
    # A batch ends with the window that fills it; none is skipped while no window is longer than a batch.
    return -(-targets // loader.tokens_per_batch), every and loader.max_length <= loader.tokens_per_batch
