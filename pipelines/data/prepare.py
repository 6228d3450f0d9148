"""From an interactions table to a sequence store: check, filter, number, sort, write.

Numbering is by sorted original id (integers by value, strings by their UTF-8 bytes), after the filters: the same events
in another file order get the same indices. Sorting is by user, then timestamp, then file order, so equal timestamps
keep the order that the file gives them; how many events the file held out of time order stands in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.data.actions import checked_mask, classes_of_ratings, describe_actions
from pipelines.data.formats.shown import shown_names
from pipelines.data.store import SequenceStore, building, write_arrays
from pipelines.data.user_features import user_codes, write_vocabularies
from pipelines.errors import ConfigError, DataError, nearest

PREPARE_VERSION = 1
"""Raise it when the same table would give another store, so that stores on disk are rebuilt."""

TIE_RULE = "file order"
_UNITS = {
    "s": (1, 1),
    "ms": (1, 1000),
    "us": (1, 10**6),
    "ns": (1, 10**9),
    "days": (86_400, 1),
}  # times a, divided by b
_LATEST_SECOND = 10**11  # the year 5138: whatever lies beyond was not counted in seconds


@dataclass(frozen=True)
class PrepareOptions:
    """What becomes of a table on its way into a store."""

    min_user_events: int = 1
    """Users with fewer events are dropped, in turn with ``min_item_events`` until nothing changes (k-core)."""
    min_item_events: int = 1
    """Items with fewer events are dropped."""
    min_rating: float | None = None
    """Events rated lower are dropped, before the k-core; null keeps all, rated or not."""
    oldest_share: float = 1.0
    """Keep this share of all events, the oldest by time, before every other filter; 1 keeps all."""
    timestamp_unit: str = "s"
    """What the table counts time in: s, ms, us, ns or days. Stores hold whole seconds, rounded down; events are sorted
    by the finer time before rounding."""
    timestamps: str = "seconds"
    """``seconds`` since the epoch (after conversion), or ``relative``: counted from each user's own start, which no
    global-time split can use."""
    features: tuple[str, ...] = ()
    """Further numeric columns of the table to keep as token features under their own names."""
    rating_levels: tuple[float, ...] = ()
    """All ratings there are, in ascending order: the place of an event's rating among them becomes the token feature
    ``actions``."""
    action_bits: tuple[str, ...] = ()
    """Names of the bits of the table's column ``actions``, lowest first; it becomes the token feature ``actions``."""
    user_features: tuple[str, ...] = ()
    """What to carry of each user: ``user_id``, and columns of what the dataset tells of its users."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if min(self.min_user_events, self.min_item_events) < 1:
            raise ConfigError("min_user_events and min_item_events start at 1 (keep everything)")
        if not 0 < self.oldest_share <= 1:
            raise ConfigError(f"oldest_share is {self.oldest_share}", fix="Give a share above 0, at most 1")
        if self.timestamp_unit not in _UNITS:
            raise ConfigError(
                f"unknown timestamp_unit '{self.timestamp_unit}'", fix=nearest(self.timestamp_unit, _UNITS)
            )
        if self.timestamps not in ("seconds", "relative"):
            raise ConfigError(
                f"unknown timestamps '{self.timestamps}'", fix=nearest(self.timestamps, ("seconds", "relative"))
            )
        for key in _LISTS:
            object.__setattr__(self, key, tuple(getattr(self, key)))
        if self.rating_levels and self.action_bits:
            raise ConfigError("actions come from rating_levels or from action_bits, not from both")
        if list(self.rating_levels) != sorted(set(self.rating_levels)) or len(self.rating_levels) > 255:
            raise ConfigError("rating_levels are at most 255 different ratings in ascending order")
        if len(self.action_bits) > 16:
            raise ConfigError(f"action_bits are {len(self.action_bits)} names, there is room for 16")
        if twice := [name for name in self.user_features if self.user_features.count(name) > 1]:
            raise ConfigError(f"user_features names {twice[0]} twice")

    def described(self) -> dict[str, Any]:
        """The options as plain data; options that came later are left out unset, so that a store keeps its key."""
        later = ("rating_levels", "action_bits", "user_features")
        return {key: value for key, value in asdict(self).items() if value or key not in later}


_LISTS = tuple(field.name for field in fields(PrepareOptions) if str(field.type).startswith("tuple"))


@dataclass
class _Events:
    """The columns of the events that are still in, each ``[events]``, in file order."""

    user: np.ndarray  # int32 codes into user_ids
    item: np.ndarray  # int32 codes into item_ids
    time: np.ndarray  # int64, in the table's own unit
    order: np.ndarray | None  # tie breaker from the table
    features: dict[str, np.ndarray]
    user_ids: pl.Series
    item_ids: pl.Series

    def keep(self, mask: np.ndarray) -> None:
        """Drop the events where ``mask`` is False."""
        if mask.all():
            return
        self.user, self.item, self.time = self.user[mask], self.item[mask], self.time[mask]
        self.order = None if self.order is None else self.order[mask]
        self.features = {name: values[mask] for name, values in self.features.items()}


def prepare(
    table: pl.DataFrame | pl.LazyFrame,
    folder: Path,
    *,
    source: Mapping[str, Any],
    options: PrepareOptions | None = None,
    users: pl.DataFrame | None = None,
) -> SequenceStore:
    """Turn an interactions table into a sequence store at ``folder``; a store already there is replaced.

    Args:
        table: columns ``user_id`` and ``item_id`` (integers or strings), ``timestamp`` (integers in
            ``options.timestamp_unit``), optionally ``rating`` and features. A column ``order`` (integers) sorts events
            of equal time before the file order does; without a ``timestamp`` column it stands for the time, and the
            store's times are each event's place in its user's sequence (``manifest["timestamps"] == "order"``).
        folder: where the store goes.
        source: where the data come from, for the manifest: ``name``, ``files`` (name and sha256), ``note``.
        options: filters and units.
        users: ``user_id`` and what ``options.user_features`` names beside it, a row a user.

    Raises:
        DataError: missing columns, missing or impossible values, nothing left after the filters, disk full.
    """
    options = options or PrepareOptions()
    frame = table.collect() if isinstance(table, pl.LazyFrame) else table
    label = str(source.get("name", "table"))
    _check_columns(frame, options, label)
    clock = options.timestamps if "timestamp" in frame.columns else "order"
    events = _events(frame, clock, options, label)
    del table, frame  # a caller that does not hold it either frees what has been numbered
    raw_count = len(events.user)
    _filter(events, options)
    if not len(events.user):
        raise DataError(f"the filters leave none of {raw_count} events", where=label, fix="Loosen the filters")
    codes, values = user_codes(options.user_features, users, events.user_ids, label)
    arrays, unordered = _sequences(events, clock, options)
    arrays |= _named_apart(codes, arrays, label)
    manifest: dict[str, Any] = {
        "source": dict(source),
        "filters": options.described(),
        "counts": {"users": len(events.user_ids), "items": len(events.item_ids), "events": len(arrays["items"])},
        "events_before_filters": raw_count,
        "events_out_of_time_order": unordered,
        "timestamps": clock,
        "tie_rule": TIE_RULE,
    }
    manifest |= _described_features(options, events.user_ids, values)
    with building(Path(folder)) as temporary:
        write_vocabularies(temporary, values)
        write_arrays(temporary, arrays, manifest, _id_bytes(events.user_ids, events.item_ids))
        _write_ids(temporary, events)
    return SequenceStore.open(Path(folder))


def _write_ids(folder: Path, events: _Events) -> None:
    """The original ids behind the indices."""
    items = np.arange(1, len(events.item_ids) + 1, dtype=np.int32)
    users = np.arange(len(events.user_ids), dtype=np.int32)
    pl.DataFrame({"item_index": items, "item_id": events.item_ids}).write_parquet(folder / "items.parquet")
    pl.DataFrame({"user_index": users, "user_id": events.user_ids}).write_parquet(folder / "users.parquet")


def _described_features(
    options: PrepareOptions, user_ids: pl.Series, values: Mapping[str, pl.Series]
) -> dict[str, Any]:
    """What the manifest says of actions and of users' features: how many codes each has, unknown (0) among them."""
    sizes = {name: 1 + len(values.get(name, user_ids)) for name in options.user_features}
    actions = describe_actions(options.rating_levels, options.action_bits)
    return {**({"actions": actions} if actions else {}), **({"user_features": sizes} if sizes else {})}


