"""The Triton kernels of HSTU's attention compile for the GPUs of the field, without one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.kernels.triton_build import built

pytest.importorskip("triton")

FLOATS = {"position", "time", "dposition", "dtime"}
LONGS = {"offsets", "times", "next_times"}
SCALES = {"scale", "inverse"}
NUMBERS = {"rows", "blocks", "heads", "furthest", "buckets"} | {
    f"{name}_{step}" for name in "qkv" for step in ("token", "head")
}
KERNELS = ("_forward_kernel", "_key_kernel", "_query_kernel")


@pytest.fixture(autouse=True)
def _compiles_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compile_for(capability: int, name: str, dtype: str, width: int, biased: bool = True) -> tuple[str, int, int]:
    """The PTX, the registers of a thread, and the bytes that a thread keeps in memory (spills)."""
    from models.kernels.hstu_attention import triton as module

    kernel = getattr(module, name)
    kind = torch.float32 if dtype == "fp32" else torch.bfloat16
    sizes, warps = module._sizes(width, width, kind, biased, name != "_forward_kernel")
    fixed: dict[str, Any] = {**sizes, "BLOCK_B": 128, "POSITION": biased, "TIME": biased}
    fixed = {key: value for key, value in fixed.items() if key in kernel.arg_names}
    kinds = dict.fromkeys(FLOATS, "*fp32") | dict.fromkeys(LONGS, "*i64") | dict.fromkeys(SCALES, "fp32")
    kinds |= dict.fromkeys(NUMBERS, "i32") | {"seen": "*i32", "limits": "*i32"}
    return built(capability, kernel, kinds, fixed, dtype, num_warps=warps)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_without_atomics_and_multiply_on_tensor_cores(name: str, capability: int, dtype: str) -> None:
    ptx, registers, spilled = compile_for(capability, name, dtype, 64)
    assert f".target sm_{capability}" in ptx
    assert not re.search(r"\b(atom|red)\.", ptx)  # sums in a fixed order only
    if dtype == "bf16":
        assert re.search(r"\b(mma\.sync|wgmma)", ptx)
    assert spilled <= 64, (registers, spilled)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("width", [20])
def test_other_widths_compile(name: str, width: int) -> None:
    assert compile_for(90, name, "bf16", width)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_without_a_bias_no_table_is_read(name: str) -> None:
    ptx, _, spilled = compile_for(90, name, "bf16", 64, biased=False)
    assert "lg2" not in ptx and spilled == 0
