"""benchmarks/gpu.sh: runs with torch and numpy alone, and a kernel that computes something else fails it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_bench import Bench
from benchmarks.gpu_checks import kernel_checks, resume_check
from benchmarks.gpu_graph import ALLOWED, STEPS, GraphBench
from benchmarks.plain_trainer import plain_trainer
from benchmarks.synthetic_store import synthetic_store
from models.ss4rec import SS4Rec, SS4RecOptions
from pipelines.data.loader import LoaderOptions, cut_windows
from pipelines.data.splits import make_split
from pipelines.evaluation.results_readme import read_results
from pipelines.training.trainer import Trainer, TrainingData

ROOT = Path(__file__).resolve().parents[2]
# torch, numpy, and what torch cannot be installed without
BARE = {"torch", "numpy", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "setuptools", "sympy"}
BARE |= {"typing-extensions"}
HIDE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}

class Bare:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else PathFinder.find_spec(name, path, target)

sys.meta_path = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""


def bare_machine(folder: Path) -> dict[str, str]:
    """An environment whose Python finds no package but torch, numpy and what torch needs."""
    owners = importlib.metadata.packages_distributions()
    names = {module: {re.sub("[-_.]+", "-", owner).lower() for owner in owned} for module, owned in owners.items()}
    ours = {"benchmarks", "models", "pipelines", "tests"}
    hidden = {module for module, owned in names.items() if not owned & BARE and module not in ours}
    assert {"polars", "pydantic", "rich", "numba", "pytest", "yaml"} <= hidden
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HIDE.format(hidden=hidden))
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_everything_runs_with_torch_and_numpy_alone(tmp_path: Path) -> None:
    synthetic_store(tmp_path / "store", share=0.003)
    folders = {"OUT": str(tmp_path / "out"), "RECPOD_STORE": str(tmp_path / "store")}
    environment = {**bare_machine(tmp_path / "bare"), **folders}
    command = [str(ROOT / "benchmarks" / "gpu.sh"), "--device", "cpu", "--quick", "--epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "package numba is not installed" in done.stdout  # nothing but torch and numpy was to be had
    convergence = json.loads((tmp_path / "out" / "gpu-convergence-aware.json").read_text())
    assert convergence["epochs"] == 1 and set(convergence["test"]) == {"loo-full", "loo-full-masked"}
    (tmp_path / "out" / "gpu-convergence-aware.json").unlink()
    claims = [result["claim"] for result in read_results(tmp_path / "out")]
    assert claims == [
        "front-cpu-kernels",
        "front-cpu-train-speed",
        "sasrec-cpu-epoch-seconds",
        "sasrec-cpu-resident-epoch-seconds",
    ]


def test_the_script_needs_a_gpu_unless_told_otherwise(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    done = subprocess.run([str(ROOT / "benchmarks" / "gpu.sh")], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "torch finds no GPU here" in done.stderr


def test_a_part_that_breaks_says_how_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> bool:
        raise RuntimeError("this driver does not like that")

    monkeypatch.setattr(gpu, "check_part", broken)
    options = ["--device", "cpu", "--quick", "--parts", "checks", "sasrec", "--out", str(tmp_path)]
    assert gpu.main(options) == 1
    said = capsys.readouterr().out
    assert "FAILED   checks" in said and "RuntimeError: this driver does not like that" in said
    resident = json.loads((tmp_path / "sasrec-cpu-resident-epoch-seconds.json").read_text())
    assert resident["value"] > 0 and len(resident["runs"]["cases"]) == 2


def test_the_graphs_measure_trains_alike_on_ragged_and_on_filled_up_batches(tmp_path: Path) -> None:
    """All of benchmarks/gpu_graph.py but the graph."""
    store = synthetic_store(tmp_path / "store", share=0.003)
    loader = LoaderOptions(max_length=16, tokens_per_batch=300)
    bench = GraphBench(Bench("cpu", store, SS4RecOptions(), tmp_path, loader), loader)
    ragged, filled = (bench.losses(bench.trainer(name, 0.0, graph=False), name == "filled") for name in ("", "filled"))
    assert len(ragged) == STEPS and ragged[-1] < ragged[0]
    assert max(abs(a - b) / b for a, b in zip(filled, ragged, strict=True)) < ALLOWED
    refused = bench.check(0.0, fill=False)
    assert refused.passed is False and "a CUDA graph needs a GPU" in refused.reason


def test_a_kernel_with_other_numbers_fails_its_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.kernels.causal_conv import vectorised

    assert all(check.passed for check in kernel_checks("cpu", quick=True) if check.name.startswith("causal_conv/torch"))
    right = vectorised.causal_conv_torch
    monkeypatch.setattr(vectorised, "causal_conv_torch", lambda *inputs: right(*inputs) * 1.001)
    wrong = [check for check in kernel_checks("cpu", quick=True) if check.name.startswith("causal_conv/torch float32")]
    assert wrong and all(check.passed is False and "allowed" in check.reason for check in wrong)


def test_a_resume_that_loses_the_random_state_fails_its_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = synthetic_store(tmp_path / "store", share=0.003)
    loader = LoaderOptions(max_length=16, windows="all", rows_per_batch=4)
    data = TrainingData(store, cut_windows(store, make_split(store, "leave-one-out").train, 16, "all"), loader, seed=1)

    def build(name: str) -> Trainer:
        torch.manual_seed(1)
        task = SS4Rec(store.num_items, SS4RecOptions(hidden=8, s5_state=4, d_state=4, layers=1))
        return plain_trainer(task, data, tmp_path / name)

    assert resume_check(build).passed
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    assert resume_check(build).passed is False
