"""Causal softmax attention within packed rows, dropout on its weights inside: one function, several paths."""

from __future__ import annotations

from torch import Tensor

from models.kernels.paths import expect_shapes, resolve


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    dropout: float = 0.0,
    longest: int | None = None,
    path: str | None = None,
) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v`` in which a token sees itself and the older tokens of its own row.

    Rows are never padded to a common length: the compiled path and the varlen kernel work on packed tokens, the others
    on rectangles of rows of nearly equal length. Equal states of torch's generators give equal dropout on one path.

    Args:
        q: ``[T, H, d]``, tokens of all rows end to end; views of a wider projection are not copied.
        k: ``[T, H, d]``.
        v: ``[T, H, d]``.
        offsets: ``[U + 1]`` int64, row borders.
        dropout: share of attention weights set to 0 (the others grow by 1 / (1 - dropout)); 0 in evaluation.
        longest: tokens of the longest row, or a bound of them. Where it is given, no path of a GPU asks the device for
            anything: what is done depends on shapes alone.
        path: forces an implementation by name (also the environment's ``RECPOD_KERNELS``).

    Returns:
        ``[T, H, d]`` in the dtype of ``q``; gradients for ``q``, ``k``, ``v``.

    Raises:
        ValueError: shapes that do not belong together, or a dropout outside [0, 1).
        KernelUnavailable: the forced path cannot run here.
    """
    expect_shapes("packed_attention", k=(k, tuple(q.shape)), v=(v, tuple(q.shape)))
    if not 0 <= dropout < 1:
        raise ValueError(f"packed_attention: dropout {dropout} is not in [0, 1)")
    function = resolve("packed_attention", q.device.type, path, q.dtype)
    return function(q, k, v, offsets, dropout=dropout, longest=longest)
