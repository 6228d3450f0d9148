"""Every verdict of the preflight: what fails, what is only noted, and that no secret is printed."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from models.kernels import KernelCheck
from models.kernels.paths import PATHS
from pipelines import preflight
from pipelines.data.datasets import DatasetSpec
from pipelines.errors import MachineError
from pipelines.machine import Gpu, read_pins
from pipelines.preflight import Check, PreflightOptions, run_preflight

H100 = Gpu("NVIDIA H100", 85.5, "9.0", "580.1")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "gpus", list)
    monkeypatch.setattr(preflight, "has_gpu", lambda: False)


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is installed, as the checks see it."""
    found: dict[str, str] = {}
    monkeypatch.setattr(
        preflight, "installed_version", lambda *names: next((found[n] for n in names if n in found), None)
    )
    return found


def kernels(monkeypatch: pytest.MonkeyPatch, *checks: KernelCheck) -> dict[str, Check]:
    monkeypatch.setattr("models.kernels.self_check", lambda: list(checks))
    monkeypatch.setattr("models.kernels.chosen_paths", lambda device: {"selective_scan": "numba"})
    return {check.name: check for check in preflight.check_kernels(PreflightOptions(device="cpu"))}


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.mark.usefixtures("no_gpu")
def test_this_machine_passes(tmp_path: Path) -> None:
    checks = {check.name: check for check in run_preflight(PreflightOptions(device="cpu", folder=tmp_path / "runs"))}
    assert preflight.verdict(list(checks.values())) == 0
    assert checks["torch"].pinned == read_pins()["TORCH"]
    assert checks["numpy"].pinned == checks["numpy"].found
    for name in ("triton", "mamba-ssm", "causal-conv1d", "torchrec", "fbgemm-gpu", "megatron-core", "recbole"):
        assert checks[name].verdict == "ok", name
        assert checks[name].pinned, name
    compared = [check for check in checks.values() if ": " in check.name and "error" in check.found]
    assert {check.name.partition(":")[0] for check in compared} == PATHS.keys()
    assert all(check.remedy for check in checks.values() if check.verdict != "ok")


@pytest.mark.usefixtures("no_gpu")
def test_json_holds_every_check_and_never_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-key-of-somebody")
    printed = console()
    checks = run_preflight(PreflightOptions(device="cpu", folder=tmp_path))
    code = preflight.print_checks(checks, printed, as_json=True)
    text = printed.file.getvalue()  # type: ignore[attr-defined]
    result = json.loads(text)
    assert result["exit_code"] == code == 0
    assert set(result["checks"][0]) == {"name", "verdict", "found", "pinned", "remedy"}
    assert {"name": "W&B key", "verdict": "ok", "found": "set", "pinned": "", "remedy": ""} in result["checks"]
    assert "secret" not in text


@pytest.mark.usefixtures("no_gpu")
def test_a_run_without_wandb_is_not_asked_for_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for wanted in (True, False):
        names = {check.name for check in run_preflight(PreflightOptions(device="cpu", folder=tmp_path, wandb=wanted))}
        assert ("W&B key" in names) is wanted


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    options = PreflightOptions(device="cuda", folder=tmp_path)
    with pytest.raises(MachineError, match=r"preflight: GPU: none\. check the driver") as failure:
        preflight.require_preflight(options, console())
    assert failure.value.exit_code == 2
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(("device", "expected"), [("auto", "fail"), ("cuda:0", "fail"), ("cpu", "ok")])
def test_the_cuda_image_wants_a_gpu_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, device: str, expected: str
) -> None:
    monkeypatch.setenv("RECPOD_IMAGE", "cuda")
    (check,) = preflight.check_gpus([], PreflightOptions(device=device), with_gpu=False)
    assert (check.verdict, "--gpus all" in check.remedy) == (expected, expected == "fail")


