"""Runs the Triton kernels' numeric tests in Triton's interpreter, which must be chosen before triton is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.timeout(300)  # 15 s of its own on a free core
def test_kernels_in_the_interpreter() -> None:
    tests = Path(__file__).with_name("test_triton_kernels.py")
    command = [sys.executable, "-m", "pytest", str(tests), "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    # one thread: the interpreter's arrays are tiny, and other tests may hold the second core
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    passed, skipped = (re.search(rf"(\d+) {word}", result.stdout) for word in ("passed", "skipped"))
    assert passed and int(passed[1]) >= 30  # the numeric tests did run
    assert skipped and int(skipped[1]) == 3  # run-to-run equality, which one thread cannot break