def _named_apart(
    codes: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], label: str
) -> dict[str, np.ndarray]:
    """The users' codes under the names of their files, none of which a token feature may have."""
    named = {f"user_{name}": array for name, array in codes.items()}
    if clash := sorted(named.keys() & arrays.keys()):
        raise DataError(f"{clash[0]} is a token feature and a user feature", where=label, fix="Keep one of them")
    return named


def _check_columns(frame: pl.DataFrame, options: PrepareOptions, label: str) -> None:
    rated = options.min_rating is not None or bool(options.rating_levels)
    needed = ["user_id", "item_id", *options.features] + (["rating"] if rated else [])
    needed += ["actions"] if options.action_bits else []
    missing = [name for name in needed if name not in frame.columns]
    if "timestamp" not in frame.columns and "order" not in frame.columns:
        missing.append("timestamp (or order)")
    if missing:
        asking = "rating_levels" if options.rating_levels else "min_rating"
        remedy = f"Drop {asking} or name the column with --set dataset.options.rating=COLUMN"
        raise DataError(
            f"columns missing: {', '.join(missing)}; found: {shown_names(frame.columns) or 'none'}",
            where=label,
            fix=remedy if missing == ["rating"] else None,
        )
    if not frame.height:
        raise DataError("the table holds no events", where=label, fix="Check that this is the right file")
    used: list[str] = [name for name in ("timestamp", "order", "rating") if name in frame.columns]
    used += ["actions"] if options.action_bits else []
    for name in ["user_id", "item_id", *used, *options.features]:
        if nulls := frame[name].null_count():
            raise DataError(
                f"{nulls} of {frame.height} events have no {name}", where=label, fix="Drop or repair those rows"
            )
    for name in [*used, *options.features]:
        whole = name in ("timestamp", "order", "actions")
        if not (frame[name].dtype.is_integer() if whole else frame[name].dtype.is_numeric()):
            kind = "whole numbers" if whole else "numbers"
            raise DataError(f"column {name} holds {frame[name].dtype}, not {kind}", where=label)


