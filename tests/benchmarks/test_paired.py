"""Comparisons as result files: a difference counts only with its whole interval."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks import paired
from tests.pipelines.evaluation.test_compare import write_run


def test_a_clear_difference_is_met_and_none_is_not(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    worse = random.integers(1, 50, 400)
    a, b = write_run(tmp_path / "a", worse), write_run(tmp_path / "b", np.maximum(worse // 2, 1))
    for other, met in ((b, True), (a, False)):
        base = write_run(tmp_path / "c", worse) if other == a else a
        paired.main([str(base), str(other), "--claim", "sasrec-b-paired", "--out", str(tmp_path)])
        result = json.loads((tmp_path / "sasrec-b-paired.json").read_text())
        assert result["met"] is met and (result["value"] > 0) is met
        assert result["command"].endswith(f"paired runs/{base.name} runs/{other.name} --claim sasrec-b-paired")
        assert "paired by query" in result["unit"] and result["runs"]["queries"] == 400
