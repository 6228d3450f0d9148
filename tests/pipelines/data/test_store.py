from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.data.store import SequenceStore, building
from pipelines.errors import DataError

ROWS = [("b", 7, 10), ("a", 9, 5), ("b", 9, 11), ("a", 7, 6), ("a", 8, 7)]


def test_layout(build: Callable[..., SequenceStore]) -> None:
    store = build(ROWS)
    assert store.offsets.tolist() == [0, 3, 5]
    assert store.items.tolist() == [3, 1, 2, 1, 3]
    assert store.timestamps.tolist() == [5, 6, 7, 10, 11]
    assert [a.dtype.name for a in (store.offsets, store.items, store.timestamps)] == ["int64", "int32", "int64"]
    assert (store.num_users, store.num_items, store.num_events) == (2, 3, 5)
    assert store.item_ids().tolist() == [7, 8, 9]
    assert store.user_ids().tolist() == ["a", "b"]


def test_arrays_are_memory_mapped_and_read_only(build: Callable[..., SequenceStore]) -> None:
    store = build(ROWS)
    assert isinstance(store.items, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.items[0] = 1


def test_absent_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sequence store here.*recpod prepare"):
        SequenceStore.open(tmp_path / "nothing")


def test_other_schema_version(build: Callable[..., SequenceStore]) -> None:
    path = build(ROWS).path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 0}))
    with pytest.raises(DataError, match="schema version 0, this code reads 1"):
        SequenceStore.open(path.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrays": None}, "lacks arrays or counts"),
        ({"arrays": {"items": 1}}, "lacks arrays or counts"),
        ({"counts": {}}, "lacks arrays or counts"),
    ],
)
def test_a_manifest_with_holes_is_refused(
    build: Callable[..., SequenceStore], change: dict[str, Any], message: str
) -> None:
    path = build(ROWS).path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        SequenceStore.open(path.parent)
    path.write_text("[]")
    with pytest.raises(DataError, match="holds no keys"):
        SequenceStore.open(path.parent)


@pytest.mark.parametrize("damage", ["delete", "shorten", "other length"])
def test_partial_store_is_refused(build: Callable[..., SequenceStore], damage: str) -> None:
    path = build(ROWS).path
    items = path / "items.npy"
    if damage == "delete":
        items.unlink()
    elif damage == "shorten":
        os.truncate(items, items.stat().st_size - 4)
    else:
        np.save(items, np.ones(4, dtype=np.int32))
    with pytest.raises(DataError, match="items.npy"):
        SequenceStore.open(path)


def test_failed_build_leaves_the_old_store_and_nothing_else(build: Callable[..., SequenceStore]) -> None:
    store = build(ROWS)

    def fail() -> None:
        with building(store.path) as temporary:
            (temporary / "items.npy").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.name for p in store.path.parent.iterdir()] == ["store"]
    assert SequenceStore.open(store.path).items.tolist() == store.items.tolist()


def test_rebuild_replaces_and_leaves_open_readers_alone(build: Callable[..., SequenceStore]) -> None:
    old = build(ROWS)
    new = build(ROWS[:2])
    assert new.num_events == 2
    assert old.items.tolist() == [3, 1, 2, 1, 3]
    assert [p.name for p in new.path.parent.iterdir()] == ["store"]


def test_content_hash_follows_content(build: Callable[..., SequenceStore]) -> None:
    first = build(ROWS).manifest["content_hash"]
    assert build(ROWS).manifest["content_hash"] == first
    assert build([*ROWS[:-1], ("a", 8, 8)]).manifest["content_hash"] != first
    renamed = [(user, item + 100, time) for user, item, time in ROWS]
    assert build(renamed).manifest["content_hash"] != first
