"""HSTU for retrieval: pointwise attention with a bias by distance and time, scored by cosine.

Source: Zhai et al. 2024, "Actions Speak Louder than Words", arXiv 2402.17152; the block is in models/layers/hstu.py.

    input:  Drop(sqrt(D) M[item] + P[position])
    score:  cos(state, M[item]) / temperature, the same in training and in evaluation (the temperature changes no rank)

A token measures time from the event that follows it (``query_time: aware``: the model is told when it is asked, for
the newest token by the request) or from its own (``blind``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batch import SequenceBatch
from models.layers.dropout import Dropout
from models.layers.hstu import HSTUBlockOptions, HSTULayer, HSTULayout, attention_divisor, check_divisor
from models.layers.position import CountedFrom, LearnedPositions
from models.layers.relative_bias import BiasKind
from models.losses import LossOptions, Seen, compute_loss
from models.tasks import Retrieval, default_generator

Similarity = Literal["cosine", "dot"]
Positions = Literal["oldest", "newest", "none"]


@dataclass(frozen=True)
class HSTUOptions:
    """Sizes and variant; the defaults are the authors' variant."""

    hidden: int = 64
    """Width of item vectors and states."""
    blocks: int = 2
    """Layers."""
    heads: int = 1
    """Attention heads."""
    attention_dim: int | None = None
    """Width of a query and a key, per head; null takes ``hidden / heads``."""
    linear_dim: int | None = None
    """Width of a value and of its gate, per head; null takes ``hidden / heads``."""
    dropout: float = 0.2
    """After the embedding and before each block's output projection."""
    max_length: int = 200
    """The positions that the model knows (``loader.max_length`` must not be greater), and N, what attention weights are
    divided by, unless ``scaling_length`` says another."""
    scaling_length: int | None = None
    """N instead of ``max_length``. -1: the longest row of the batch, of this process' part of it; what a user gets then
    depends on who else is in the batch, in training and in evaluation."""
    positions: Positions = "oldest"
    """Learned positions at the input, counted from the ``oldest`` or the ``newest`` token, or ``none``."""
    relative_bias: BiasKind = "position_time"
    """Bias of attention scores: by ``position``, by ``position_time``, or ``none``."""
    time_buckets: int = 128
    """Buckets ``floor(ln(max(1, seconds)) / .301)`` of the bias by time."""
    query_time: Literal["aware", "blind"] = "aware"
    """Whether the bias by time measures from the next event (for the newest token: from the request), which tells the
    model when it is asked, or from each token's own time."""
    scale_by_dim: bool = False
    """Divide scores by sqrt(attention_dim)."""
    norm_affine: bool = False
    """Whether a block's norms have a learned gain and shift."""
    norm_eps: float = 1e-6
    """Of a block's norms."""
    dense_init_std: float | None = None
    """Standard deviation of the first weights of each block's two projections; null: 0.02 of the input's, the output's
    are Xavier-uniform."""
    scale_embedding: bool = True
    """Multiply item vectors at the input by sqrt(hidden)."""
    similarity: Similarity = "cosine"
    """``cosine``: states and item vectors of length 1, in training and in evaluation. ``dot``: as they are."""
    temperature: float = 0.05
    """What similarities are divided by in training."""
    l2_norm_eps: float = 1e-6
    """The least length that a vector is divided by."""
    recompute_norm: bool = False
    """Compute each block's input norm again in the backward pass instead of keeping it."""
    recompute_silu: bool = False
    """Compute SiLU of each block's projection again in the backward pass instead of keeping it."""
    loss: LossOptions = field(default_factory=LossOptions)
    """Training loss."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        check_sizes(self, ("hidden", "blocks", "heads"))
        choices = (("positions", Positions), ("similarity", Similarity), ("query_time", Literal["aware", "blind"]))
        for key, valid in choices:
            if getattr(self, key) not in get_args(valid):
                raise ValueError(f"{key}: '{getattr(self, key)}' is not one of {', '.join(get_args(valid))}")
        for key in ("temperature", "l2_norm_eps", "norm_eps"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}: {getattr(self, key)} is not above 0")
        self.block()  # checks the rest

    def block(self) -> HSTUBlockOptions:
        """The options of one block."""
        return block_options(self, self.max_length)


def block_options(options: Any, max_length: int) -> HSTUBlockOptions:
    """One block's options of those of a model, for retrieval or for ranking, which name the same sizes alike.

    Args:
        options: an :class:`HSTUOptions` or :class:`models.hstu_ranking.HSTURankingOptions`.
        max_length: tokens of the longest row.

    Raises:
        ValueError: see :class:`HSTUBlockOptions`.
    """
    of_a_head = options.hidden // options.heads
    return HSTUBlockOptions(
        width=options.hidden,
        heads=options.heads,
        attention_dim=of_a_head if options.attention_dim is None else options.attention_dim,
        linear_dim=of_a_head if options.linear_dim is None else options.linear_dim,
        dropout=options.dropout,
        norm_eps=options.norm_eps,
        norm_affine=options.norm_affine,
        scale_by_dim=options.scale_by_dim,
        relative_bias=options.relative_bias,
        max_length=max_length,
        time_buckets=options.time_buckets,
        recompute_norm=options.recompute_norm,
        recompute_silu=options.recompute_silu,
    )


def check_sizes(options: Any, counts: tuple[str, ...]) -> None:
    """Refuse what no block can be made of, and of ``counts`` whichever is less than 1; ``options`` as above.

    Raises:
        ValueError: the first of them, by name.
    """
    for key in counts:
        if getattr(options, key) < 1:
            raise ValueError(f"{key}: {getattr(options, key)} is less than 1")
    if options.hidden % options.heads and None in (options.attention_dim, options.linear_dim):
        raise ValueError(f"heads: {options.heads} does not divide hidden ({options.hidden}): set both dims of a head")
    check_divisor("scaling_length", options.scaling_length)
    if options.dense_init_std is not None and not options.dense_init_std > 0:
        raise ValueError(f"dense_init_std: {options.dense_init_std} is not above 0")


class HSTU(Retrieval):
    """The model: item embedding with positions, blocks, tied output.

    Args:
        num_items: items in the catalogue, 1 .. num_items.
        options: sizes and variant.
    """

    def __init__(self, num_items: int, options: HSTUOptions) -> None:
        super().__init__(num_items, options.hidden, options.loss)
        self.options = options
        counted: CountedFrom | None = None if options.positions == "none" else options.positions
        self.positions = LearnedPositions(options.max_length, options.hidden, counted) if counted else None
        self.dropout = Dropout(options.dropout)
        self.blocks = nn.ModuleList(HSTULayer(options.block()) for _ in range(options.blocks))
        self.apply(hstu_init)
        begin_normal(self.blocks, options.dense_init_std)

    @property
    def query_time(self) -> str:
        """``aware`` when the time of the request is an input, else ``blind``."""
        aware = self.options.relative_bias == "position_time" and self.options.query_time == "aware"
        return "aware" if aware else "blind"

    def layout(self, batch: SequenceBatch) -> HSTULayout:
        """Borders and times of the rows, the same for all blocks."""
        measured_from = batch.timestamps
        if self.query_time == "aware":
            measured_from = next_event_times(batch)
        return HSTULayout(
            batch.offsets,
            timestamps=batch.timestamps,
            next_times=measured_from,
            max_length=attention_divisor(self.options.scaling_length, batch.offsets),
            tokens=batch.num_tokens,
        )

    def token_states(self, batch: SequenceBatch) -> Tensor:
        """The state after each token, ``[T, D]``."""
        x = self.item_embedding(batch.items)  # [T, D]
        if self.options.scale_embedding:
            x = x * math.sqrt(self.options.hidden)
        if self.positions is not None:
            x = x + self.positions(self.positions.places(batch.offsets, batch.num_tokens))
        x, layout = self.dropout(x), self.layout(batch)
        for block in self.blocks:
            x = block(x, layout)
        return x

    def catalogue_loss(self, states: Tensor, targets: Tensor, seen: Seen | None) -> Tensor:
        """The summed loss of ``targets`` ``[M]`` for ``states`` ``[M, D]``, by similarity over temperature."""
        states = self._measured(states) / self.options.temperature
        table, generator = self._measured(self.item_embedding.weight), default_generator(states.device)
        return compute_loss(self.loss_options, states, table, targets, generator, self.popularity, seen, self.drawn)

    def encode(self, batch: SequenceBatch) -> Tensor:
        """The state of each row's newest token, of length 1 for ``cosine``, ``[U, D]``."""
        return self._measured(super().encode(batch))

    def item_vectors(self, ids: Tensor) -> Tensor:
        """The vectors of the items ``ids`` ``[n]``, of length 1 for ``cosine``, ``[n, D]``."""
        return self._measured(super().item_vectors(ids))

    def _measured(self, vectors: Tensor) -> Tensor:
        """``vectors`` ``[n, D]`` as their dot products are the similarity; float32 under autocast too."""
        if self.options.similarity == "dot":
            return vectors
        return functional.normalize(vectors.float(), dim=1, eps=self.options.l2_norm_eps).to(vectors.dtype)


def next_event_times(batch: SequenceBatch) -> Tensor:
    """When the event after each token happened, for the newest token of a row the request; ``[T]`` int64 seconds."""
    following = batch.timestamps.roll(-1)
    newest = batch.offsets[1:] - 1
    following[newest] = batch.request_time.to(following.dtype)
    return following


def hstu_init(module: nn.Module) -> None:
    """The authors' start, for ``Module.apply``: tables and projections small and normal, the output Xavier-uniform."""
    if isinstance(module, nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
    elif isinstance(module, HSTULayer):
        for projection, start in ((module.project_in, _small), (module.project_out, nn.init.xavier_uniform_)):
            if isinstance(projection, nn.Linear):
                start(projection.weight)
                nn.init.zeros_(projection.bias)


def begin_normal(blocks: nn.ModuleList, std: float | None) -> None:
    """Draw the projections of all ``blocks`` from a normal distribution; None leaves them as they are."""
    for block in blocks if std is not None else ():
        for projection in (block.project_in, block.project_out):
            nn.init.normal_(projection.weight, std=std)  # type: ignore[arg-type, union-attr]


def _small(weight: Tensor) -> Tensor:
    return nn.init.normal_(weight, std=0.02)
