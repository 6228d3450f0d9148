"""HSTU's benchmarks measure what they say: both sides compute the same, memory is that of a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_hstu, hstu_attention
from benchmarks.hstu_attention import BIASES, Problem, main


@pytest.mark.parametrize("bias", BIASES)
def test_the_padded_formula_is_the_same_layer(bias: str) -> None:
    problem = Problem([20, 1, 57], 2, 8, bias)
    leaves = [leaf for leaf in (problem.mixed, problem.position, problem.time) if leaf is not None]
    assert len(leaves) == 1 + BIASES.index(bias)
    both = [function() for function in (problem.ours, problem.padded)]
    torch.testing.assert_close(both[0], both[1], atol=1e-5, rtol=1e-4)
    weights = torch.linspace(-1, 1, both[0].numel()).view_as(both[0])
    ours, padded = (torch.autograd.grad((out * weights).sum(), leaves) for out in both)
    for one, other in zip(ours, padded, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_another_result_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Problem, "ours", lambda problem: 2 * problem.padded())
    with pytest.raises(SystemExit, match="nothing to compare"):
        hstu_attention.measure_speed(1, 8, "none", 1)


def test_the_speed_s_result_names_every_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hstu_attention, "ROWS", 4)
    hstu_attention.report_speed(tmp_path, 1)
    found = json.loads((tmp_path / "hstu-attention-cpu-speed.json").read_text())
    assert len(found["runs"]["ratios"]) == 6 and found["met"] == (found["value"] >= 3)
    of_authors = [ratio for name, ratio in found["runs"]["ratios"].items() if "time" in name]
    assert found["value"] == pytest.approx(min(of_authors), abs=1e-3)


def test_a_peak_counts_what_the_step_needs_alone(capsys: pytest.CaptureFixture[str]) -> None:
    held = torch.ones(4 << 20)
    found = hstu_attention.peak_of(lambda: torch.ones(8 << 20).sum())
    assert 30 << 20 <= found < 44 << 20 and held.numel()
    main(["--measure", "attention", "64"])
    assert int(capsys.readouterr().out) >= 0


def test_gpu_figures_in_small_on_a_cpu(tmp_path: Path) -> None:
    gpu_hstu.figures(tmp_path, "cpu", (16, 32), 64, 1)
    found = json.loads((tmp_path / "hstu-gpu-attention.json").read_text())
    assert set(found["runs"]["by_length"]) == {"16", "32"}
    cases = found["runs"]["by_length"]["16"]
    assert set(cases) == {"ours", "ours, position", "ours, position and time", "sdpa", "padded"}
    assert all(case["forward"] >= 0 and len(case["backward_ms"]) == 1 for case in cases.values())
    assert all(error < 0.03 for error in found["runs"]["difference_to_padded"].values())
    assert found["runs"]["path"] == "numba" and found["value"] == cases["ours"]["forward"]


def test_flops_are_those_of_the_causal_half() -> None:
    shape = gpu_hstu.Shape(8, 32, "cpu")
    assert shape.pairs == 4 * 4 * 36  # rows, heads, pairs of a row
