"""Dropout that a CPU can afford: torch draws a Bernoulli number for each place, which takes longer than the layer.

Where numba is installed, one compiled pass hashes a seed and the place (2.0 to 0.2 ms for 13,700 x 64 numbers on one
core) and the backward pass hashes again; elsewhere sixteen random bits a number are drawn and kept.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.kernels.packed_attention.dropout import draw_seed
from models.kernels.paths import KernelPath, forced_path, missing

_COMPILED = KernelPath("numba", "packed_attention.cpu_dropout", "drop", ("cpu",), ("numba",))


@cache
def _numba_is_missing() -> bool:
    return missing(_COMPILED, "cpu") is not None


class _HashedDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        from models.kernels.packed_attention.cpu_dropout import drop

        ctx.seed, ctx.share = draw_seed(), share
        return drop(x, ctx.seed, share)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        from models.kernels.packed_attention.cpu_dropout import drop

        return drop(grad, ctx.seed, ctx.share), None


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        keep = keep_mask(x.shape, share).to(x.dtype)
        ctx.scale = 1.0 / (1.0 - share)
        ctx.save_for_backward(keep)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad * ctx.saved_tensors[0]).mul_(ctx.scale), None


def keep_mask(shape: torch.Size, share: float) -> Tensor:
    """Which numbers of a CPU tensor survive, bool, from torch's generator; ``share`` is kept to within 1e-5."""
    count = shape.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[:count].view(shape)  # -32768 .. 32767
    return bits >= round(share * 2**16) - 2**15


class Dropout(nn.Dropout):
    """``nn.Dropout``, faster on a CPU; ``RECPOD_KERNELS=dropout=torch`` forces the way without numba."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` of any shape; in evaluation mode itself."""
        if x.device.type != "cpu" or not self.training or self.p == 0 or torch.compiler.is_compiling():
            return super().forward(x)  # torch.compile knows this one and fuses it with what is around it
        compiled = x.dtype == torch.float32 and forced_path("dropout", None) in (None, "numba")
        function = _HashedDropout if compiled and not _numba_is_missing() else _Dropout
        return function.apply(x, self.p)  # type: ignore[no-untyped-call]
