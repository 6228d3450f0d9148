"""SS4Rec: a time-aware state-space layer (S5) and a relation-aware one (Mamba) in every block.

Source: Xiao et al. 2025, "SS4Rec: Continuous-Time Sequential Recommendation with State Space Models", arXiv 2502.08132.

    block:  h = LN(Drop(S5(x, D)) + x);   y = LN(Drop(Mamba(h)) + h)
    score:  dot product of the last state with the tied item table

``D_i`` is the time until the next event (``query_time: aware``; for the newest event until the request) or since the
event before (``blind``). They are two models: an aware checkpoint asked without its last interval would drop the newest
item. The model is causal, so one pass over a history trains all its positions: the loss of position i is the loss of
the prefix that ends there. A history longer than the window is cut (``windows: all``) into pieces that start afresh.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from models.batch import SequenceBatch
from models.layers.mamba import Mamba
from models.layers.s5 import S5
from models.layers.time_intervals import SCALINGS, time_intervals
from models.losses import LossOptions
from models.tasks import Retrieval, normal_init


@dataclass(frozen=True)
class SS4RecOptions:
    """Sizes of the paper's ML-1M configuration, and its ablations."""

    hidden: int = 64
    """Width of item vectors and states (the paper's d_H)."""
    layers: int = 2
    """Blocks."""
    dropout: float = 0.2
    """After the embedding and after each state-space layer."""
    s5_state: int = 32
    """Complex states of S5 (the paper's d_P)."""
    d_state: int = 32
    """States of each inner channel of Mamba."""
    d_conv: int = 4
    """Taps of Mamba's causal convolution."""
    expand: int = 2
    """Mamba's inner width as a multiple of ``hidden``."""
    dt_min: float = 0.001
    """Smallest initial step of both state-space layers."""
    dt_max: float = 0.1
    """Largest initial step of both state-space layers."""
    query_time: str = "aware"
    """``aware``: the time of the request is an input. ``blind``: only times of past events are."""
    interval_scaling: str = "log1p"
    """``log1p``, ``per_user`` or ``raw`` (seconds, for parity): see models/layers/time_intervals.py."""
    use_s5: bool = True
    """False: ablation without the time-aware layer."""
    use_mamba: bool = True
    """False: ablation without the relation-aware layer."""
    use_time: bool = True
    """False: ablation in which every interval is 1."""
    input_norm: bool = True
    """LayerNorm on the item embeddings before the first block."""
    loss: LossOptions = field(default_factory=LossOptions)
    """Training loss."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        for key in ("hidden", "layers", "s5_state", "d_state", "d_conv", "expand"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} is less than 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not in [0, 1)")
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(f"dt_min: {self.dt_min} is not above 0 and at most dt_max ({self.dt_max})")
        if self.query_time not in ("aware", "blind"):
            raise ValueError(f"query_time: '{self.query_time}' is not one of aware, blind")
        if self.interval_scaling not in SCALINGS:
            raise ValueError(f"interval_scaling: '{self.interval_scaling}' is not one of {', '.join(SCALINGS)}")
        if not (self.use_s5 or self.use_mamba):
            raise ValueError("use_s5 and use_mamba are both false: nothing is left of the model")


class SS4RecBlock(nn.Module):
    """S5 over time, then Mamba over relations, each with dropout, residual and a LayerNorm of its own."""

    def __init__(self, options: SS4RecOptions) -> None:
        super().__init__()
        width, steps = options.hidden, {"dt_min": options.dt_min, "dt_max": options.dt_max}
        self.dropout = nn.Dropout(options.dropout)
        self.s5 = S5(width, options.s5_state, **steps) if options.use_s5 else None
        self.s5_norm = nn.LayerNorm(width) if options.use_s5 else None
        self.mamba = Mamba(width, options.d_state, options.d_conv, options.expand) if options.use_mamba else None
        self.mamba_norm = nn.LayerNorm(width) if options.use_mamba else None

    def forward(self, x: Tensor, interval: Tensor, offsets: Tensor) -> Tensor:
        """``x`` ``[T, H]``, ``interval`` ``[T]`` over packed rows to ``[T, H]``."""
        if self.s5 is not None and self.s5_norm is not None:
            x = self.s5_norm(self.dropout(self.s5(x, interval, offsets)) + x)
        if self.mamba is not None and self.mamba_norm is not None:
            x = self.mamba_norm(self.dropout(self.mamba(x, offsets)) + x)
        return x


class SS4Rec(Retrieval):
    """The model: item embedding, blocks, tied output.

    Args:
        num_items: items in the catalogue, 1 .. num_items.
        options: sizes and ablations.
    """

    def __init__(self, num_items: int, options: SS4RecOptions) -> None:
        super().__init__(num_items, options.hidden, options.loss)
        self.options = options
        self.dropout = nn.Dropout(options.dropout)
        self.input_norm = nn.LayerNorm(options.hidden) if options.input_norm else nn.Identity()
        self.item_embedding.apply(normal_init)
        self.blocks = nn.ModuleList(SS4RecBlock(options) for _ in range(options.layers))

    @property
    def query_time(self) -> str:
        """``aware`` when the time of the request is an input, else ``blind``."""
        aware = self.options.use_s5 and self.options.use_time and self.options.query_time == "aware"
        return "aware" if aware else "blind"

    def intervals(self, batch: SequenceBatch) -> Tensor:
        """``D_i`` of the paper, ``[T]`` float32."""
        steps = time_intervals(batch, query_time=self.options.query_time, scaling=self.options.interval_scaling)
        return steps if self.options.use_time else steps.new_ones(steps.shape)

    def token_states(self, batch: SequenceBatch) -> Tensor:
        """The state after each token, ``[T, H]``."""
        x = self.input_norm(self.dropout(self.item_embedding(batch.items)))  # [T, H]
        interval = self.intervals(batch)
        for block in self.blocks:
            x = block(x, interval, batch.offsets)
        return x
