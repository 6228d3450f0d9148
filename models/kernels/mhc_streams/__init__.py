"""Hyper-connections around one sub-layer: reading its input out of n residual streams and writing its output back.

Source: Xie et al. 2025, "mHC: Manifold-Constrained Hyper-Connections", arXiv 2512.24880.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.kernels.mhc_streams.vectorised import Norm
from models.kernels.paths import KernelPath, expect_shapes, forced_path, select

__all__ = ["Norm", "mhc_read", "mhc_write"]


def mhc_read(
    streams: Tensor, projection: Tensor, gate: Tensor, bias: Tensor, *, iterations: int, path: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The sub-layer's input ``H_pre X`` and the routes of every token.

    With ``x~ = RMSNorm(vec X)``: ``H_pre = sigmoid(a_pre x~ W_pre + b_pre)``, ``H_post = 2 sigmoid(a_post x~ W_post +
    b_post)``, ``H_res = SinkhornKnopp(exp(a_res mat(x~ W_res) + b_res))``, rows first.

    Args:
        streams: ``X``, ``[T, n, C]``.
        projection: ``W_pre``, ``W_post`` and ``W_res`` one under another, ``[2n + n^2, n C]``.
        gate: ``a_pre``, ``a_post``, ``a_res``, ``[3]``.
        bias: ``[2n + n^2]``.
        iterations: rounds of Sinkhorn and Knopp.
        path: forces an implementation by name (also the environment's ``RECPOD_KERNELS``).

    Returns:
        The input ``[T, C]``; the routes ``[T, 2n + n^2]``: H_pre, H_post and H_res row by row; and the streams again,
        for :func:`mhc_write`: what it sends back to them meets the other gradients in one pass.

    Raises:
        ValueError: shapes that do not belong together.
        KernelUnavailable: the forced path cannot run here.
    """
    n, width = streams.shape[1:]
    routes = 2 * n + n * n
    expect_shapes(
        "mhc_streams", projection=(projection, (routes, n * width)), bias=(bias, (routes,)), gate=(gate, (3,))
    )
    chosen = _chosen(streams, path)
    inputs, back = _in_dtype_of(chosen, streams, projection, gate, bias)
    read, found, held = _function(chosen, "mhc_read")(*inputs, iterations)
    return read.to(back), found.to(back), held.to(back)


def mhc_write(
    streams: Tensor, routes: Tensor, output: Tensor, *, norm: Norm | None = None, path: str | None = None
) -> Tensor:
    """``H_res X + H_post^T F``.

    Args:
        streams: ``X``, ``[T, n, C]``, as :func:`mhc_read` has returned it.
        routes: ``[T, 2n + n^2]``, of :func:`mhc_read`.
        output: ``F``, the sub-layer's output, ``[T, C]``.
        norm: weight and bias ``[C]`` and epsilon of a LayerNorm over every stream of the result, or None.
        path: as for :func:`mhc_read`.

    Returns:
        ``[T, n, C]``.

    Raises:
        ValueError: shapes that do not belong together.
        KernelUnavailable: the forced path cannot run here.
    """
    tokens, n, width = streams.shape
    expect_shapes("mhc_streams", routes=(routes, (tokens, 2 * n + n * n)), output=(output, (tokens, width)))
    chosen = _chosen(streams, path)
    weight, bias, eps = norm or (None, None, 0.0)
    (x, routes, output), back = _in_dtype_of(chosen, streams, routes, output)
    if weight is not None and bias is not None:
        norm = weight.to(x.dtype), bias.to(x.dtype), eps
    written: Tensor = _function(chosen, "mhc_write")(x, routes, output, norm)
    return written.to(back)


def _chosen(streams: Tensor, path: str | None) -> KernelPath:
    chosen = select("mhc_streams", streams.device.type, path)
    if (
        streams.dtype == torch.float64
        and torch.float64 not in chosen.dtypes
        and forced_path("mhc_streams", path) is None
    ):
        return select("mhc_streams", streams.device.type, "torch")
    return chosen


def _in_dtype_of(path: KernelPath, first: Tensor, *rest: Tensor) -> tuple[tuple[Tensor, ...], torch.dtype]:
    """Compiled code computes in one dtype; the others take what comes, as autocast has it."""
    if first.dtype in path.dtypes and len(path.dtypes) > 1:
        return (first, *rest), first.dtype
    return tuple(x.to(path.dtypes[0]) for x in (first, *rest)), first.dtype


def _function(path: KernelPath, stem: str) -> Callable[..., Any]:
    module = importlib.import_module(f"models.kernels.{path.module}")
    function: Callable[..., Any] = getattr(module, f"{stem}_{path.name}")
    return function
