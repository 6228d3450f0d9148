"""The matrix of GPUs, drivers and images: complete, without contradictions, and the page says the same."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from pipelines.machine import package_pins, read_pins
from tests.docker.conftest import ROOT, load

MATRIX = json.loads((ROOT / "docker" / "gpu-matrix.json").read_text(encoding="utf-8"))
PINS = read_pins()
IMAGES = {row["tag"]: row for row in MATRIX["images"]}
GPUS = {row["name"]: row for row in MATRIX["gpus"]}
WANTED = [
    *("RTX A4000", "RTX A5000", "RTX A6000", "A4000", "A5000", "A6000", "A10", "A40", "RTX 3090", "3090"),
    *("A100-40", "A100-80", "A100", "L4", "L40S", "RTX 4090", "4090", "RTX 5090", "5090", "V100", "T4"),
    *("H100", "H100 SXM", "H100 PCIe", "H200", "B200"),
]


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def names_of(row: dict) -> list[str]:
    return [name.lower() for name in (row["name"], *row["aliases"])]


@pytest.mark.parametrize("name", WANTED)
def test_every_gpu_that_is_rented_is_listed_once(name: str) -> None:
    assert len([row for row in GPUS.values() if name.lower() in names_of(row)]) == 1


def test_no_two_gpus_share_a_name() -> None:
    names = sorted(name for row in GPUS.values() for name in names_of(row))
    assert not [name for name, following in pairwise(names) if name == following]


@pytest.mark.parametrize("row", GPUS.values(), ids=list(GPUS))
def test_a_gpu_fits_its_generation_and_an_image(row: dict) -> None:
    (generation,) = [item for item in MATRIX["generations"] if item["name"] == row["generation"]]
    assert row["capability"] in generation["capabilities"]
    cuda = IMAGES["cuda"]
    supported = "capabilities" if row["support"] == "full" else "limited_capabilities"
    assert row["capability"] in cuda[supported]
    assert bool(row["note"]) == (row["support"] == "limited"), "what fails is said, and only that"
    # bfloat16 came with compute capability 8.0.
    assert (row["bf16_tflops"] is not None) == (numbers(row["capability"]) >= (8, 0))


@pytest.mark.parametrize("row", GPUS.values(), ids=list(GPUS))
def test_figures_have_the_right_order_of_magnitude(row: dict) -> None:
    """Figures with sparsity, GB/s for TB/s and cents for dollars would show here."""
    assert 16 <= row["memory_gb"] <= 192 and 300 <= row["bandwidth_gb_s"] <= 8000
    assert row["bf16_tflops"] is None or 70 <= row["bf16_tflops"] <= 2500
    price = row["typical_price_per_hour_usd"]
    assert price is None or 0.1 < price < 15
    assert row["source"]


def test_the_page_sells_no_gpu_faster_than_its_bigger_brother() -> None:
    order = ["RTX A4000", "RTX A5000", "RTX A6000", "A100 80GB SXM", "H100 PCIe", "H100 SXM", "B200"]
    speeds = [GPUS[name]["bf16_tflops"] for name in order]
    assert speeds == sorted(speeds)
    assert GPUS["H200"]["bandwidth_gb_s"] > GPUS["H100 SXM"]["bandwidth_gb_s"] > GPUS["H100 PCIe"]["bandwidth_gb_s"]


def test_the_images_hold_what_is_pinned() -> None:
    cpu, cuda = IMAGES["cpu"], IMAGES["cuda"]
    pins = package_pins("cuda")
    assert (cpu["torch"], cuda["torch"]) == (PINS["TORCH"], pins["torch"])
    assert (cuda["mamba_ssm"], cuda["causal_conv1d"]) == (pins["mamba-ssm"], pins["causal-conv1d"])
    assert all(
        numbers(PINS["PYTHON_MIN"]) <= numbers(row["python"]) <= numbers(PINS["PYTHON_MAX"]) for row in IMAGES.values()
    )
    assert PINS[cpu["base"]].startswith(f"python:{cpu['python']}.")
    assert re.match(rf"nvidia/cuda:{re.escape(cuda['cuda'])}\.", PINS[cuda["base"]])
    assert (PINS["PYTHON_MIN"], PINS["PYTHON_MAX"]) == (cpu["python"], cuda["python"])


def test_the_lock_holds_the_cuda_that_the_matrix_says() -> None:
    lock = (ROOT / "docker" / "locks" / "cuda.txt").read_text(encoding="utf-8")
    match = re.search(r"^nvidia-cuda-runtime-cu12==(\d+\.\d+)\.", lock, flags=re.MULTILINE)
    assert match is not None and match[1] == IMAGES["cuda"]["cuda"]


def test_kernels_are_compiled_for_the_capabilities_of_the_matrix() -> None:
    assert PINS["KERNEL_CAPABILITIES"].split(",") == IMAGES["cuda"]["capabilities"]


def test_driver_floors_do_not_contradict_each_other() -> None:
    """An image's build, the floor of its minor versions, and generations that came after it."""
    for build in MATRIX["builds"]:
        assert numbers(build["driver_min_compat"]) <= numbers(build["driver_min"])
    newer = [numbers(build["driver_min"]) for build in sorted(MATRIX["builds"], key=lambda row: numbers(row["cuda"]))]
    assert newer == sorted(newer)
    cuda = IMAGES["cuda"]
    (build,) = [row for row in MATRIX["builds"] if row["image"] == "cuda"]
    assert all(build[key] == cuda[key] for key in ("cuda", "driver_min", "driver_min_compat"))
    assert set(build["capabilities"]) | {"8.9"} == {*cuda["capabilities"], *cuda["limited_capabilities"]}
    for generation in MATRIX["generations"]:
        young = numbers(generation["first_cuda"]) >= numbers(cuda["cuda"])
        assert generation["driver_min"] == cuda["driver_min" if young else "driver_min_compat"]


def test_nothing_is_called_tested_without_a_measurement() -> None:
    """The cuda image may be called tested once benchmarks/gpu.sh has left results of its torch."""
    files = (ROOT / "benchmarks" / "results" / "gpu").rglob("*.json")
    measured = [path for path in files if IMAGES["cuda"]["torch"] in path.read_text(encoding="utf-8")]
    assert IMAGES["cuda"]["status"] == "untested" or measured


def test_every_column_is_explained() -> None:
    columns = {key for part in ("images", "gpus") for row in MATRIX[part] for key in row}
    obvious = {"tag", "base", "cuda", "torch", "python", "mamba_ssm", "causal_conv1d", "name", "generation"}
    obvious |= {"capability", "bandwidth_gb_s", "source", "support", "note"}
    assert columns - obvious <= set(MATRIX["notes"])


def test_the_page_is_up_to_date() -> None:
    assert load("gpu_matrix").main(["--check"]) == 0


def test_a_changed_figure_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("gpu_matrix")
    for folder, name in (("docker", "gpu-matrix.json"), ("docs", "gpu-matrix.md")):
        (tmp_path / folder).mkdir()
        shutil.copy(ROOT / folder / name, tmp_path / folder / name)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "SOURCE", tmp_path / "docker" / "gpu-matrix.json")
    monkeypatch.setattr(script, "PAGE", tmp_path / "docs" / "gpu-matrix.md")
    assert script.main(["--check"]) == 0
    matrix = json.loads(script.SOURCE.read_text())
    matrix["gpus"][0]["memory_gb"] = 17
    script.SOURCE.write_text(json.dumps(matrix))
    assert script.main(["--check"]) == 1
    assert script.main([]) == 0
    assert "| 17 |" in script.PAGE.read_text() and script.main(["--check"]) == 0
