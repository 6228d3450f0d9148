"""Hyper-connections and interval attention on a GPU: milliseconds and memory beside plain PyTorch.

See benchmarks/gpu.py. The sizes of a batch of SASRec's and TiSASRec's recipes: 128 rows of 200 tokens, width 64, four
streams and twenty rounds; two heads of 32, intervals of days up to 256, dropout 0.2. Everything in float32. A step is
forward and backward with all gradients; memory is what a step holds at most beyond its inputs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.result_file import write_result
from models.kernels.check import example
from models.kernels.interval_attention import interval_attention
from models.kernels.mhc_streams import mhc_read, mhc_write
from models.kernels.paths import select

ROWS, LENGTH, WIDTH, STREAMS, HEADS, SPAN = 128, 200, 64, 4, 2, 256


def sub_layer(*inputs: Tensor, path: str) -> Tensor:
    """Reading and writing around a sub-layer whose output is given, and a LayerNorm."""
    read, routes, held = mhc_read(*inputs[:4], iterations=20, path=path)
    return mhc_write(held, routes, inputs[4] + read, norm=(inputs[5], inputs[6], 1e-8), path=path)


def cases(rows: int, length: int) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """The functions, taking ``path``, and their inputs on the CPU."""
    intervals = example("interval_attention", [length] * rows, WIDTH // HEADS, HEADS)
    random = torch.Generator().manual_seed(1)
    intervals[3:5] = (torch.randn(SPAN + 1, HEADS, WIDTH // HEADS, generator=random) for _ in range(2))
    return {
        "mhc-streams": (sub_layer, example("mhc_streams", [length] * rows, WIDTH, STREAMS)),
        "interval-attention": (partial(interval_attention, unit="day", dropout=0.2), intervals),
    }


def measure(function: Callable[..., Tensor], inputs: Sequence[Tensor], repeats: int, device: str) -> dict[str, Any]:
    """Milliseconds of forward and of a step, every run, the most memory of a step in MB, and whether steps repeat."""
    from benchmarks.gpu_hstu import milliseconds

    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    wanted = [x for x in leaves if x.requires_grad]
    ones = torch.ones_like(function(*leaves))

    def step() -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        return torch.autograd.grad(function(*leaves), wanted, ones)

    with torch.no_grad():
        forward = milliseconds(lambda: function(*leaves), repeats, device)
    found: dict[str, Any] = {"forward_ms": forward, "step_ms": milliseconds(step, repeats, device), "memory_mb": None}
    found["equal_bits"] = all(torch.equal(one, other) for one, other in zip(step(), step(), strict=True))
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        found["memory_mb"] = round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)
    return found


def figures(
    out: Path, command: str, device: str = "cuda", rows: int = ROWS, length: int = LENGTH, repeats: int = 20
) -> None:
    """Writes ``sasrec-gpu-mhc-streams`` and ``sasrec-gpu-interval-attention`` into ``out``.

    Smaller sizes, on a CPU against its compiled path, are for trials.
    """
    best = "triton" if device == "cuda" else "numba"
    for name, (function, inputs) in cases(rows, length).items():
        op = name.replace("-", "_")
        given = [x.to(device) for x in inputs]
        found = {path: measure(partial(function, path=path), given, repeats, device) for path in (best, "torch")}
        step, plain = (statistics.median(found[path]["step_ms"]) for path in (best, "torch"))
        print(f"{op}: {step:.2f} ms a step, plain PyTorch {plain:.2f} ms", flush=True)
        write_result(
            claim=f"sasrec-{'gpu' if device == 'cuda' else device}-{name}",
            value=round(step, 3),
            unit=f"ms, forward and backward, {rows} rows of {length}, width {WIDTH}, float32, median of {repeats}",
            target=f"< {plain:.3f} (plain PyTorch), equal bits from run to run",
            met=step < plain and found[best]["equal_bits"],
            peer="the torch path on the same device in the same run",
            command=command,
            runs={"paths": found, "chosen": select(op, device).name},
            folder=out,
        )
