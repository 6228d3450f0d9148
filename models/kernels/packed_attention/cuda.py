"""Packed attention on a GPU in one call for all rows: the varlen kernel of torch.nn.attention (half types, no dropout).

What it does not take (float32, dropout on attention weights, heads whose width is no multiple of 8) goes to the
rectangles of ``vectorised``, in the dtype it came in.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from models.kernels.packed_attention.vectorised import packed_attention_torch

_HALF = (torch.bfloat16, torch.float16)
_TOLERANCE = 0.03  # of numbers around 1 in bfloat16


def packed_attention_varlen(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, dropout: float = 0.0, longest: int | None = None
) -> Tensor:
    """Arguments as in :func:`models.kernels.packed_attention.packed_attention`."""
    if q.dtype not in _HALF or dropout > 0 or q.shape[-1] % 8 or not varlen_agrees(q.dtype, str(q.device)):
        return packed_attention_torch(q, k, v, offsets, dropout, longest)
    return _varlen(q, k, v, offsets, longest)


def _varlen(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int | None = None) -> Tensor:
    borders = offsets.to(torch.int32)
    if longest is None:
        longest = int(offsets.diff().max())
    found = varlen_attn(q, k, v, borders, borders, longest, longest, window_size=(-1, 0))
    assert isinstance(found, Tensor)
    return found


@cache
def varlen_agrees(dtype: torch.dtype, device: str) -> bool:
    """Whether the kernel gives the rectangles' numbers, gradients too, in this dtype; asked once a process."""
    random = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 37, 38, 44, 77], device=device)
    narrow = torch.randn(3, 77, 2, 32, generator=random).to(device, dtype).requires_grad_()
    wide = narrow.detach().float().requires_grad_()
    try:
        narrow_out = _varlen(narrow[0], narrow[1], narrow[2], offsets)
        wide_out = packed_attention_torch(wide[0], wide[1], wide[2], offsets)
        found = [narrow_out, *torch.autograd.grad(narrow_out.float().sum(), narrow)]
        expected = [wide_out, *torch.autograd.grad(wide_out.sum(), wide)]
    except (RuntimeError, TypeError) as failure:  # TypeError: an older torch, whose kernel knows no window
        warnings.warn(f"packed_attention: the varlen kernel fails and is not used: {failure}", stacklevel=2)
        return False
    error = max(float((one.float() - other).abs().max()) for one, other in zip(found, expected, strict=True))
    if not error <= _TOLERANCE:
        warnings.warn(f"packed_attention: the varlen kernel is off by {error:.1e} and is not used", stacklevel=2)
    return error <= _TOLERANCE
