"""Small sequence stores, written and opened like real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from pipelines.data.store import SequenceStore, building, write_arrays

MakeStore = Callable[..., SequenceStore]


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """``make_store(histories, num_items, timestamps=None)``: a list of item lists becomes a store.

    Original ids are ``u0, u1, ...`` and ``100 + item index``; ratings are the item index, to see them move along.
    """

    def make(histories: list[list[int]], num_items: int, timestamps: list[list[int]] | None = None) -> SequenceStore:
        items = np.array([item for row in histories for item in row], dtype=np.int32)
        times = timestamps or [list(range(1000, 1000 + len(row))) for row in histories]
        arrays = {
            "offsets": np.cumsum([0] + [len(row) for row in histories]).astype(np.int64),
            "items": items,
            "timestamps": np.array([time for row in times for time in row], dtype=np.int64),
            "ratings": items.astype(np.float32),
        }
        manifest = {
            "source": {
                "name": "hand-made",
                "files": [{"name": "a.csv", "sha256": "ab" * 32}],
                "note": "made in a test",
            },
            "filters": {"min_user_events": 1},
            "counts": {"users": len(histories), "items": num_items, "events": len(items)},
            "tie_rule": "file order",
            "timestamps": "seconds",
        }
        users = arrow.array([f"u{user}" for user in range(len(histories))])
        ids = arrow.array(np.arange(1, num_items + 1) + 100)
        path = tmp_path / "store"
        with building(path) as folder:
            parquet.write_table(
                arrow.table({"user_index": np.arange(len(users)), "user_id": users}), folder / "users.parquet"
            )
            parquet.write_table(
                arrow.table({"item_index": np.arange(1, num_items + 1), "item_id": ids}), folder / "items.parquet"
            )
            write_arrays(folder, arrays, manifest, [b"ids"])
        return SequenceStore.open(path)

    return make
