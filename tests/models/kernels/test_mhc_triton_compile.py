"""The Triton kernels of the hyper-connections compile for the GPUs of the field, without one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.models.kernels.triton_build import built

pytest.importorskip("triton")

# In float32 whatever the streams are.
FLOATS = {"projection", "gate", "bias", "projected", "inverse", "grad_routes", "given", "parts", "sums"}
FLOATS |= {"routes", "weight"}
KERNELS = {
    "read_kernel": "triton_read",
    "read_gradient_kernel": "triton_read",
    "projection_gradient_kernel": "triton_read",
    "write_kernel": "triton_write",
    "write_gradient_kernel": "triton_write",
}


@pytest.fixture(autouse=True)
def _compiles_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compile_for(capability: int, name: str, dtype: str, streams: int, width: int, chosen: bool) -> tuple[str, int, int]:
    """The PTX, the registers of a thread, and the bytes that a thread keeps in memory (spills)."""
    from models.kernels.mhc_streams import triton as launches
    from models.kernels.mhc_streams import triton_read, triton_write

    kernel = getattr({"triton_read": triton_read, "triton_write": triton_write}[KERNELS[name]], name)
    reading = KERNELS[name] == "triton_read"
    sizes = launches._read_sizes(streams, width, 20) if reading else launches._write_sizes(streams, width)
    fixed: dict[str, Any] = {**sizes, "HELD": chosen, "NORM": chosen}
    fixed = {key: value for key, value in fixed.items() if key in kernel.arg_names}
    kinds = dict.fromkeys(FLOATS, "*fp32") | {"tokens": "i32", "eps": "fp32"}
    return built(capability, kernel, kinds, fixed, dtype, num_warps=launches.WARPS)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_without_spills_or_atomics(name: str, capability: int, dtype: str) -> None:
    ptx, registers, spilled = compile_for(capability, name, dtype, 4, 64, True)
    assert f".target sm_{capability}" in ptx
    assert not re.search(r"\b(atom|red)\.", ptx)  # sums in a fixed order only
    assert spilled == 0, registers


@pytest.mark.slow
@pytest.mark.parametrize(("streams", "width"), [(2, 16), (3, 300)])
@pytest.mark.parametrize("name", KERNELS)
def test_other_sizes_compile(name: str, streams: int, width: int) -> None:
    assert compile_for(90, name, "fp32", streams, width, False)[0]
