"""HSTU's pointwise attention over packed rows, bias and masks inside: one function, several paths."""

from __future__ import annotations

import torch
from torch import Tensor

from models.kernels.hstu_attention.bias import RelativeBias, bucket_borders, time_bucket
from models.kernels.hstu_attention.mask import AttentionMask
from models.kernels.paths import expect_shapes, resolve

__all__ = ["AttentionMask", "RelativeBias", "bucket_borders", "hstu_attention", "time_bucket"]


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    max_length: int | Tensor,
    mask: AttentionMask | Tensor,
    bias: RelativeBias | None = None,
    scale: float = 1.0,
    path: str | None = None,
) -> Tensor:
    """``(SiLU(q k^T scale + bias) / max_length, masked) v`` inside each row: no softmax, so weights need not add up.

    Source: Zhai et al. 2024, arXiv 2402.17152. ``max_length`` is a constant of the model wherever a result must not
    depend on who else is in the batch. A number that only the device knows, such as the batch's longest row, is divided
    by behind the kernel: the weights enter linearly, so all paths take it, and nobody waits for the device.

    Args:
        q: ``[T, H, D]``, tokens of all rows end to end; views of a wider projection are not copied.
        k: ``[T, H, D]``.
        v: ``[T, H, E]``.
        offsets: ``[U + 1]`` int64, row borders.
        max_length: N, what the weights are divided by; rows may be longer. As a tensor: a scalar, at least 1.
        mask: who sees whom, or its ``seen(offsets, T)`` where several layers share it.
        bias: what is added to the scores; None for nothing.
        scale: what ``q k^T`` is multiplied by: 1, or ``1 / sqrt(D)``.
        path: forces an implementation by name (also the environment's ``RECPOD_KERNELS``).

    Returns:
        ``[T, H, E]`` in the dtype of ``q``; gradients for ``q``, ``k``, ``v`` and both tables of the bias.

    Raises:
        ValueError: shapes that do not belong together, or a ``max_length`` below 1 (of a tensor nobody looks).
        KernelUnavailable: the forced path cannot run here.
    """
    tokens, bias = q.shape[0], bias or RelativeBias()
    if isinstance(max_length, Tensor):
        expect_shapes("hstu_attention", max_length=(max_length, ()))
    elif max_length < 1:
        raise ValueError(f"hstu_attention: max_length {max_length} is less than 1")
    seen = mask if isinstance(mask, Tensor) else mask.seen(offsets, tokens)
    position = q.new_empty(0) if bias.position is None else bias.position
    time = q.new_empty(0) if bias.time is None else bias.time
    times, next_times = (offsets.new_zeros(tokens) if x is None else x for x in (bias.times, bias.next_times))
    expect_shapes("hstu_attention", k=(k, tuple(q.shape)), v=(v, (*q.shape[:2], v.shape[-1])), seen=(seen, (tokens, 5)))
    expect_shapes("hstu_attention", times=(times, (tokens,)), next_times=(next_times, (tokens,)))
    expect_shapes("hstu_attention", position=(position, (position.numel(),)), time=(time, (time.numel(),)))
    function = resolve("hstu_attention", q.device.type, path, q.dtype)
    n = 1 if isinstance(max_length, Tensor) else max_length
    out = function(q, k, v, position, time, offsets, seen, times, next_times, scale=scale, max_length=n)
    return _divided(out, max_length) if isinstance(max_length, Tensor) else out


def _divided(out: Tensor, number: Tensor) -> Tensor:
    """``out / number`` in the dtype of ``out``; narrow formats are widened, for they do not hold every length."""
    wide = torch.promote_types(out.dtype, torch.float32)
    return (out.to(wide) / number.to(wide)).to(out.dtype)
