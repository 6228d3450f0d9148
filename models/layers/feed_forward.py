"""The point-wise feed-forward layer of the attention models."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from models.layers.dropout import Dropout

Activation = Literal["relu", "gelu", "silu", "swiglu"]


class FeedForward(nn.Module):
    """``W2 act(W1 x + b1) + b2`` with dropout after both; ``swiglu``: ``W2 (silu(W1 x + b1) * (W3 x + b3)) + b2``.

    Args:
        width: features in and out.
        inner: features between.
        activation: ``relu`` (the paper's), ``gelu``, ``silu`` or ``swiglu``.
        dropout: share dropped after the activation and after the output.
    """

    def __init__(self, width: int, inner: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.activation = activation
        self.inward = nn.Linear(width, inner)
        self.gate = nn.Linear(width, inner) if activation == "swiglu" else None
        self.outward = nn.Linear(inner, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[..., width]`` to the same shape."""
        if self.gate is not None:
            hidden = functional.silu(self.inward(x)) * self.gate(x)
        else:
            hidden = getattr(functional, self.activation)(self.inward(x))
        return self.dropout(self.outward(self.dropout(hidden)))
