"""The shape every loss here has: the gradient is computed together with the value, chunk by chunk.

A plain loss leaves ``[M, items]`` logits behind for its backward. The losses of this package compute both gradients
while a chunk of logits is still warm, keep only ``[M, D]`` and ``[items + 1, D]``, and let the backward scale them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bfloat16")

# Logits held at a time. CPU: 3M in bf16 is 6 MB, which stays in the last-level cache (768 tokens x 3,707 items measured
# fastest). GPU: 64M keeps the number of launches small and still is only 128 MB.
_LOGITS_AT_A_TIME = {"cpu": 3 << 20, "cuda": 64 << 20}
_TOKENS_AT_LEAST, _TOKENS_AT_MOST = 128, 4096
_ROW_STEP = 128


@dataclass(frozen=True)
class LossAndGradients:
    """What one loss computed in its forward.

    Attributes:
        loss: sum over tokens, float32 scalar (float64 for float64 states).
        states: gradient of the sum, ``[M, D]`` in the dtype of the states; None where not asked for.
        table: gradient of the sum, ``[num_items + 1, D]`` in the dtype of the table; None where not asked for.
    """

    loss: Tensor
    states: Tensor | None
    table: Tensor | None


@dataclass(frozen=True)
class Wanted:
    """Which gradients a loss has to compute; none of them in validation."""

    states: bool
    table: bool

    @property
    def any(self) -> bool:
        """Whether a gradient is asked for at all."""
        return self.states or self.table


class _GradientInForward(torch.autograd.Function):
    """Holds the gradients computed in the forward until the backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, table: Tensor, compute: Callable[[Wanted], LossAndGradients], wanted: Wanted
    ) -> Tensor:
        result = compute(wanted)
        ctx.gradients = (result.states, result.table)
        return result.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("this loss can be differentiated once: compute it again for a second backward")
        states, table = ctx.gradients
        # In place: a scaled copy would be a second [num_items + 1, D], the very thing these losses avoid.
        ctx.gradients = None
        scaled = [None if gradient is None else gradient.mul_(grad_output) for gradient in (states, table)]
        return scaled[0], scaled[1], None, None


def with_gradients(states: Tensor, table: Tensor, compute: Callable[[Wanted], LossAndGradients]) -> Tensor:
    """Runs ``compute`` outside of autograd and autocast and makes its result differentiable.

    Args:
        states: ``[M, D]``.
        table: ``[num_items + 1, D]``.
        compute: gives the loss and the gradients asked for; must choose its own dtypes.

    Returns:
        The sum over tokens, scalar.
    """
    enabled = torch.is_grad_enabled()
    wanted = Wanted(enabled and states.requires_grad, enabled and table.requires_grad)
    with torch.autocast(states.device.type, enabled=False):
        if wanted.any:
            return _GradientInForward.apply(states, table, compute, wanted)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            return compute(wanted).loss


def compute_dtype(states: Tensor, precision: Precision) -> torch.dtype:
    """The dtype of the matrix products; sums, exponentials' sums and gradients are kept in float32 or wider.

    Args:
        states: ``[M, D]``.
        precision: "float32" casts nothing but half types (float64 stays float64); "bfloat16" always rounds; "auto"
            rounds half types, and float32 on a CPU that multiplies bfloat16 in hardware and on a GPU under autocast.

    Raises:
        ValueError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "bfloat16":
        return torch.bfloat16
    if states.dtype == torch.float64:
        return torch.float64
    if precision == "float32":
        return torch.float32
    if states.dtype == torch.bfloat16:
        return torch.bfloat16
    if states.device.type == "cuda":
        return torch.bfloat16 if torch.is_autocast_enabled("cuda") else torch.float32
    return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32


def wide_dtype(states: Tensor) -> torch.dtype:
    """The dtype of sums: float64 for float64 states, else float32."""
    return torch.float64 if states.dtype == torch.float64 else torch.float32


@lru_cache(maxsize=1)
def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has bfloat16 dot products (avx512_bf16, amx_bf16, Arm bf16) and torch is built to use them.

    Read from the kernel's list of CPU features, not timed: the same machine must always give the same numbers.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux: float32 is right everywhere
        return False
    features = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(features)


def tokens_at_a_time(candidates: int, device: torch.device, chunk: int | None) -> int:
    """Tokens in one chunk of logits.

    Args:
        candidates: items that each token is scored against.
        device: where the logits lie.
        chunk: the user's own choice; None for one that fits the cache and never falls under 128 tokens.
    """
    if chunk is not None:
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1 token, not {chunk}")
        return chunk
    budget = _LOGITS_AT_A_TIME.get(device.type, _LOGITS_AT_A_TIME["cuda"])
    fitting = budget // max(candidates, 1) // 128 * 128
    return min(max(fitting, _TOKENS_AT_LEAST), _TOKENS_AT_MOST)


def counted_rows(values: Tensor, counted: Tensor | None, rows: slice) -> Tensor:
    """``values`` ``[C, 1 or k]`` of the tokens ``rows``, zero for those that ``counted`` ``[M]`` leaves out."""
    return values if counted is None else values.masked_fill(~counted[rows, None], 0.0)


def product_rows(tokens: int, size: int) -> int:
    """Rows of a matrix product over ``tokens`` rows of a chunk of at most ``size``: rounded up, the rest is zero.

    oneDNN compiles and keeps a kernel for every new number of rows: batches of ever new lengths cost a compilation each
    (and 3 GB of kernels after 1,400 steps, measured). Steps of 128 rows leave a handful of shapes.
    """
    return min(-(-tokens // _ROW_STEP) * _ROW_STEP, size)


def pad_rows(rows: Tensor, count: int) -> Tensor:
    """``rows`` ``[n, D]`` with zero rows behind, ``[count, D]``."""
    return rows if rows.shape[0] == count else torch.nn.functional.pad(rows, (0, 0, 0, count - rows.shape[0]))
