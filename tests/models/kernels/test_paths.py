"""Choosing an implementation: the best that runs here, or the one asked for, never silently another."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from models.kernels import KernelUnavailable, causal_conv, chosen_paths, paths, selective_scan, self_check
from models.kernels.check import check_path, example
from models.kernels.paths import PATHS, KernelPath


@pytest.fixture(autouse=True)
def _fresh_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECPOD_KERNELS", raising=False)
    paths._select.cache_clear()


def test_every_path_that_runs_here_passes_its_check() -> None:
    checks = {(check.op, check.path): check for check in self_check()}
    for op in PATHS:
        for name in ("numba", "torch"):
            check = checks[op, name]
            assert check.available and check.passed, check
            assert check.max_error is not None and check.max_error < 1e-5
    mamba = checks["selective_scan", "mamba"]
    assert (mamba.available, mamba.passed) == (False, None) and mamba.reason


def test_the_check_catches_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = KernelPath("wrong", "causal_conv.vectorised", "wrong", ("cpu",))
    module = paths.importlib.import_module("models.kernels.causal_conv.vectorised")
    monkeypatch.setattr(module, "wrong", lambda *inputs: 1.001 * module.causal_conv_torch(*inputs), raising=False)
    check = check_path("causal_conv", wrong, "cpu")
    assert check.passed is False and check.max_error == pytest.approx(1e-3, rel=0.1)
    monkeypatch.setattr(module, "wrong", lambda *inputs: 1 / 0)
    check = check_path("causal_conv", wrong, "cpu")
    assert check.passed is False and "ZeroDivisionError" in check.reason


def test_the_compiled_path_is_the_choice_on_a_cpu_and_torch_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(chosen_paths("cpu").values()) == {"numba"}
    paths._select.cache_clear()
    find = paths.importlib.util.find_spec
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None if name == "numba" else find(name))
    assert set(chosen_paths("cpu").values()) == {"torch"}
    paths._select.cache_clear()


def test_argument_and_environment_force_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPOD_KERNELS", "selective_scan=reference,causal_conv=torch")
    chosen = chosen_paths("cpu")
    others = dict.fromkeys(paths.PATHS, "numba")
    assert chosen == {**others, "selective_scan": "reference", "causal_conv": "torch"}
    monkeypatch.setenv("RECPOD_KERNELS", "torch")
    assert set(chosen_paths("cpu").values()) == {"torch"}
    inputs = example("causal_conv", (3, 2))
    with pytest.raises(KernelUnavailable, match="takes cuda tensors only"):
        causal_conv(*inputs, path="mamba")
    with pytest.raises(KernelUnavailable, match="no path 'numbe'.*numba"):
        causal_conv(*inputs, path="numbe")


def test_float64_stays_float64_and_half_precision_comes_back_as_it_went_in() -> None:
    inputs = example("selective_scan", (3, 2))
    expected = selective_scan(*inputs, path="reference")
    wide = [v.double() if v.is_floating_point() else v for v in inputs]
    assert (selective_scan(*wide) - selective_scan(*wide, path="reference")).abs().max() < 1e-12
    half = [v.bfloat16() if v.is_floating_point() else v for v in inputs]
    out = selective_scan(*half)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


def test_a_package_folder_that_cannot_be_written_does_not_stop_the_compiled_path(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.kernels import compiled

    compiled.cache_folder.cache_clear()
    monkeypatch.setattr(compiled, "_writable", lambda folder: False)
    assert compiled.cache_folder() is None
    triple = compiled.compiled("int64(int64)")(lambda number: 3 * number)  # compiles without any cache
    assert triple(14) == 42
    compiled.cache_folder.cache_clear()
    monkeypatch.setattr(compiled, "_writable", lambda folder: "__pycache__" not in str(folder))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert str(compiled.cache_folder()).startswith(str(tmp_path))
    compiled.cache_folder.cache_clear()


def test_importing_the_package_loads_no_compiler() -> None:
    code = "import sys, models.kernels; print(sorted({'numba', 'triton', 'mamba_ssm'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
