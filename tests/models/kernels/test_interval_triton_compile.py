"""The Triton kernels of interval attention compile for the GPUs of the field, without one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.kernels.triton_build import built

pytest.importorskip("triton")

FLOATS = {"logs", "scratch", "parts", "dk", "dv"}
LONGS = {"times", "offsets", "seed"}
SCALES = {"scale", "kept"}
NUMBERS = {"rows", "blocks", "items", "heads", "span", "threshold"} | {
    f"{name}_{step}" for name in "qkv" for step in ("token", "head")
}
KERNELS = ("forward_kernel", "backward_kernel")


@pytest.fixture(autouse=True)
def _compiles_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compile_for(capability: int, name: str, dtype: str, width: int, unit: int = 86400) -> tuple[str, int, int]:
    """The PTX, the registers of a thread, and the bytes that a thread keeps in memory (spills)."""
    from models.kernels.interval_attention import triton as launches
    from models.kernels.interval_attention import triton_kernels

    kernel = getattr(triton_kernels, name)
    kind = torch.float32 if dtype == "fp32" else torch.bfloat16
    fixed, warps = launches._sizes(width, 256, unit, 0.2), launches._warps(kind, name == "backward_kernel")
    kinds: dict[str, Any] = dict.fromkeys(FLOATS, "*fp32") | dict.fromkeys(LONGS, "*i64")
    kinds |= dict.fromkeys(SCALES, "fp32") | dict.fromkeys(NUMBERS, "i32")
    return built(capability, kernel, kinds, fixed, dtype, num_warps=warps, num_stages=launches.STAGES)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_without_atomics_and_multiply_on_tensor_cores(name: str, capability: int, dtype: str) -> None:
    ptx, registers, spilled = compile_for(capability, name, dtype, 32)
    assert f".target sm_{capability}" in ptx
    assert not re.search(r"\b(atom|red)\.", ptx)  # sums in a fixed order only
    if dtype == "bf16":
        assert re.search(r"\b(mma\.sync|wgmma)", ptx)
    assert spilled <= 128, registers


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("width", [25])
def test_other_widths_compile(name: str, width: int) -> None:
    assert compile_for(90, name, "bf16", width, unit=1)[0]
