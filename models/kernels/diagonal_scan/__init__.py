"""Diagonal complex scan with a step of its own for each token (S5) over packed rows: one function, several paths."""

from __future__ import annotations

from torch import Tensor

from models.kernels.paths import expect_shapes, resolve


def diagonal_scan(
    bu: Tensor,
    interval: Tensor,
    lambda_re: Tensor,
    lambda_im: Tensor,
    step_scale: Tensor,
    offsets: Tensor,
    *,
    path: str | None = None,
) -> Tensor:
    """S5's scan with zero-order hold (Smith et al. 2023, arXiv 2208.04933), each row from a zero state.

    ``step_t = interval_t step_scale``; ``A_t = exp(Lambda step_t)``; ``w_t = (A_t - 1) / Lambda`` (``step_t`` where
    ``Lambda step_t`` is 0, no cancellation near it); ``s_t = A_t s_{t-1} + w_t bu_t``. The complex numbers are kept as
    real columns, so that both products around the scan are plain GEMMs: ``bu = u @ [Re B; Im B]^T`` and
    ``Re(C s) = states @ [Re C, -Im C]^T``.

    Args:
        bu: ``[T, 2P]``, real parts in the first P columns, imaginary parts in the last P.
        interval: ``[T]``, time of each token's step, >= 0. Data, not a parameter: it gets no gradient.
        lambda_re: ``[P]``, real part of Lambda (negative).
        lambda_im: ``[P]``, imaginary part of Lambda.
        step_scale: ``[P]``, positive: exp(log_step).
        offsets: ``[U + 1]`` int64, row borders.
        path: forces an implementation by name (also the environment's ``RECPOD_KERNELS``).

    Returns:
        ``[T, 2P]`` states, laid out as ``bu``; gradients for bu, lambda_re, lambda_im and step_scale.

    Raises:
        ValueError: ``interval`` requires a gradient, or shapes do not belong together.
        KernelUnavailable: the forced path cannot run here.
    """
    if interval.requires_grad:
        raise ValueError("diagonal_scan gives no gradient for interval; detach it")
    states = lambda_re.shape
    expect_shapes("diagonal_scan", bu=(bu, (bu.shape[0], 2 * states[0])), interval=(interval, (bu.shape[0],)))
    expect_shapes("diagonal_scan", lambda_im=(lambda_im, states), step_scale=(step_scale, states))
    function = resolve("diagonal_scan", bu.device.type, path, bu.dtype)
    return function(bu, interval, lambda_re, lambda_im, step_scale, offsets)
