"""TiSASRec: SASRec whose attention also looks at the time between two events.

Source: Li, Wang, McAuley 2020, "Time Interval Aware Self-Attention for Sequential Recommendation", WSDM; its names:

    r_ij = min(|t'_i - t'_j|, time_span)
    score_ij = q_i . (k_j + PK_j + RK[r_ij]) / sqrt(d),   out_i = sum_j a_ij (v_j + PV_j + RV[r_ij])

Positions stand in keys and values, not in the input. Only times of past events are read: the model is not told when it
is asked. The paper scales time by a user's smallest gap; here that is the smallest gap inside the window, which a
token in the middle shares with later ones (their times, not their items, as in the published code). ``time_unit``
measures all users alike and tells a token nothing of later ones. Dropout falls on a position's vector token by token,
and on RK and RV once a step: falling on every pair of events, as in the published code, it would need the tensor of
all pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from models.batch import SequenceBatch
from models.kernels.interval_attention import UNITS, interval_attention
from models.layers.dropout import Dropout
from models.layers.feed_forward import FeedForward
from models.layers.hyper_connections import merge_streams, split_streams
from models.layers.position import LearnedPositions
from models.layers.residual import Norm, Residual
from models.sasrec import SASRecOptions, xavier_init
from models.tasks import Retrieval


@dataclass(frozen=True)
class TiSASRecOptions(SASRecOptions):
    """As SASRec, and time."""

    norm: Norm = "query"
    """LayerNorm: ``post``: after the residual sum. ``pre``: before each layer. ``query``: the paper's own code, on
    the queries and the residual."""
    time_span: int = 256
    """The longest interval told apart; all longer ones are one."""
    time_unit: Literal["second", "minute", "hour", "day"] | None = None
    """Whole ``second``s, ``minute``s, ``hour``s or ``day``s between events; null is the paper's scale: the smallest gap
    of the row is 1."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_span < 1:
            raise ValueError(f"time_span: {self.time_span} is less than 1")
        if self.time_unit is not None and self.time_unit not in UNITS:
            raise ValueError(f"time_unit: '{self.time_unit}' is not one of {', '.join(UNITS)}")


class IntervalAttention(nn.Module):
    """The attention of one block: projections and reading of the tables.

    Args:
        options: sizes.
    """

    def __init__(self, options: TiSASRecOptions) -> None:
        super().__init__()
        self.heads, self.dropout, self.unit = options.heads, options.dropout, options.time_unit
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(options.hidden, options.hidden) for _ in range(3))

    def forward(self, query: Tensor, context: Tensor, tables: tuple[Tensor, ...], batch: SequenceBatch) -> Tensor:
        """``query`` and ``context`` ``[T, D]``; ``tables``: PK, PV ``[T, D]``, RK, RV ``[S + 1, D]``. To ``[T, D]``."""
        pk, pv, rk, rv = tables
        projected = self.q_proj(query), self.k_proj(context) + pk, self.v_proj(context) + pv, rk, rv
        q, k, v, rk, rv = (x.view(len(x), self.heads, -1) for x in projected)  # [., H, d]
        dropout = self.dropout if self.training else 0.0
        out = interval_attention(q, k, v, rk, rv, batch.timestamps, batch.offsets, unit=self.unit, dropout=dropout)
        return out.flatten(1)


class TiSASRecBlock(nn.Module):
    """Interval-aware attention, then the feed-forward layer."""

    def __init__(self, options: TiSASRecOptions) -> None:
        super().__init__()
        width = options.hidden
        self.attention = IntervalAttention(options)
        self.attention_residual = Residual(width, options.norm, options.streams)
        self.feed_forward = FeedForward(width, options.inner, options.activation, options.dropout)
        self.feed_forward_residual = Residual(width, options.norm, options.streams)

    def forward(self, x: Tensor, tables: tuple[Tensor, ...], batch: SequenceBatch) -> Tensor:
        """``x`` ``[T, D]`` (``[T, n, D]`` with hyper-connections) over packed rows to the same shape."""
        x = self.attention_residual(x, lambda query, context: self.attention(query, context, tables, batch))
        return self.feed_forward_residual(x, lambda query, _: self.feed_forward(query))


class TiSASRec(Retrieval):
    """The model: item embedding, blocks that share positions and intervals, tied output.

    Args:
        num_items: items in the catalogue, 1 .. num_items.
        options: sizes and forms.
    """

    query_time = "blind"

    def __init__(self, num_items: int, options: TiSASRecOptions) -> None:
        super().__init__(num_items, options.hidden, options.loss)
        self.options = options
        width = options.hidden
        self.position_keys, self.position_values = (
            LearnedPositions(options.max_length, width, options.positions) for _ in range(2)
        )
        self.interval_keys, self.interval_values = (nn.Embedding(options.time_span + 1, width) for _ in range(2))
        self.dropout = Dropout(options.dropout)
        self.blocks = nn.ModuleList(TiSASRecBlock(options) for _ in range(options.blocks))
        self.output_norm = nn.LayerNorm(width, eps=1e-8)
        self.apply(xavier_init)

    def token_states(self, batch: SequenceBatch) -> Tensor:
        """The state after each token, ``[T, D]``."""
        x = self.item_embedding(batch.items)  # [T, D]
        x = self.dropout(x * math.sqrt(self.options.hidden) if self.options.scale_embedding else x)
        places = self.position_keys.places(batch.offsets, batch.num_tokens)
        tables = (
            self.position_keys(places),
            self.position_values(places),
            self.interval_keys.weight,
            self.interval_values.weight,
        )
        tables = tuple(self.dropout(table) for table in tables)
        if self.options.mhc:
            x = split_streams(x, self.options.mhc_expansion_rate)  # [T, n, D]
        for block in self.blocks:
            x = block(x, tables, batch)
        return self.output_norm(merge_streams(x) if self.options.mhc else x)
