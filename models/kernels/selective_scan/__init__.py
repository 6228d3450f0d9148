"""Selective scan (Mamba-1, S6) over packed rows, softplus and SiLU gate inside: one function, several paths."""

from __future__ import annotations

from torch import Tensor

from models.kernels.paths import expect_shapes, resolve


def selective_scan(
    x: Tensor,
    dt: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    z: Tensor,
    offsets: Tensor,
    *,
    path: str | None = None,
) -> Tensor:
    """Mamba-1's scan (Gu and Dao 2023, arXiv 2312.00752, algorithm 2), each row from a zero state.

    ``delta_t = softplus(dt_t + dt_bias)``; ``h_t = exp(delta_t a) h_{t-1} + (delta_t x_t) b_t^T``;
    ``y_t = (h_t c_t + skip x_t) SiLU(z_t)``. Softplus, bias and gate are inside because they are memory passes
    of their own outside, which cost more than the arithmetic.

    Args:
        x: ``[T, D]``, tokens of all rows end to end, after the convolution.
        dt: ``[T, D]``, step size before bias and softplus.
        dt_bias: ``[D]``.
        a: ``[D, N]``, negative.
        b: ``[T, N]``, input projection of each token.
        c: ``[T, N]``, output projection of each token.
        skip: ``[D]``.
        z: ``[T, D]``, gate before its SiLU.
        offsets: ``[U + 1]`` int64, row borders; row ``u`` is ``x[offsets[u]:offsets[u + 1]]``.
        path: forces an implementation by name (also the environment's ``RECPOD_KERNELS``).

    Returns:
        ``[T, D]`` in the dtype of ``x``; gradients for every tensor but ``offsets``.

    Raises:
        ValueError: shapes that do not belong together.
        KernelUnavailable: the forced path cannot run here.
    """
    tokens, channels = x.shape
    wide, narrow = (tokens, channels), (tokens, a.shape[1])
    expect_shapes("selective_scan", dt=(dt, wide), z=(z, wide), b=(b, narrow), c=(c, narrow))
    expect_shapes("selective_scan", dt_bias=(dt_bias, wide[1:]), skip=(skip, wide[1:]), a=(a, (channels, narrow[1])))
    function = resolve("selective_scan", x.device.type, path, x.dtype)
    return function(x, dt, dt_bias, a, b, c, skip, z, offsets)