def _events(frame: pl.DataFrame, clock: str, options: PrepareOptions, label: str) -> _Events:
    user, user_ids = _number(frame["user_id"], label)
    item, item_ids = _number(frame["item_id"], label)
    order = frame["order"].cast(pl.Int64).to_numpy() if "order" in frame.columns else None
    if clock == "order":
        assert order is not None
        time, order = order, None
    else:
        time = frame["timestamp"].cast(pl.Int64).to_numpy()
        _check_times(time, options, label)
    features = {name: frame[name].to_numpy() for name in options.features}
    if "rating" in frame.columns:
        features["ratings"] = frame["rating"].cast(pl.Float32).to_numpy()
    if options.rating_levels:
        features["actions"] = classes_of_ratings(features["ratings"], options.rating_levels, label)
    if options.action_bits:
        features["actions"] = checked_mask(frame["actions"].to_numpy(), options.action_bits, label)
    for name, values in features.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise DataError(
                f"column {name} holds values that are not finite", where=label, fix="Drop or repair those rows"
            )
    return _Events(user, item, time, order, features, user_ids, item_ids)


def _number(column: pl.Series, label: str) -> tuple[np.ndarray, pl.Series]:
    """Codes ``[events]`` int32 of a column of ids and the sorted distinct ids that the codes point at."""
    if column.dtype.is_integer():
        values = (column if column.dtype == pl.Int32 else column.cast(pl.Int64)).to_numpy()
        low, high = int(values.min()), int(values.max())
        if high - low < min(
            max(4 * len(values), 1 << 20), 1 << 31
        ):  # dense ids: two passes over a table instead of a sort
            seen = np.zeros(high - low + 1, dtype=bool)
            seen[values - low] = True
            codes = (np.cumsum(seen, dtype=np.int32) - np.int32(1))[values - low]
            return codes, pl.Series(column.name, np.flatnonzero(seen) + low, dtype=pl.Int64)
        distinct = np.unique(values)
        return np.searchsorted(distinct, values).astype(np.int32), pl.Series(column.name, distinct, dtype=pl.Int64)
    if column.dtype in (pl.String, pl.Categorical, pl.Enum):
        strings = column.cast(pl.String)
        names = strings.unique().sort()
        return strings.cast(pl.Enum(names)).to_physical().cast(pl.Int32).to_numpy(), names
    raise DataError(f"column {column.name} holds {column.dtype}", where=label, fix="Ids are whole numbers or strings")


