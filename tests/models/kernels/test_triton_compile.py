"""The Triton kernels compile for the GPUs of the field, without one: this catches what the interpreter accepts."""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

OPS = ("selective_scan", "diagonal_scan", "causal_conv")
# In fp32 whatever the activations are.
PARAMETERS = {
    *("dt_bias", "a", "skip", "lambda_re", "lambda_im", "step_scale", "interval", "weight", "bias", "starts"),
    *("da", "db", "dc", "dbias", "dskip", "dlambda_re", "dlambda_im", "dscale", "dweight"),
}
INTEGERS = {"width", "size", "tokens", "x_stride", "dt_stride", "b_stride", "c_stride", "z_stride", "bu_stride"}


@pytest.fixture(autouse=True)
def _compiles_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def constants(module: Any, op: str, backward: bool, states: int) -> tuple[dict[str, Any], int]:
    """What the launch passes as constants, and its warps."""
    if op == "diagonal_scan":
        return {"BLOCK": module.BLOCK, "CHUNK": module.CHUNK}, 1
    if op == "causal_conv":
        sizes = {"TAPS": 4, "BLOCK_T": module.BLOCK_T, "BLOCK_D": module.BLOCK_D}
        return ({**sizes, "PADDED_TAPS": 4} if backward else sizes), 4
    block_n, block_d = module._blocks(states)
    sizes = {"N": states, "BLOCK_N": block_n, "BLOCK_D": block_d, "CHUNK": module.CHUNK}
    return (sizes, module.BACKWARD_WARPS) if backward else ({**sizes, "KEEP": True}, module.FORWARD_WARPS)


def compile_for(
    capability: int, op: str, direction: str, dtype: str, states: int = 32, ones: bool = False
) -> tuple[Any, int, int]:
    """The compiled kernel, its registers a thread and the bytes a thread keeps in memory (spills)."""
    module = importlib.import_module(f"models.kernels.{op}.triton")
    kernel = getattr(module, f"_{direction}_kernel")
    fixed, warps = constants(module, op, direction == "backward", states)
    if ones:  # the launcher turns every integer that is 1 into a constant, which is another program
        fixed = {**fixed, **{name: 1 for name in kernel.arg_names if name in INTEGERS}}
    kinds = dict.fromkeys(INTEGERS, "i32") | dict.fromkeys(PARAMETERS, "*fp32") | {"offsets": "*i64"}
    signature = {name: "constexpr" if name in fixed else kinds.get(name, f"*{dtype}") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if kind != "constexpr"
    }
    source = triton.compiler.ASTSource(kernel, signature, fixed, aligned)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    cubin = Path(compiled.metadata_group[next(name for name in compiled.metadata_group if name.endswith(".cubin"))])
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run(
        [cuobjdump, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    registers, stack, local = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK", "LOCAL"))
    return compiled, registers, stack + local


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("op", OPS)
def test_kernels_compile_without_spills_or_atomics(op: str, capability: int, dtype: str) -> None:
    for direction in ("forward", "backward"):
        compiled, registers, spilled = compile_for(capability, op, direction, dtype)
        ptx = compiled.asm["ptx"]
        assert f".target sm_{capability}" in ptx
        assert not re.search(r"\b(atom|red)\.", ptx)  # sums in a fixed order only
        # the slow path of sin and cos keeps a table of 32 bytes for very large angles
        assert spilled <= (32 if op == "diagonal_scan" else 0), (direction, registers, spilled)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_sizes_of_one_compile(op: str) -> None:
    for direction in ("forward", "backward"):
        compile_for(90, op, direction, "fp32", states=1, ones=True)


@pytest.mark.slow
@pytest.mark.parametrize("states", [16, 64])
def test_selective_scan_fits_the_registers(states: int) -> None:
    for direction in ("forward", "backward"):
        _, registers, spilled = compile_for(90, "selective_scan", direction, "fp32", states)
        assert spilled == 0, (direction, registers, spilled)
