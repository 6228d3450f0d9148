"""What the tests of the RecBole engine share: a store whose next item can be guessed, and RecBole's parts for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.data.store import SequenceStore
from tests.pipelines.conftest import memory_store

pytest.importorskip("colorlog", reason="recbole is not installed with what it needs: entrypoints/setup.sh --test")


@pytest.fixture(scope="session")
def store() -> SequenceStore:
    """Item ``i`` is followed by ``i + 1``; users of 1, 2 and 3 events are among them; times have ties."""
    made = memory_store([1, 2, 3, 3, 4, *[12] * 60], num_items=30, seed=3)
    start = np.repeat(np.arange(made.num_users) * 7, np.diff(made.offsets))
    place = np.arange(made.num_events) - np.repeat(made.offsets[:-1], np.diff(made.offsets))
    times = made.timestamps // 1000 * 1000
    return replace(made, items=((start + place) % 30 + 1).astype(np.int32), timestamps=times)


def recbole_values(folder: Path, **more: Any) -> dict[str, Any]:
    """RecBole's configuration for what write_atomic_files has written to ``folder``."""
    from pipelines.engines.recbole_data import FIELDS

    return {
        **FIELDS,
        "data_path": str(folder),
        "gpu_id": "",
        "seed": 1,
        "checkpoint_dir": str(folder / "saved"),
        "show_progress": False,
        "repeatable": True,
        "MAX_ITEM_LIST_LENGTH": 8,
        "train_neg_sample_args": None,
        "train_batch_size": 64,
        **more,
    }
