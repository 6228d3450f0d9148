"""Who is asked what: queries for training, validation and test, as positions in a sequence store.

A query is (user, end): the history is events ``offsets[user] .. end``, the target is event ``end``. Three kinds:

**leave-one-out.** A user with at least three events gives their newest event to the test, the second newest to the
validation, and everything older to training. Users with one or two events have none to spare: they train only. With
``held_out`` n the newest n events test, the n before them validate; a query's ``end`` is the newest of its n.

**global-time.** Events before ``valid_from`` train, from ``valid_from`` to ``test_from`` they validate, the rest test:
no model sees the future of anybody. Moments are seconds, or shares of all events in time order (default 0.8 and 0.9).
By default a user is asked once a period, about their first event in it (``targets="first"``): one query a user, as in
leave-one-out, and its history holds nothing that happened after the cut. ``targets="all"`` asks about every event of
the period, each with everything before it. Targets that nobody has seen in training stay in: they are part of the task.

**users.** Some users train, others validate, others test: of each the newest event, with everything before it. No event
of a user who is tested has been trained on, so a model can know them by their history alone. Shares are of the users
with at least two events, who are drawn with ``seed``; default 0.1 each for validation and test.

A query always has a history: in no kind is a user's very first event a target. So a user with exactly three events
is evaluated but trains nothing in leave-one-out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError, DataError, nearest

Kind = Literal["leave-one-out", "global-time", "users"]
Targets = Literal["first", "all"]


@dataclass(frozen=True, eq=False)
class Queries:
    """Questions to a model: what did ``user`` do at event ``end``, given their events before it?

    Attributes:
        user: ``[Q]`` int64, user index, ascending.
        end: ``[Q]`` int64, position of the target in the store's event arrays, ascending.
    """

    user: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True, eq=False)
class Split:
    """A store divided.

    Attributes:
        kind: ``leave-one-out``, ``global-time`` or ``users``.
        train: one query a user, its newest training target; every event of that user up to and including event
            ``train.end`` is training data. Users who cannot train are absent.
        valid: validation queries.
        test: test queries.
        description: one line for reports.
        digest: SHA-256 over the queries and the store's content hash: equal digests are equal evaluations.
    """

    kind: str
    train: Queries
    valid: Queries
    test: Queries
    description: str
    digest: str


def make_split(
    store: SequenceStore,
    kind: Kind | str,
    *,
    valid_from: float | None = None,
    test_from: float | None = None,
    targets: Targets | str = "first",
    held_out: int = 1,
    shares: tuple[float, float] = (0.1, 0.1),
    seed: int = 0,
) -> Split:
    """Divide a store.

    Args:
        store: the sequences.
        kind: ``leave-one-out``, ``global-time`` or ``users``.
        valid_from: global-time only: seconds since the epoch, or, below 1, a share of all events; default 0.8.
        test_from: likewise; default 0.9.
        targets: global-time only: ``first`` or ``all``, see the module docstring.
        held_out: leave-one-out only: events of a user that test, and that validate.
        shares: users only: of the users, those that validate and those that test.
        seed: users only: of the draw.

    Raises:
        ConfigError: unknown kind or targets, moments in the wrong order or without a global-time split.
        DataError: the store is too small to be divided this way, or has no clock that users share.
    """
    if kind not in _REMEDY:
        raise ConfigError(f"unknown split '{kind}'", fix=nearest(str(kind), _REMEDY))
    if targets not in ("first", "all"):
        raise ConfigError(f"unknown targets '{targets}'", fix=nearest(str(targets), ("first", "all")))
    if store.num_users < 2 or store.num_items < 2:
        raise DataError(
            f"a split needs at least 2 users and 2 items, the data have {store.num_users} and {store.num_items}",
            where=str(store.path),
            fix="Bring more data or loosen the filters (min_user_events, min_item_events, min_rating)",
        )
    if kind != "global-time" and (valid_from is not None or test_from is not None):
        raise ConfigError("valid_from and test_from belong to a global-time split", fix="Use split kind global-time")
    if kind == "leave-one-out":
        parts, description = _leave_one_out(store, held_out)
    elif kind == "users":
        parts, description = _users(store, shares, seed)
    else:
        parts, description = _global_time(
            store, _share_or_seconds(valid_from, 0.8), _share_or_seconds(test_from, 0.9), targets
        )
    for name, queries in zip(("training", "validation", "test"), parts, strict=True):
        if not len(queries):
            raise DataError(
                f"the {kind} split leaves no {name} query (users: {store.num_users}, events: {store.num_events})",
                where=str(store.path),
                fix=_REMEDY[kind],
            )
    train, valid, test = parts
    return Split(kind, train, valid, test, description, _digest(store, kind, parts))


_REMEDY = {
    "leave-one-out": "It needs users with at least 4 events: bring more data or loosen the filters",
    "global-time": "Move valid_from and test_from, or use leave-one-out",
    "users": "It needs users with at least 2 events and a share of one user or more: bring more data",
}


def _share_or_seconds(value: float | None, default: float) -> float:
    return default if value is None else value


def _leave_one_out(store: SequenceStore, each: int) -> tuple[tuple[Queries, Queries, Queries], str]:
    if each < 1:
        raise ConfigError(f"held_out is {each}", fix="Hold out 1 event or more")
    start, stop = store.offsets[:-1], store.offsets[1:]
    held_out = np.where(stop - start >= 2 * each + 1, 2 * each, 0)
    evaluated = np.flatnonzero(held_out)
    train_end = stop - held_out - 1
    trains = np.flatnonzero(train_end > start)
    parts = (
        Queries(trains, train_end[trains]),
        Queries(evaluated, stop[evaluated] - 1 - each),
        Queries(evaluated, stop[evaluated] - 1),
    )
    if each == 1:
        return parts, f"leave-one-out: newest event of {len(evaluated)} users tests, second newest validates"
    return parts, f"leave-one-out: newest {each} events of {len(evaluated)} users test, the {each} before them validate"


def _users(
    store: SequenceStore, shares: tuple[float, float], seed: int
) -> tuple[tuple[Queries, Queries, Queries], str]:
    if min(shares) <= 0 or sum(shares) >= 1:
        raise ConfigError(f"shares of users are {shares}", fix="Give two shares above 0 that leave some to train")
    start, stop = store.offsets[:-1], store.offsets[1:]
    drawn = np.random.default_rng(seed).permutation(np.flatnonzero(stop - start >= 2))
    valid, test = (round(share * len(drawn)) for share in shares)
    groups = [np.sort(group) for group in np.split(drawn, [valid, valid + test])]
    asked = [Queries(group, stop[group] - 1) for group in groups]
    parts = asked[2], asked[0], asked[1]
    return parts, f"users: {len(groups[2])} train, {valid} validate, {test} test, drawn with seed {seed}"


def _global_time(
    store: SequenceStore, valid_from: float, test_from: float, targets: str
) -> tuple[tuple[Queries, Queries, Queries], str]:
    clock = store.manifest.get("timestamps")
    if clock != "seconds":
        raise DataError(
            f"a global-time split needs timestamps that users share, these data have '{clock}'",
            where=str(store.path),
            fix="Use leave-one-out",
        )
    first_valid, first_test = _moment(store, valid_from, "valid_from"), _moment(store, test_from, "test_from")
    if first_valid >= first_test:
        raise ConfigError(f"valid_from ({first_valid}) must lie before test_from ({first_test})")
    start, stop = store.offsets[:-1], store.offsets[1:]
    valid_start = start + _count_before(store, first_valid)
    test_start = start + _count_before(store, first_test)
    trains = np.flatnonzero(valid_start - 1 > start)
    parts = (
        Queries(trains, valid_start[trains] - 1),
        _period(start, valid_start, test_start, targets),
        _period(start, test_start, stop, targets),
    )
    asked = "first event of a user in each period" if targets == "first" else "every event of each period"
    return parts, f"global-time: validation from {first_valid}, test from {first_test} (seconds), {asked}"


def _moment(store: SequenceStore, value: float, name: str) -> int:
    """Seconds as they are; a share as the time of the event that stands there in time order."""
    if value >= 1:
        return int(value)
    if value <= 0:
        raise ConfigError(f"{name} is {value}", fix="Give seconds since the epoch or a share between 0 and 1")
    place = min(int(value * store.num_events), store.num_events - 1)
    return int(np.partition(store.timestamps, place)[place])


def _count_before(store: SequenceStore, moment: int) -> np.ndarray:
    """Events of each user before ``moment``, ``[users]`` int64; no user is empty, so reduceat is exact."""
    counts: np.ndarray = np.add.reduceat(store.timestamps < moment, store.offsets[:-1], dtype=np.int64)
    return counts


def _period(start: np.ndarray, begin: np.ndarray, end: np.ndarray, targets: str) -> Queries:
    """Queries about events ``begin[u] .. end[u]`` of each user that have a history."""
    begin = np.maximum(begin, start + 1)
    lengths = np.maximum(end - begin, 0)
    if targets == "first":
        lengths = np.minimum(lengths, 1)
    user = np.repeat(np.arange(len(start), dtype=np.int64), lengths)
    within = np.arange(len(user), dtype=np.int64) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Queries(user, begin[user] + within)


def _digest(store: SequenceStore, kind: str, parts: tuple[Queries, ...]) -> str:
    digest = hashlib.sha256(f"{kind} {store.manifest['content_hash']}\n".encode())
    for queries in parts:
        digest.update(np.ascontiguousarray(queries.user).data)
        digest.update(np.ascontiguousarray(queries.end).data)
    return digest.hexdigest()
