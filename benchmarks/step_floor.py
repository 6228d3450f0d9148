"""The least a training step can cost: what it must compute and move, at the speeds this machine shows elsewhere.

Counted: the matrix products of the layers and of the loss (forward, and twice that backward), the elementwise
arithmetic of scans, convolution and the loss' softmax, and the bytes of activations between operations. That work is
counted in vector instructions per element; a product of float32 matrices shows how many the machine issues (one fused
multiply-add is 2 FLOP). Not counted: norms, dropout, softplus, SiLU, embedding, optimiser, batch, Python.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from models.losses.gradients import cpu_multiplies_bfloat16
from models.sasrec import SASRecOptions
from models.ss4rec import SS4RecOptions

EXPONENTIAL = 9  # round, two steps of range reduction, a polynomial of degree 5, scale
# Selective scan, each of [tokens, E, N]. Forward: step x pole, exponential, state (2), output. Backward: exponential
# and state again (keeping them would take a tensor of that size), gradients of C, B, x, step, pole, state (9).
SELECTIVE = (1 + EXPONENTIAL + 3) + (1 + EXPONENTIAL + 2 + 9)
# Diagonal scan, each of [tokens, P], complex. Forward: exponential, sine, cosine, drive, state (8). Backward: likewise.
DIAGONAL = 2 * (3 * EXPONENTIAL + 8) + 8
SOFTMAX = EXPONENTIAL + 2  # each of [targets, items]: exponential, sum, gradient
# Attention weights, each a pair of a query and a key it sees, by head. Forward: maximum, exponential, sum. Backward:
# the same again (nothing is kept), divide, product with the gradient and its sum, gradient of the score.
WEIGHTS = (EXPONENTIAL + 2) + (EXPONENTIAL + 2 + 4)


@dataclass(frozen=True)
class StepWork:
    """What one step must do.

    Attributes:
        layer_gemm_flop: products of the layers, float32.
        loss_gemm_flop: products of the loss, in the loss' own dtype.
        scan_instructions: of scans, convolutions and attention weights, counted for single elements.
        softmax_instructions: of the loss beside its products.
        bytes: activations between operations, written once and read once, forward and backward.
    """

    layer_gemm_flop: float
    loss_gemm_flop: float
    scan_instructions: float
    softmax_instructions: float
    bytes: float


def step_work(options: SS4RecOptions, num_items: int, targets: int) -> StepWork:
    """The work of one step over ``targets`` tokens with a target each."""
    h, p, n, taps = options.hidden, options.s5_state, options.d_state, options.d_conv
    e, rank = options.expand * h, math.ceil(h / 16)
    s5, mamba = options.layers * options.use_s5, options.layers * options.use_mamba
    products = s5 * (h * 2 * p + 2 * p * h) + mamba * (h * 2 * e + e * (rank + 2 * n) + rank * e + e * h)
    scans = s5 * p * DIAGONAL + mamba * (e * n * SELECTIVE + 3 * e * taps)
    # s5: B u, states, C states, skip, norm; mamba: in_proj, convolution, x_proj, step, scan, out_proj, norm
    widths = s5 * (4 * p + 3 * h) + mamba * (2 * e + e + (rank + 2 * n) + e + e + 2 * h)
    return StepWork(
        layer_gemm_flop=3.0 * 2 * products * targets,
        loss_gemm_flop=3.0 * 2 * h * num_items * targets,
        scan_instructions=float(scans * targets),
        softmax_instructions=float(SOFTMAX * num_items * targets),
        bytes=4.0 * widths * targets * 5,  # forward: write, read; backward: read again, write and read its gradient
    )


def attention_step_work(options: SASRecOptions, num_items: int, targets: int, pairs: float) -> StepWork:
    """The work of one step of SASRec over ``targets`` tokens.

    Args:
        options: sizes.
        num_items: items of the catalogue, all of which the loss reads.
        targets: tokens of a batch.
        pairs: of a token and one that it sees in its row, itself included.
    """
    d, inner, blocks = options.hidden, options.inner, options.blocks
    products = blocks * (4 * d * d + 2 * d * inner) * targets
    # q k and weights v forward; backward the scores again and four products: gradients of weights, v, q and k
    attended = blocks * pairs * d * 7
    # attention: q, k, v, mixed, projected, norm; feed-forward: inner, activation, output, norm
    widths = blocks * (6 * d + 2 * inner + 2 * d)
    return StepWork(
        layer_gemm_flop=3.0 * 2 * products + 2.0 * attended,
        loss_gemm_flop=3.0 * 2 * d * num_items * targets,
        scan_instructions=float(blocks * options.heads * pairs * WEIGHTS),
        softmax_instructions=float(SOFTMAX * num_items * targets),
        bytes=4.0 * widths * targets * 5,
    )


def best_rate(call: Callable[[], object], work: float, runs: int) -> float:
    """``work`` a second in the fastest of ``runs`` calls."""
    call()
    fastest = math.inf
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - begin)
    return work / fastest


def machine_speeds(size: int = 2048, runs: int = 8) -> dict[str, float]:
    """What this machine reaches with torch's threads: FLOP/s of square products, bytes/s read and written by a copy."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    a16, b16 = a.bfloat16(), b.bfloat16()
    source = torch.rand(1 << 24)
    target = torch.empty_like(source)
    flop = 2.0 * size**3
    float32 = best_rate(lambda: a @ b, flop, runs)
    return {
        "float32_flop_per_s": float32,
        "loss_flop_per_s": best_rate(lambda: a16 @ b16, flop, runs) if cpu_multiplies_bfloat16() else float32,
        "bytes_per_s": best_rate(lambda: target.copy_(source), 2.0 * source.nbytes, runs),
    }


def floor(work: StepWork, speeds: dict[str, float], measured_seconds: float) -> dict[str, Any]:
    """The floor of a step beside its measured time.

    ``seconds`` is the sum of the computing parts: they share the same units and cannot overlap. Bytes can be moved
    meanwhile; their time is given apart. ``ratio`` is measured over floor.
    """
    instructions = speeds["float32_flop_per_s"] / 2
    parts = {
        "layer_gemm": work.layer_gemm_flop / speeds["float32_flop_per_s"],
        "loss_gemm": work.loss_gemm_flop / speeds["loss_flop_per_s"],
        "scans": work.scan_instructions / instructions,
        "softmax": work.softmax_instructions / instructions,
    }
    least = sum(parts.values())
    return {
        "work": asdict(work),
        "speeds": speeds,
        "seconds_of_parts": parts,
        "seconds_moving_bytes": work.bytes / speeds["bytes_per_s"],
        "seconds": least,
        "measured_seconds": measured_seconds,
        "ratio": measured_seconds / least,
    }


def floor_line(found: dict[str, Any]) -> str:
    """The floor in words."""
    parts = ", ".join(
        f"{name.replace('_', ' ')} {1e3 * value:.1f}" for name, value in found["seconds_of_parts"].items()
    )
    return (
        f"floor of a step: {1e3 * found['seconds']:.1f} ms ({parts}; moving activations "
        f"{1e3 * found['seconds_moving_bytes']:.1f} beside it); measured {1e3 * found['measured_seconds']:.1f} ms, "
        f"{found['ratio']:.2f} times the floor"
    )
