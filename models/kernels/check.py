"""Every implementation that runs here against the reference, forward and backward, on a small jagged case."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.kernels.hstu_attention.mask import AttentionMask
from models.kernels.paths import PATHS, KernelPath, load, missing, select, takes

TOLERANCE = 1e-4  # largest difference, as a share of the largest number of the same output or gradient
_LENGTHS = (37, 1, 6, 2, 33)  # one token, less than the taps, more than a chunk of 32


@dataclass(frozen=True)
class KernelCheck:
    """What became of one implementation.

    Attributes:
        op: operation.
        path: name of the implementation.
        available: whether it can run here.
        passed: whether value and all gradients agree with the reference; None where it cannot run.
        max_error: largest difference found, relative to the largest number of the same tensor.
        seconds: what the check took, compiling included.
        reason: why it is not available or did not pass; empty otherwise.
        device: where it ran.
    """

    op: str
    path: str
    available: bool
    passed: bool | None
    max_error: float | None
    seconds: float
    reason: str
    device: str = "cpu"


def example(op: str, lengths: Sequence[int], width: int = 16, states: int = 4, seed: int = 0) -> list[Tensor]:
    """Random inputs of ``op`` on the CPU, float32, in the order of its arguments, offsets last.

    Args:
        op: a name in :data:`models.kernels.paths.PATHS`.
        lengths: tokens of each row.
        width: channels D (P for the diagonal scan, those of a head for attention).
        states: N, or the taps of the convolution, or the heads of attention.
        seed: of the random numbers.
    """
    random = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    tokens = int(offsets[-1])

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    if op == "packed_attention":
        return [*(normal(tokens, states, width) for _ in range(3)), offsets]
    if op == "hstu_attention":
        return _hstu_example(lengths, width, states, random)
    if op == "interval_attention":
        of_pairs = normal(40, states, width), normal(40, states, width)
        gaps = torch.randint(0, 9, (tokens,), generator=random) ** 5
        return [*(normal(tokens, states, width) for _ in range(3)), *of_pairs, gaps.cumsum(0), offsets]
    if op == "mhc_streams":
        routes = 2 * states + states * states
        projection, gate = normal(routes, states * width) / math.sqrt(states * width), normal(3)
        of_sub_layer = normal(tokens, width), 1 + 0.1 * normal(width), normal(width)
        return [normal(tokens, states, width), projection, gate, normal(routes), *of_sub_layer]
    if op == "causal_conv":
        return [normal(tokens, width), normal(width, states), normal(width), offsets]
    if op == "diagonal_scan":
        interval = (torch.rand(tokens, generator=random) * 4 - 1).clamp_min(0)  # a quarter of them zero
        poles = -0.5 - normal(width).abs(), 10 * normal(width)
        return [normal(tokens, 2 * width), interval, *poles, 0.1 * normal(width).exp(), offsets]
    x, dt, b, c, z = (normal(tokens, columns) for columns in (width, width, states, states, width))
    a = -normal(width, states).exp()
    return [x, dt - 1, normal(width), a, b, c, normal(width), z, offsets]


def _hstu_example(lengths: Sequence[int], width: int, heads: int, random: torch.Generator) -> list[Tensor]:
    """Every mask at once, a position table shorter than the longest row, times that never decrease inside a row."""
    sizes = torch.tensor(lengths)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    tokens = int(offsets[-1])
    q, k, v = (torch.randn(tokens, heads, width, generator=random) for _ in range(3))
    position, time = torch.randn(2 * 29 - 1, generator=random), torch.randn(64, generator=random)
    seen = AttentionMask(num_context=sizes // 7, num_candidates=sizes // 4, target_group_size=2).seen(offsets, tokens)
    gaps = torch.randint(0, 9, (tokens,), generator=random) ** 5
    times = gaps.cumsum(0)
    return [q, k, v, position, time, offsets, seen, times, times + gaps.roll(-1)]


def value_and_gradients(op: str, path: KernelPath, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output for ``inputs``, then the gradients of a fixed weighted sum of it."""
    leaves = [v.detach().clone().requires_grad_(v.is_floating_point()) for v in inputs]
    if op == "diagonal_scan":
        leaves[1].requires_grad_(False)  # interval
    out = load(path)(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    weights = weights.to(torch.bfloat16).to(out.dtype)  # the same in every format: sums of them that cancel say so
    grads = torch.autograd.grad((out * weights).sum(), [leaf for leaf in leaves if leaf.requires_grad])
    return [out.detach(), *grads]


def largest_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference between two lists of tensors, relative to the largest number of each expected tensor."""
    errors = []
    for one, other in zip(found, expected, strict=True):
        scale = other.abs().max().clamp_min(1e-30)
        errors.append(((one.to(other.dtype).to(other.device) - other).abs().max() / scale).nan_to_num(torch.inf).item())
    return max(errors)


def check_path(op: str, path: KernelPath, device: str) -> KernelCheck:
    """Compares ``path`` in float32 with the reference in float64."""
    begin = time.perf_counter()
    reason = missing(path, device)
    if reason:
        return KernelCheck(op, path.name, False, None, None, time.perf_counter() - begin, reason, device)
    inputs = example(op, _LENGTHS)
    reference = PATHS[op][-1]
    expected = value_and_gradients(op, reference, [v.double() if v.is_floating_point() else v for v in inputs])
    try:
        error = largest_error(value_and_gradients(op, path, [v.to(device) for v in inputs]), expected)
    except Exception as failure:  # compilers and CUDA raise what they like; the verdict carries it, nothing is hidden
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
        return KernelCheck(op, path.name, True, False, None, time.perf_counter() - begin, reason, device)
    passed = error <= TOLERANCE
    reason = "" if passed else f"differs from the reference by {error:.1e}, allowed {TOLERANCE:.0e}"
    return KernelCheck(op, path.name, True, passed, error, time.perf_counter() - begin, reason, device)


def self_check() -> list[KernelCheck]:
    """Checks every path on every device type that it takes and this machine has; one line each, best path first."""
    here = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
    return [
        check_path(op, path, device)
        for op, paths in PATHS.items()
        for path in paths[:-1]  # the last one is the reference itself
        for device in [device for device in here if takes(path, device)] or here[:1]
    ]


def chosen_paths(device: str = "cpu") -> dict[str, str]:
    """The path that each operation takes for tensors on ``device``."""
    return {op: select(op, device).name for op in PATHS}
