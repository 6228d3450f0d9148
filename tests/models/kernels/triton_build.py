"""How Triton kernels are tried without a GPU: compiled for one, and run in the interpreter, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any


def built(
    capability: int, kernel: Any, kinds: dict[str, str], fixed: dict[str, Any], dtype: str, **options: int
) -> tuple[str, int, int]:
    """A kernel compiled for a GPU of ``capability``.

    Args:
        capability: 80 for sm_80.
        kernel: jitted.
        kinds: types of arguments; those that neither it nor ``fixed`` names point to ``dtype``.
        fixed: constants.
        dtype: ``fp32`` or ``bf16``.
        options: of the launch.

    Returns:
        The PTX, the registers of a thread, and the bytes that a thread keeps in memory (spills).
    """
    import triton

    signature = {key: "constexpr" if key in fixed else kinds.get(key, f"*{dtype}") for key in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, (key, kind) in enumerate(signature.items())
        if kind.startswith("*") or key.endswith(("_token", "_head"))
    }
    source = triton.compiler.ASTSource(kernel, signature, fixed, aligned)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=options)
    cubin = Path(compiled.metadata_group[next(key for key in compiled.metadata_group if key.endswith(".cubin"))])
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run(
        [cuobjdump, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    found = [re.search(rf"{word}:(\d+)", usage) for word in ("REG", "STACK", "LOCAL")]
    registers, stack, local = (int(number[1]) for number in found if number)
    return compiled.asm["ptx"], registers, stack + local


def run_in_interpreter(file: str, passed: int, skipped: int) -> None:
    """The tests of ``file`` once more where Triton interprets: at least ``passed`` pass, ``skipped`` are skipped."""
    command = [sys.executable, "-m", "pytest", file, "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    counts = [re.search(rf"(\d+) {word}", result.stdout) for word in ("passed", "skipped")]
    assert all(counts), result.stdout[-2000:]
    ran, left = (int(count[1]) for count in counts if count)
    assert ran >= passed and left == skipped  # the numeric tests did run
