"""A run whose events are resident: its queries are asked from there, and every number is that of a run without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.data import loader
from pipelines.data.store import SequenceStore
from tests.pipelines.recipe_runs import evaluated, ran, write_recipes

ASKED = ("evaluation.also=[loo-full]", "evaluation.shuffle_order=true")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> list[SequenceStore]:
    """The stores of which the loader itself has made batches of queries."""
    made: list[SequenceStore] = []
    gather = loader.gather_batch

    def counted(store: SequenceStore, *windows: Any, **options: Any) -> Any:
        made.append(store)
        return gather(store, *windows, **options)

    monkeypatch.setattr(loader, "gather_batch", counted)
    return made


def test_validation_and_test_are_asked_from_resident_events(tmp_path: Path, host: list[SequenceStore]) -> None:
    write_recipes(tmp_path)
    runs, ranks = [], []
    for resident in ("on", "off"):
        host.clear()
        runs.append(ran(None, tmp_path, resident, f"loader.resident={resident}", *ASKED))
        assert isinstance(runs[-1], dict), runs[-1]
        ranks.append(pl.read_parquet(tmp_path / "runs" / resident / "ranks.parquet"))
        changed = [store for store in host if "shuffled" in store.manifest["content_hash"]]
        assert changed, "the control's own store lies nowhere else"
        if resident == "on":
            assert len(changed) == len(host), "neither the model's queries nor a baseline's"
        else:
            assert len(changed) < len(host)
    assert ranks[0].equals(ranks[1]) and len(ranks[0]) > 40
    for key in ("losses", "norms", "test"):
        assert runs[0][key] == runs[1][key], key
    measured = [[{k: v for k, v in e.items() if "@" in k} for e in run["valid"]] for run in runs]
    assert measured[0] == measured[1] and len(measured[0]) == 2


def test_evaluation_by_itself_brings_no_events_to_the_device(tmp_path: Path, host: list[SequenceStore]) -> None:
    write_recipes(tmp_path)
    first = ran(None, tmp_path, "run", "loader.resident=on")
    host.clear()
    again = ran(None, tmp_path, "run", "loader.resident=on", stage=evaluated)
    assert host and again["test"] == first["test"]
