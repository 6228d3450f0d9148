"""Causal depthwise convolution with SiLU over packed rows: one function, several paths."""

from __future__ import annotations

from torch import Tensor

from models.kernels.paths import expect_shapes, resolve


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, *, path: str | None = None) -> Tensor:
    """``y_t = SiLU(bias + sum_k weight[:, k] x_{t - K + 1 + k})``, with zeros before each row.

    Args:
        x: ``[T, D]``, tokens of all rows end to end.
        weight: ``[D, K]``; the last tap meets the token itself.
        bias: ``[D]``.
        offsets: ``[U + 1]`` int64, row borders.
        path: forces an implementation by name (also the environment's ``RECPOD_KERNELS``).

    Returns:
        ``[T, D]``; gradients for x, weight and bias.

    Raises:
        ValueError: shapes that do not belong together.
        KernelUnavailable: the forced path cannot run here.
    """
    channels = x.shape[1]
    expect_shapes("causal_conv", weight=(weight, (channels, weight.shape[1])), bias=(bias, (channels,)))
    function = resolve("causal_conv", x.device.type, path, x.dtype)
    return function(x, weight, bias, offsets)
