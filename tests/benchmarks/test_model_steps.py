"""What a step of each model costs: every model takes its turn on the same batches, every claim gets its file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import model_steps
from benchmarks.synthetic_store import synthetic_store
from pipelines import stages
from pipelines.config import load_config
from pipelines.data.splits import make_split


@pytest.fixture
def prepared(tmp_path: Path) -> stages.Prepared:
    store = synthetic_store(tmp_path / "store", share=0.003)
    return stages.Prepared(
        store, make_split(store, "leave-one-out"), stages.protocol_of(load_config("sasrec-ml1m", []))
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_every_model_trains_and_is_timed(prepared: stages.Prepared, tmp_path: Path) -> None:
    found = model_steps.measure(prepared, rounds=2, folder=tmp_path)
    assert set(found) == set(model_steps.models(prepared.store.num_items))
    assert all(len(times) == 2 and min(times) > 0 for times in found.values())


def test_a_claim_is_the_ratio_of_medians(tmp_path: Path) -> None:
    found = {"sasrec": [10.0, 20.0, 90.0], "sasrec, mHC": [40.0, 5.0, 30.0], "tisasrec": [20.0] * 3, "hstu": [22.0] * 3}
    found["sasrec, compiled"] = [21.0] * 3
    model_steps.report(found, "data", 1, "command", tmp_path)
    results = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert {name: (one["value"], one["met"]) for name, one in results.items()} == {
        "sasrec-mhc-step": (1.5, True),
        "sasrec-tisasrec-step": (1.0, True),
        "hstu-step": (1.1, True),
        "sasrec-compile-step": (1.05, False),
    }
