"""SASRec: causal self-attention over a user's items, scored against the tied item table.

Source: Kang and McAuley 2018, "Self-Attentive Sequential Recommendation", arXiv 1808.09781.

    input:  Drop(sqrt(D) M[item] + P[position])
    block:  attention, then a point-wise feed-forward layer, each with dropout, LayerNorm and a residual
    score:  dot product of the last state, after a LayerNorm, with M

The model reads items and their order alone: it is never told when it is asked. ``mhc`` replaces the residuals by
several streams (see models/layers/hyper_connections.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor, nn

from models.batch import SequenceBatch
from models.layers.attention import SelfAttention
from models.layers.dropout import Dropout
from models.layers.feed_forward import Activation, FeedForward
from models.layers.hyper_connections import merge_streams, split_streams
from models.layers.position import CountedFrom, LearnedPositions
from models.layers.residual import Norm, Residual, StreamOptions
from models.losses import LossOptions
from models.tasks import Retrieval


@dataclass(frozen=True)
class SASRecOptions:
    """Sizes and forms of the attention models."""

    hidden: int = 64
    """Width of item vectors and states."""
    blocks: int = 2
    """Attention and feed-forward pairs."""
    heads: int = 2
    """Attention heads; they divide ``hidden``."""
    dropout: float = 0.2
    """After the embedding, on attention weights and in the feed-forward layer."""
    max_length: int = 200
    """Learned positions: the longest history that the model takes (``loader.max_length`` must not be greater)."""
    positions: CountedFrom = "newest"
    """Where positions are counted from, ``newest`` (the paper) or ``oldest``: see models/layers/position.py."""
    norm: Norm = "post"
    """LayerNorm: ``post``: after the residual sum. ``pre``: before each layer. ``query``: the paper's own code, on
    the queries and the residual."""
    feed_forward: int | None = None
    """Inner width of the feed-forward layer; null takes ``hidden``."""
    activation: Activation = "relu"
    """``relu``, ``gelu``, ``silu`` or ``swiglu``."""
    scale_embedding: bool = True
    """Multiply item vectors at the input by sqrt(hidden)."""
    mhc: bool = False
    """Hyper-connections instead of residuals."""
    mhc_expansion_rate: int = 4
    """Residual streams of the hyper-connections."""
    mhc_sinkhorn_iterations: int = 20
    """Rounds that make the streams' mixing doubly stochastic."""
    mhc_init_gate: float = 0.01
    """How much the streams' routes depend on the token at the start."""
    loss: LossOptions = field(default_factory=LossOptions)
    """Training loss."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        for key in ("hidden", "blocks", "heads", "max_length", "mhc_sinkhorn_iterations"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} is less than 1")
        if self.feed_forward is not None and self.feed_forward < 1:
            raise ValueError(f"feed_forward: {self.feed_forward} is less than 1")
        if self.hidden % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide hidden ({self.hidden})")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not in [0, 1)")
        if self.mhc_expansion_rate < 2:
            raise ValueError(f"mhc_expansion_rate: {self.mhc_expansion_rate} is less than 2")
        if not math.isfinite(self.mhc_init_gate):
            raise ValueError(f"mhc_init_gate: {self.mhc_init_gate} is not finite")
        for key, valid in (("norm", Norm), ("activation", Activation), ("positions", CountedFrom)):
            if getattr(self, key) not in get_args(valid):
                raise ValueError(f"{key}: '{getattr(self, key)}' is not one of {', '.join(get_args(valid))}")

    @property
    def streams(self) -> StreamOptions | None:
        """Hyper-connections, or None."""
        if not self.mhc:
            return None
        return StreamOptions(self.mhc_expansion_rate, self.mhc_sinkhorn_iterations, self.mhc_init_gate)

    @property
    def inner(self) -> int:
        """Inner width of the feed-forward layer."""
        return self.feed_forward or self.hidden


class SASRecBlock(nn.Module):
    """Attention, then the feed-forward layer."""

    def __init__(self, options: SASRecOptions) -> None:
        super().__init__()
        width = options.hidden
        self.attention = SelfAttention(width, options.heads, options.dropout)
        self.attention_residual = Residual(width, options.norm, options.streams)
        self.feed_forward = FeedForward(width, options.inner, options.activation, options.dropout)
        self.feed_forward_residual = Residual(width, options.norm, options.streams)

    def forward(self, x: Tensor, offsets: Tensor, longest: int | None = None) -> Tensor:
        """``x`` ``[T, D]`` (``[T, n, D]`` with hyper-connections) over packed rows to the same shape."""
        x = self.attention_residual(x, lambda query, context: self.attention(query, context, offsets, longest))
        return self.feed_forward_residual(x, lambda query, _: self.feed_forward(query))

    def newest(self, x: Tensor, offsets: Tensor) -> Tensor:
        """What :meth:`forward` gives for each row's newest token alone, ``[U, D]``, without hyper-connections.

        In the last block nobody reads the other tokens: they are keys and values, no queries.
        """
        x = self.attention_residual.newest(
            x, offsets[1:] - 1, lambda query, context: self.attention.newest(query, context, offsets)
        )
        return self.feed_forward_residual(x, lambda query, _: self.feed_forward(query))


class SASRec(Retrieval):
    """The model: item embedding with positions, blocks, tied output.

    Args:
        num_items: items in the catalogue, 1 .. num_items.
        options: sizes and forms.
    """

    query_time = "blind"

    def __init__(self, num_items: int, options: SASRecOptions) -> None:
        super().__init__(num_items, options.hidden, options.loss)
        self.options = options
        self.takes_fixed_shapes = not options.mhc
        self.positions = LearnedPositions(options.max_length, options.hidden, options.positions)
        self.dropout = Dropout(options.dropout)
        self.blocks = nn.ModuleList(SASRecBlock(options) for _ in range(options.blocks))
        self.output_norm = nn.LayerNorm(options.hidden, eps=1e-8)
        self.apply(xavier_init)

    def token_states(self, batch: SequenceBatch) -> Tensor:
        """The state after each token, ``[T, D]``."""
        x = self._inputs(batch)
        for block in self.blocks:
            x = block(x, batch.offsets, batch.longest)
        return self.output_norm(merge_streams(x) if self.options.mhc else x)

    def encode(self, batch: SequenceBatch) -> Tensor:
        """The state of each row's newest token, ``[U, D]``."""
        if self.options.mhc or self.training:  # dropout would draw other numbers
            return super().encode(batch)
        x = self._inputs(batch)
        for block in self.blocks[:-1]:
            x = block(x, batch.offsets)
        last = self.blocks[-1]
        assert isinstance(last, SASRecBlock)
        return self.output_norm(last.newest(x, batch.offsets))

    def _inputs(self, batch: SequenceBatch) -> Tensor:
        """Items and places, ``[T, D]`` (``[T, n, D]`` with hyper-connections)."""
        x = self.item_embedding(batch.items)  # [T, D]
        if self.options.scale_embedding:
            x = x * math.sqrt(self.options.hidden)
        x = self.dropout(x + self.positions(self.positions.places(batch.offsets, batch.num_tokens, batch.longest)))
        return split_streams(x, self.options.mhc_expansion_rate) if self.options.mhc else x


def xavier_init(module: nn.Module) -> None:
    """Linear and embedding weights Xavier-normal, biases zero, the padding row zero; meant for ``Module.apply``."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.xavier_normal_(module.weight)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
