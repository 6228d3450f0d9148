"""benchmarks/gpu_kernels.py, in small on a CPU: both kernels are timed beside plain PyTorch and named as chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu_kernels


def test_both_kernels_are_timed_beside_plain_pytorch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu_kernels.figures(tmp_path, "benchmarks/gpu.sh", "cpu", rows=3, length=20, repeats=2)
    for op in ("mhc-streams", "interval-attention"):
        found = json.loads((tmp_path / f"sasrec-cpu-{op}.json").read_text())
        assert set(found["runs"]["paths"]) == {"numba", "torch"} and found["runs"]["chosen"] == "numba"
        assert all(len(one["step_ms"]) == 2 and min(one["step_ms"]) > 0 for one in found["runs"]["paths"].values())
        assert found["runs"]["paths"]["numba"]["equal_bits"]
        assert found["met"] == (found["value"] < float(found["target"].split()[1]))
    assert "mhc_streams:" in capsys.readouterr().out


def test_the_sizes_are_the_recipes() -> None:
    (_, streams), (_, intervals) = gpu_kernels.cases(2, 5).values()
    assert [tuple(x.shape) for x in streams[:2]] == [(10, 4, 64), (24, 256)]
    assert [tuple(x.shape) for x in intervals[:4]] == [(10, 2, 32)] * 3 + [(257, 2, 32)]