def _check_times(time: np.ndarray, options: PrepareOptions, label: str) -> None:
    multiply, divide = _UNITS[options.timestamp_unit]
    lowest, highest = int(time.min()), int(time.max())
    if lowest < 0:
        raise DataError(
            f"{int((time < 0).sum())} of {len(time)} timestamps are negative", where=label, fix="Repair them"
        )
    if highest * multiply // divide <= _LATEST_SECOND:
        return
    unit = next((u for u in ("ms", "us", "ns") if highest // _UNITS[u][1] <= _LATEST_SECOND), None)
    names = {"ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
    if options.timestamp_unit == "s" and unit:
        raise DataError(
            f"timestamps look like {names[unit]} (up to {highest})",
            where=label,
            fix=f"Convert them with --set dataset.timestamp_unit={unit} "
            f"(or `prepare: {{timestamp_unit: {unit}}}` in the dataset's YAML file)",
        )
    raise DataError(
        f"timestamps reach {highest} {options.timestamp_unit}, beyond the year 5138", where=label, fix="Check the unit"
    )


def _filter(events: _Events, options: PrepareOptions) -> None:
    if options.oldest_share < 1:
        place = int(options.oldest_share * len(events.time))
        events.keep(events.time < np.partition(events.time, place)[place])
    if options.min_rating is not None:
        events.keep(events.features["ratings"] >= np.float32(options.min_rating))
    events.keep(core_mask(events.user, events.item, options.min_user_events, options.min_item_events))
    events.user, events.user_ids = _close_gaps(events.user, events.user_ids)
    events.item, events.item_ids = _close_gaps(events.item, events.item_ids)


def core_mask(user: np.ndarray, item: np.ndarray, min_user_events: int, min_item_events: int) -> np.ndarray:
    """Events ``[events]`` bool of the largest part where every user and every item has enough events.

    Args:
        user: ``[events]`` integer codes from 0.
        item: likewise.
        min_user_events: events each user must keep.
        min_item_events: events each item must keep.
    """
    mask = np.ones(len(user), dtype=bool)
    if max(min_user_events, min_item_events) <= 1:
        return mask
    left = np.arange(len(user))
    while len(left):
        enough = (np.bincount(user[left]) >= min_user_events)[user[left]]
        enough &= (np.bincount(item[left]) >= min_item_events)[item[left]]
        if enough.all():
            break
        left = left[enough]
    mask[:] = False
    mask[left] = True
    return mask


def _close_gaps(codes: np.ndarray, ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Renumber codes whose ids have partly been filtered away."""
    used = np.bincount(codes, minlength=len(ids)) > 0
    if used.all():
        return codes, ids
    return (np.cumsum(used, dtype=np.int32) - np.int32(1))[codes], ids.filter(pl.Series(used))


def _sequences(events: _Events, clock: str, options: PrepareOptions) -> tuple[dict[str, np.ndarray], int]:
    """The store's arrays, and how many events the file held out of time order inside their user."""
    row = _stable_order(events.user, events.time, events.order)
    lengths = np.bincount(events.user, minlength=len(events.user_ids))
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    earlier_in_file = np.flatnonzero(row[1:] < row[:-1]) + 1  # also true at the border between two users
    starts = np.zeros(len(row) + 1, dtype=bool)
    starts[offsets] = True
    unordered = int((~starts[earlier_in_file]).sum())
    if clock == "order":
        time = np.arange(len(row), dtype=np.int64) - np.repeat(offsets[:-1], lengths)
    else:
        multiply, divide = _UNITS[options.timestamp_unit]
        time = events.time[row]
        time *= multiply
        time //= divide
    arrays = {"offsets": offsets, "items": events.item[row] + np.int32(1), "timestamps": time}
    return arrays | {name: values[row] for name, values in events.features.items()}, unordered


def _stable_order(user: np.ndarray, time: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """Rows ``[events]`` sorted by user, time, the table's own order if any, and then file order."""
    if order is not None:
        return np.lexsort((order, time, user))
    low, high = int(time.min()), int(time.max())
    span = high - low + 1
    if (int(user.max()) + 1) * span >= 2**63:
        return np.lexsort((time, user))
    key = user.astype(np.int64) * span  # one key and one stable sort: half the time of lexsort
    key += time
    key -= low
    return np.argsort(key, kind="stable")


def _id_bytes(*columns: pl.Series) -> Iterator[bytes]:
    for column in columns:
        if column.dtype == pl.Int64:
            yield column.to_numpy().tobytes()
        else:
            yield "\0".join(column.to_list()).encode()
