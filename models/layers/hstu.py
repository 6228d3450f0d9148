"""The HSTU block: projection, pointwise attention and gate in one residual layer over packed rows.

Source: Zhai et al. 2024, "Actions Speak Louder than Words", arXiv 2402.17152. With x the input of a token:

    U, V, Q, K = SiLU(LN(x) W + b)
    A = SiLU(Q K^T [/ sqrt(d)] [+ bias of distance and time]) / N, masked
    out = W_o Drop(LN(A V) * U) + b_o + x

Two variants are published. The authors': scores without ``1 / sqrt(d)``, norms without learned gain and shift, and a
relative bias. The other: with ``1 / sqrt(d)``, learned norms and no bias. Every part is an option of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.kernels.hstu_attention import AttentionMask, hstu_attention
from models.layers.dropout import Dropout
from models.layers.recompute import Recomputed
from models.layers.relative_bias import BiasKind, RelativeBiasTables


@dataclass(frozen=True)
class HSTUBlockOptions:
    """Sizes and variant of a block."""

    width: int
    """D, of the states."""
    heads: int
    """H."""
    attention_dim: int
    """Width of a query and a key, per head."""
    linear_dim: int
    """Width of a value and of its gate, per head."""
    dropout: float = 0.2
    """Before the output projection."""
    norm_eps: float = 1e-6
    """Of both norms."""
    norm_affine: bool = False
    """Whether both norms have a learned gain and shift."""
    scale_by_dim: bool = False
    """Divide scores by sqrt(attention_dim)."""
    relative_bias: BiasKind = "position_time"
    """``none``, ``position`` or ``position_time``."""
    max_length: int = 200
    """N, what attention weights are divided by, and the longest row that the position table tells apart."""
    time_buckets: int = 128
    """Of the time table."""
    recompute_norm: bool = False
    """Compute the input norm again in the backward pass instead of keeping it."""
    recompute_silu: bool = False
    """Compute SiLU of the projection again in the backward pass instead of keeping it."""

    def __post_init__(self) -> None:
        for key in ("width", "heads", "attention_dim", "linear_dim", "max_length", "time_buckets"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} is less than 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not in [0, 1)")
        if self.relative_bias not in get_args(BiasKind):
            raise ValueError(f"relative_bias: '{self.relative_bias}' is not one of {', '.join(get_args(BiasKind))}")

    @property
    def head_width(self) -> int:
        """What the input projection makes for each head: gate and value, query and key, in this order."""
        return 2 * self.linear_dim + 2 * self.attention_dim


@dataclass(frozen=True, eq=False)
class HSTULayout:
    """What all layers of a step share about the rows.

    Attributes:
        offsets: ``[U + 1]`` int64, row borders.
        mask: who sees whom.
        timestamps: ``[T]`` int64 seconds; needed for a bias by time.
        next_times: ``[T]`` int64 seconds, what each token measures from; needed for a bias by time.
        max_length: what attention weights are divided by instead of the options' N, see :func:`attention_divisor`; None
            takes that.
        tokens: T, where the host knows it: a GPU's would have to be waited for.
    """

    offsets: Tensor
    mask: AttentionMask = field(default_factory=AttentionMask)
    timestamps: Tensor | None = None
    next_times: Tensor | None = None
    max_length: int | Tensor | None = None
    tokens: int | None = None

    @cached_property
    def seen(self) -> Tensor:
        """The mask's numbers, ``[T, 5]`` int32, made once for all layers."""
        return self.mask.seen(self.offsets, int(self.offsets[-1]) if self.tokens is None else self.tokens)


LONGEST_ROW = -1
"""As a length to divide by: that of the batch's longest row."""


def attention_divisor(length: int | None, offsets: Tensor) -> int | Tensor | None:
    """What attention weights are divided by, for :class:`HSTULayout`.

    Args:
        length: a number of tokens, :data:`LONGEST_ROW`, or None: what the options say.
        offsets: ``[U + 1]`` int64, row borders.

    Returns:
        ``length``, or the longest row's on the device, a scalar.
    """
    if length != LONGEST_ROW:
        return length
    return offsets.diff().max().clamp(min=1) if offsets.numel() > 1 else 1


def check_divisor(key: str, length: int | None) -> None:
    """Refuse an option ``key`` that is no number of tokens, :data:`LONGEST_ROW` or None.

    Raises:
        ValueError: with the key.
    """
    if length is not None and length != LONGEST_ROW and length < 1:
        raise ValueError(f"{key}: {length} is less than 1 (-1: the longest row of the batch)")


class HSTULayer(nn.Module):
    """One block.

    Args:
        options: sizes and variant.
        project_in: ``width`` to ``heads * head_width``, the numbers of a head side by side; None for ``nn.Linear``. One
            that makes fewer heads is one part of a tensor-parallel layer.
        project_out: ``heads * linear_dim`` to ``width``; None for ``nn.Linear``.
    """

    def __init__(
        self, options: HSTUBlockOptions, project_in: nn.Module | None = None, project_out: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.options = options
        inner = options.heads * options.linear_dim
        self.input_norm = nn.LayerNorm(options.width, options.norm_eps, options.norm_affine)
        self.project_in = project_in or nn.Linear(options.width, options.heads * options.head_width)
        self.attention_norm = nn.LayerNorm(inner, options.norm_eps, options.norm_affine)
        self.project_out = project_out or nn.Linear(inner, options.width)
        self.dropout = Dropout(options.dropout)
        self.bias = (
            None
            if options.relative_bias == "none"
            else RelativeBiasTables(options.relative_bias, options.max_length, options.time_buckets)
        )
        self.scale = 1 / math.sqrt(options.attention_dim) if options.scale_by_dim else 1.0

    def forward(self, x: Tensor, layout: HSTULayout) -> Tensor:
        """``x`` ``[T, D]`` over packed rows to ``[T, D]``."""
        if self.options.recompute_silu:
            activated = Recomputed(functional.silu, self._mixed(x))
            with activated:
                gated = self._attend(activated.output, layout)
        else:
            gated = self._attend(functional.silu(self._mixed(x)), layout)
        return x + self.project_out(self.dropout(gated))

    def _mixed(self, x: Tensor) -> Tensor:
        """The projection before its SiLU, ``[T, H * head_width]``."""
        if not self.options.recompute_norm:
            mixed = self.project_in(self._normed(x))
        else:
            normed = Recomputed(self._normed, x)
            with normed:
                mixed = self.project_in(normed.output)
        assert isinstance(mixed, Tensor)
        return mixed

    def _normed(self, x: Tensor) -> Tensor:
        """In the dtype of the product that follows: what autocast would make of it, once."""
        kind = x.device.type
        normed = self.input_norm(x)
        return normed.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else normed

    def _attend(self, activated: Tensor, layout: HSTULayout) -> Tensor:
        """Attention, its norm and the gate: ``[T, H * head_width]`` to ``[T, H * linear_dim]``."""
        o = self.options
        heads = activated.view(len(activated), -1, o.head_width)  # [T, H, head_width]
        widths = [o.linear_dim, o.linear_dim, o.attention_dim, o.attention_dim]
        u, v, q, k = torch.split(heads, widths, dim=-1)
        bias = None if self.bias is None else self.bias(layout.timestamps, layout.next_times)
        n = o.max_length if layout.max_length is None else layout.max_length
        out = hstu_attention(q, k, v, layout.offsets, max_length=n, mask=layout.seen, bias=bias, scale=self.scale)
        normed = self.attention_norm(out.flatten(1))
        return (normed.view(u.shape) * u).flatten(1)  # u stays a view of the projection: flat it would be a copy
