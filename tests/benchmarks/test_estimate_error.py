"""The estimate's benchmark on a tiny recipe: measures, estimates, runs, writes. Its figure is not looked at here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import estimate_error

TINY = """
name: tiny
dataset: {folder}/clicks.csv
model: {{name: ss4rec, hidden: 16, s5_state: 4, d_state: 4, layers: 1}}
loader: {{max_length: 10, windows: all, rows_per_batch: 16}}
training: {{epochs: 2, patience: 1}}
gates: [{{metric: NDCG@10, above: 2}}]
"""


@pytest.mark.slow
def test_it_compares_an_estimate_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "data"))
    rows = [f"{u},{(u * 7 + i) % 30},{1000 * u + 60 * i}" for u in range(40) for i in range(14)]
    (tmp_path / "clicks.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    (tmp_path / "tiny.yaml").write_text(TINY.format(folder=tmp_path))
    estimate_error.main(["--recipe", str(tmp_path / "tiny.yaml"), "--seconds", "1", "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out" / "container-estimate-error.json").read_text())
    (run,) = result["runs"]
    assert run["steps"] == {"estimated": 2 * 5, "taken": 2 * 5}  # 40 users with 11 targets: 80 windows, 5 batches
    assert run["took_s"] > 0 and result["value"] == abs(run["error_percent"])
    assert result["met"] is (result["value"] <= 25)


def test_without_a_mirror_only_the_quick_start_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECPOD_MIRROR", raising=False)
    assert estimate_error.subjects(3) == [("quickstart", [])]
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m" / "ml-1m.zip").write_bytes(b"")
    monkeypatch.setenv("RECPOD_MIRROR", str(tmp_path))
    assert estimate_error.subjects(3)[1] == ("ml1m", ["training.epochs=3"])
