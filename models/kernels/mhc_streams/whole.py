"""Reading and writing as one function of one output: what the self-check compares between implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ROUNDS = 20  # of Sinkhorn and Knopp, as published


def read_and_write(
    read: Callable[..., Any],
    write: Callable[..., Any],
    streams: Tensor,
    projection: Tensor,
    gate: Tensor,
    bias: Tensor,
    output: Tensor,
    weight: Tensor,
    shift: Tensor,
) -> Tensor:
    """Written streams, the squares of the same behind a LayerNorm, and what was read: ``[T, 2n + 1, C]``.

    Squares, because the check weighs tokens from -1 to 1: in the gradient of the LayerNorm's bias these would cancel.
    """
    x, routes, held = read(streams, projection, gate, bias, ROUNDS)
    written = write(held, routes, output, None), write(held, routes, output, (weight, shift, 1e-8))
    return torch.cat([written[0], written[1].square(), x[:, None]], 1)
