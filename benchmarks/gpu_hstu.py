"""HSTU's attention on a GPU: TFLOP/s of both passes by length, beside torch's own attention. See benchmarks/gpu.py.

Four heads of 64 in bfloat16, 32,768 tokens in rows of one length, causal. A causal pair counts 4 FLOPs a number of the
head forward and 10 backward, whatever is computed again, for everybody: half the square, as attention kernels are
quoted. The peers are softmax attention (torch has no kernel for SiLU): ``sdpa`` as PyTorch chooses it, ``flex`` as
torch.compile makes it, and ``padded``, the same formula as ours in plain PyTorch. The published kernel reaches 61 to 97
TFLOP/s forward at 256 tokens on an H100.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.result_file import write_result
from models.kernels import chosen_paths
from models.kernels.hstu_attention import AttentionMask, RelativeBias, hstu_attention

LENGTHS, TOKENS, HEADS, WIDTH = (256, 1024, 4096, 8192), 32768, 4, 64
PUBLISHED = 61.0  # TFLOP/s forward at 256 tokens, the lower end


class Shape:
    """Inputs of one length.

    Args:
        length: of every row.
        tokens: of all rows.
        device: where.
    """

    def __init__(self, length: int, tokens: int, device: str) -> None:
        random = torch.Generator().manual_seed(0)
        self.length, self.rows = length, tokens // length
        self.q, self.k, self.v = (
            torch.randn(tokens, HEADS, WIDTH, generator=random).to(device, torch.bfloat16).requires_grad_()
            for _ in range(3)
        )
        self.offsets = torch.arange(0, tokens + 1, length, device=device)
        self.seen = AttentionMask().seen(self.offsets, tokens)
        self.position = torch.randn(2 * length - 1, generator=random).to(device).requires_grad_()
        self.time = torch.randn(128, generator=random).to(device).requires_grad_()
        gaps = torch.randint(0, 9, (tokens,), generator=random) ** 5
        self.times = gaps.cumsum(0).to(device)
        self.pairs = self.rows * HEADS * length * (length + 1) / 2

    def square(self, x: Tensor) -> Tensor:
        """``[B, H, L, d]``."""
        return x.view(self.rows, self.length, HEADS, WIDTH).transpose(1, 2)

    def cases(self) -> dict[str, Callable[[], Tensor]]:
        """What is measured, by name; padded scores only where they fit."""
        times = {"times": self.times, "next_times": self.times}
        biases = {
            "ours": None,
            "ours, position": RelativeBias(self.position),
            "ours, position and time": RelativeBias(self.position, self.time, **times),
        }
        found: dict[str, Callable[[], Tensor]] = {
            name: lambda bias=bias: hstu_attention(  # type: ignore[misc]
                self.q, self.k, self.v, self.offsets, max_length=self.length, mask=self.seen, bias=bias
            )
            for name, bias in biases.items()
        }
        q, k, v = (self.square(x) for x in (self.q, self.k, self.v))
        found["sdpa"] = lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        if q.device.type == "cuda":
            mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, self.length, self.length, q.device)
            compiled: Any = torch.compile(flex_attention)
            found["flex"] = lambda: compiled(q, k, v, block_mask=mask)
        if self.length <= 1024:
            causal = torch.ones(self.length, self.length, dtype=torch.bool, device=q.device).tril()
            found["padded"] = lambda: (functional.silu(q @ k.transpose(-1, -2)) / self.length * causal) @ v
        return found


def milliseconds(step: Callable[[], object], repeats: int, device: str) -> list[float]:
    """Of each call by the device's own clock, after three that do not count."""
    if device != "cuda":
        from benchmarks.loss_memory import milliseconds as by_wall

        return by_wall(step, repeats)
    for _ in range(3):
        step()
    found = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        step()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return found


def measure(shape: Shape, function: Callable[[], Tensor], repeats: int, device: str) -> dict[str, Any]:
    """TFLOP/s of both passes, medians, with every run's milliseconds."""
    with torch.no_grad():
        forward = milliseconds(function, repeats, device)
    out = function()
    ones, leaves = torch.ones_like(out), (shape.q, shape.k, shape.v)
    backward = milliseconds(lambda: torch.autograd.grad(out, leaves, ones, retain_graph=True), repeats, device)
    work = shape.pairs * WIDTH / 1e9
    return {
        "forward": round(4 * work / statistics.median(forward), 2),
        "backward": round(10 * work / statistics.median(backward), 2),
        "forward_ms": forward,
        "backward_ms": backward,
    }


def difference(shape: Shape, cases: dict[str, Callable[[], Tensor]]) -> float:
    """Largest difference between ours and the padded formula, as a share of the largest number."""
    with torch.no_grad():
        ours, padded = cases["ours"](), cases["padded"]().transpose(1, 2).flatten(0, 1)
    return float((ours - padded).abs().max() / padded.abs().max())


def figures(
    out: Path,
    device: str = "cuda",
    lengths: tuple[int, ...] = LENGTHS,
    tokens: int = TOKENS,
    repeats: int = 20,
) -> None:
    """Writes ``hstu-gpu-attention`` into ``out``; smaller sizes are for trials on a CPU."""
    found: dict[str, dict[str, Any]] = {}
    errors = {}
    for length in lengths:
        shape = Shape(length, tokens, device)
        cases = shape.cases()
        if "padded" in cases:
            errors[str(length)] = difference(shape, cases)
        found[str(length)] = {name: measure(shape, function, repeats, device) for name, function in cases.items()}
        shown = {name: (v["forward"], v["backward"]) for name, v in found[str(length)].items()}
        print(f"L {length}, TFLOP/s forward, backward: {shown}", flush=True)
    value = found[str(lengths[0])]["ours"]["forward"]
    write_result(
        claim="hstu-gpu-attention",
        value=value,
        unit=f"TFLOP/s forward at {lengths[0]} tokens, {HEADS} heads of {WIDTH}, bfloat16, causal half, median",
        target=f">= {PUBLISHED:.0f}",
        met=value >= PUBLISHED and all(error < 0.03 for error in errors.values()),
        peer="torch's softmax attention (sdpa, flex) and the padded formula on the same device",
        command="benchmarks/gpu.sh",
        runs={"by_length": found, "difference_to_padded": errors, "path": chosen_paths(device)["hstu_attention"]},
        folder=out,
    )