@pytest.mark.usefixtures("no_gpu")
def test_failed_checks_are_not_ready(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.touch()
    with pytest.raises(MachineError, match="preflight: disk: .* cannot be written"):
        preflight.require_preflight(PreflightOptions(device="cpu", folder=nowhere / "runs"), console())


def test_verdict_of_the_whole() -> None:
    assert preflight.verdict([Check("a", "ok", ""), Check("b", "warn", "")]) == 0
    assert preflight.verdict([Check("a", "fail", ""), Check("b", "ok", "")]) == 2


def test_a_wrong_kernel_in_use_fails_and_an_idle_one_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = kernels(
        monkeypatch,
        KernelCheck("selective_scan", "numba", True, False, 0.5, 0.1, "differs from the reference by 5.0e-01"),
        KernelCheck("selective_scan", "torch", True, False, 0.5, 0.1, "differs from the reference by 5.0e-01"),
        KernelCheck("selective_scan", "reference", True, True, 1e-7, 0.1, ""),
        KernelCheck("selective_scan", "triton", False, None, None, 0.1, "package triton is not installed"),
    )
    verdicts = {name.partition(": ")[2].split()[0]: check.verdict for name, check in found.items()}
    assert verdicts == {"numba": "fail", "torch": "warn", "reference": "ok", "triton": "ok"}
    assert "RECPOD_KERNELS=selective_scan=torch" in next(iter(found.values())).remedy


@pytest.mark.parametrize(
    ("found", "with_gpu", "expected"),
    [
        ({"torch": f"{read_pins()['TORCH']}+cpu"}, False, "ok"),
        ({"torch": "2.11.99"}, False, "warn"),
        ({"torch": "2.9.1"}, False, "fail"),
        ({}, False, "fail"),
    ],
)
def test_torch(versions: dict[str, str], found: dict[str, str], with_gpu: bool, expected: str) -> None:
    versions.update(found)
    assert next(iter(preflight.check_torch(PreflightOptions(), with_gpu))).verdict == expected


@pytest.mark.parametrize(
    ("built_for", "usable", "with_gpu", "device", "expected"),
    [
        (None, False, False, "auto", "ok"),
        ("12.8", False, False, "auto", "warn"),  # runs, but is gigabytes too large
        ("12.8", True, True, "auto", "ok"),
        ("13.0", False, True, "auto", "fail"),  # a driver that is too old
        (None, False, True, "auto", "fail"),
        (None, False, True, "cpu", "warn"),
    ],
)
def test_cuda_runtime(
    monkeypatch: pytest.MonkeyPatch, built_for: str | None, usable: bool, with_gpu: bool, device: str, expected: str
) -> None:
    monkeypatch.setattr("torch.version.cuda", built_for)
    monkeypatch.setattr("torch.cuda.is_available", lambda: usable)
    check = preflight.check_cuda_runtime(PreflightOptions(device=device), with_gpu)
    assert check.verdict == expected
    assert bool(check.remedy) == (expected != "ok")


def test_each_gpu_has_driver_memory_and_capability() -> None:
    old = Gpu("NVIDIA T4", 6.0, "7.5", "535.1")
    checks = list(preflight.check_gpus([H100, old], PreflightOptions(), with_gpu=True))
    assert [(check.name, check.verdict, check.found) for check in checks] == [
        ("NVIDIA driver", "ok", "580.1"),
        ("GPU 0", "ok", "NVIDIA H100"),
        ("GPU 0 memory", "ok", "85.5 GB"),
        ("GPU 0 compute capability", "ok", "9.0"),
        ("GPU 1", "ok", "NVIDIA T4"),
        ("GPU 1 memory", "warn", "6.0 GB"),
        ("GPU 1 compute capability", "warn", "7.5"),
    ]
    (silent,) = preflight.check_gpus([], PreflightOptions(), with_gpu=True)
    assert silent.verdict == "fail"


@pytest.mark.parametrize(
    ("package", "found", "with_gpu", "expected"),
    [
        ("mamba-ssm", {}, False, "ok"),
        ("mamba-ssm", {}, True, "warn"),
        ("mamba-ssm", {"mamba-ssm": "2.3.2.post1"}, True, "ok"),
        ("mamba-ssm", {"mamba-ssm": "2.2.0"}, True, "warn"),
        ("fbgemm-gpu", {"fbgemm-gpu-cpu": "1.8.0"}, False, "ok"),
        ("recbole", {}, False, "warn"),
        ("numpy", {}, False, "fail"),
    ],
)
def test_packages(versions: dict[str, str], package: str, found: dict[str, str], with_gpu: bool, expected: str) -> None:
    versions.update(found)
    row = next(row for row in preflight.PACKAGES if row[0] == package)
    assert preflight.check_package(*row, with_gpu=with_gpu).verdict == expected


@pytest.mark.parametrize(("needed", "expected"), [(False, "warn"), (True, "fail")])
def test_a_source_out_of_reach(monkeypatch: pytest.MonkeyPatch, needed: bool, expected: str) -> None:
    monkeypatch.setattr("pipelines.data.fetch.reachable", lambda spec, cache: (False, "no connection"))
    check = preflight.check_source(PreflightOptions(dataset="ml-1m", data_needed=needed))
    assert (check.verdict, check.found) == (expected, "ml-1m: no connection")
    assert "RECPOD_MIRROR" in check.remedy


def test_a_resolved_dataset_is_looked_for_where_the_run_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RECPOD_MIRROR", "RECPOD_GDRIVE_ID"):
        monkeypatch.delenv(name, raising=False)
    spec = DatasetSpec(name="toy", file="toy.txt")
    options = PreflightOptions(dataset="toy", data_needed=True, spec=spec, cache=tmp_path)
    assert preflight.check_source(options).verdict == "fail"
    (tmp_path / "toy.txt").touch()
    assert preflight.check_source(options) == Check("data source", "ok", "toy: local cache")
    drive = PreflightOptions(data_needed=True, spec=replace(spec, gdrive_id="x"), cache=tmp_path / "empty")
    assert preflight.check_source(drive) == Check("data source", "ok", "toy: Google Drive, not checked")
    gone = replace(spec, path=tmp_path / "gone.csv")
    check = preflight.check_source(PreflightOptions(data_needed=True, spec=gone))
    assert (check.verdict, check.remedy) == ("fail", "check the path") and "no file at" in check.found


def test_a_dataset_by_name_is_looked_for_in_the_given_cache(tmp_path: Path) -> None:
    (tmp_path / "ml-1m.zip").touch()
    check = preflight.check_source(PreflightOptions(dataset="ml-1m", cache=tmp_path))
    assert check.found == "ml-1m: local cache"


def test_a_data_file_that_is_not_there_is_a_failed_check(tmp_path: Path) -> None:
    check = preflight.check_source(PreflightOptions(dataset=str(tmp_path / "gone.csv")))
    assert (check.verdict, check.found) == ("fail", "no such data file")


def test_an_unknown_dataset_names_the_nearest() -> None:
    check = preflight.check_source(PreflightOptions(dataset="ml-1n"))
    assert check.verdict == "fail"
    assert "ml-1m" in check.remedy


def test_small_shared_memory_and_memory_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "free_bytes", lambda path: 64_000_000)
    assert preflight.check_shared_memory().verdict == "warn"
    assert "--shm-size" in preflight.check_shared_memory().remedy
    monkeypatch.setattr(preflight, "available_memory_bytes", lambda: 500_000_000)
    assert preflight.check_memory().verdict == "fail"
