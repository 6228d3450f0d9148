"""HSTU for ranking: items and actions interleaved behind a contextual prefix, candidates at the end, an MLP for each.

Sources: Zhai et al. 2024, "Actions Speak Louder than Words", arXiv 2402.17152; the block is in models/layers/hstu.py,
the order of the tokens in models/layers/interleave.py.

The state at an item's token says what the user will do with it: it has seen the user's features, all earlier items and
all earlier actions. Candidates see the history and their own group, not each other, so one pass ranks many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batch import SequenceBatch
from models.hstu import begin_normal, block_options, check_sizes, hstu_init
from models.kernels.hstu_attention import AttentionMask
from models.layers.dropout import Dropout
from models.layers.hstu import HSTUBlockOptions, HSTULayer, HSTULayout, attention_divisor
from models.layers.interleave import Interleaved, interleave
from models.layers.relative_bias import BiasKind
from models.ranking import Ranking, RankingData, asked_tokens, check_actions

HeadActivation = Literal["relu", "gelu"]
OutputNorm = Literal["layer", "l2", "none"]


@dataclass(frozen=True)
class HSTURankingOptions:
    """Sizes and variant; the defaults scale scores by the width of a head and have no relative bias."""

    hidden: int = 64
    """Width of the states."""
    blocks: int = 2
    """Layers."""
    heads: int = 2
    """Attention heads."""
    attention_dim: int | None = None
    """Width of a query and a key, per head; null takes ``hidden / heads``."""
    linear_dim: int | None = None
    """Width of a value and of its gate, per head; null takes ``hidden / heads``."""
    item_dim: int | None = None
    """Width of item and action vectors; null takes ``hidden``, any other is projected to it."""
    context_dim: int | None = None
    """Width of the vectors of user features; null takes ``hidden``, any other is projected to it."""
    dropout: float = 0.2
    """After the embedding and before each block's output projection."""
    max_length: int = 200
    """Events of a history that the model knows positions for (``loader.max_length`` must not be greater)."""
    candidates: int = 0
    """The newest so many events of each window are asked about and see no other candidate; ``loader.max_length`` counts
    the events before them. 0: every event is asked about, given all before it."""
    target_group_size: int = 1
    """Neighbouring candidates that see each other's past members."""
    context: bool = True
    """Whether the user features of the data stand in front of each row."""
    context_mask: bool = True
    """The contextual prefix sees all of itself and is seen by all. Otherwise its tokens are plain tokens."""
    positions: bool = True
    """Learned positions of events, counted from the oldest; item and action of an event share one."""
    relative_bias: BiasKind = "none"
    """Bias of attention scores: by ``position``, by ``position_time``, or ``none``."""
    time_buckets: int = 128
    """Of the bias by time."""
    scaling_length: int | None = None
    """N, what attention weights are divided by; null takes the tokens of the longest possible row. -1: the longest row
    of the batch, of this process' part of it; what a user gets then depends on who else is in the batch."""
    scale_by_dim: bool = True
    """Divide scores by sqrt(attention_dim)."""
    norm_affine: bool = True
    """Whether a block's norms have a learned gain and shift."""
    norm_eps: float = 1e-5
    """Of all norms."""
    dense_init_std: float | None = None
    """Standard deviation of the first weights of each block's two projections; null: 0.02 of the input's, the output's
    are Xavier-uniform."""
    output_norm: OutputNorm = "layer"
    """Of the states before the head: a ``layer`` norm, length 1 (``l2``), or ``none``."""
    head: tuple[int, ...] = (128, 5)
    """Widths of the prediction head's layers; the last is the number of classes or of bits."""
    head_activation: HeadActivation = "relu"
    """Between the head's layers: ``relu`` or ``gelu``."""
    head_bias: bool = True
    """Whether the head's layers have a bias."""
    recompute_norm: bool = False
    """Compute each block's input norm again in the backward pass instead of keeping it."""
    recompute_silu: bool = False
    """Compute SiLU of each block's projection again in the backward pass instead of keeping it."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        object.__setattr__(self, "head", tuple(self.head))
        check_sizes(self, ("hidden", "blocks", "heads", "max_length", "target_group_size"))
        if self.candidates < 0:
            raise ValueError(f"candidates: {self.candidates} is negative")
        for key in ("item_dim", "context_dim"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} is less than 1")
        if not self.head or min(self.head) < 1:
            raise ValueError(f"head: {list(self.head)} is no list of widths")
        for key, valid in (("head_activation", HeadActivation), ("output_norm", OutputNorm)):
            if getattr(self, key) not in get_args(valid):
                raise ValueError(f"{key}: '{getattr(self, key)}' is not one of {', '.join(get_args(valid))}")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps: {self.norm_eps} is not above 0")
        self.block(0)  # checks the rest

    def longest(self, context: int) -> int:
        """Tokens of the longest row behind a prefix of ``context`` tokens."""
        return context + 2 * self.max_length + self.candidates

    def block(self, context: int) -> HSTUBlockOptions:
        """The options of one block."""
        return block_options(self, self.longest(context))


class HSTURanking(Ranking):
    """The model.

    Args:
        num_items: items in the catalogue, 1 .. num_items.
        options: sizes and variant.
        data: what actions are, and the users' features.

    Raises:
        ValueError: the head's last width is not the number of classes or bits.
    """

    def __init__(self, num_items: int, options: HSTURankingOptions, data: RankingData) -> None:
        super().__init__(num_items, data, options.head[-1])
        self.options = options
        self.query_time = "aware" if options.relative_bias == "position_time" else "blind"
        item, context = options.item_dim or options.hidden, options.context_dim or options.hidden
        self.item_embedding = nn.Embedding(num_items + 1, item, padding_idx=0)
        self.action_embedding = nn.Embedding(data.num_actions, item)
        sizes = data.context if options.context else {}
        self.context_embedding = nn.ModuleDict({name: nn.Embedding(size, context) for name, size in sizes.items()})
        self.item_projection = _projection(item, options.hidden)
        self.context_projection = _projection(context, options.hidden) if sizes else nn.Identity()
        self.position_embedding = nn.Embedding(options.max_length + 1, options.hidden) if options.positions else None
        self.dropout = Dropout(options.dropout)
        self.blocks = nn.ModuleList(HSTULayer(options.block(len(sizes))) for _ in range(options.blocks))
        self.output_norm = nn.LayerNorm(options.hidden, options.norm_eps) if options.output_norm == "layer" else None
        self.apply(hstu_init)
        begin_normal(self.blocks, options.dense_init_std)
        self.head = _head(options)

    def predict(self, batch: SequenceBatch) -> Tensor:
        """Logits of what is asked about, ``[n, classes or bits]``; see :meth:`models.ranking.Ranking.predict`."""
        places = interleave(batch, len(self.context_embedding))
        chosen = asked_tokens(batch)
        item = places.item if chosen is None else places.item[chosen]
        states = self.token_states(batch, places).index_select(0, item)
        if self.output_norm is not None:
            states = self.output_norm(states)
        elif self.options.output_norm == "l2":
            states = functional.normalize(states, dim=-1, eps=1e-6)
        return self.head(states)

    def token_states(self, batch: SequenceBatch, places: Interleaved) -> Tensor:
        """The state at each token of the interleaved rows, ``[N, D]``."""
        x = self.dropout(self._input(batch, places))
        layout = self._layout(batch, places)
        for block in self.blocks:
            x = block(x, layout)
        return x

    def _input(self, batch: SequenceBatch, places: Interleaved) -> Tensor:
        """The vectors of all tokens in their order, ``[N, D]``."""
        items = self.item_projection(self.item_embedding(batch.items))  # [T, D]
        actions = check_actions(batch.actions)[places.history]
        acted = self.item_projection(self.action_embedding(actions))  # [H, D]
        if self.position_embedding is not None:
            self._check_length(places)
            positions = self.position_embedding(places.event)
            items, acted = items + positions, acted + positions[places.history]
        where, what = [places.item, places.action], [items, acted]
        if len(self.context_embedding):
            where.append(places.prefix.flatten())
            what.append(self.context_projection(self._context(batch)).flatten(0, 1))
        return torch.cat(what).index_select(0, torch.cat(where).argsort())

    def _context(self, batch: SequenceBatch) -> Tensor:
        """The vectors of the users' features, ``[U, C, context_dim]``."""
        found = batch.context or {}
        if missing := [name for name in self.context_embedding if name not in found]:
            raise ValueError(f"the batch lacks the user features {', '.join(missing)}")
        return torch.stack([table(found[name]) for name, table in self.context_embedding.items()], dim=1)

    def _layout(self, batch: SequenceBatch, places: Interleaved) -> HSTULayout:
        """Borders, masks and times of the interleaved rows, the same for all blocks."""
        context = len(self.context_embedding)
        full = torch.full_like(places.num_candidates, context) if context and self.options.context_mask else None
        mask = AttentionMask(
            num_context=full,
            num_candidates=None if batch.num_candidates is None else places.num_candidates,
            target_group_size=self.options.target_group_size,
        )
        times = None
        if self.options.relative_bias == "position_time":
            times = batch.timestamps.new_empty(places.tokens)
            times[places.item] = batch.timestamps
            times[places.action] = batch.timestamps[places.history]
            if context:  # user features are as old as the row
                times[places.prefix] = batch.timestamps[batch.offsets[:-1], None]
        return HSTULayout(
            places.offsets,
            mask,
            timestamps=times,
            next_times=times,  # what is shown is shown now: an item asks at its own time
            max_length=attention_divisor(self.options.scaling_length, places.offsets),
            tokens=places.tokens,
        )

    def _check_length(self, places: Interleaved) -> None:
        if (
            places.event.numel()
            and places.event.device.type == "cpu"
            and int(places.event.max()) > self.options.max_length
        ):
            raise ValueError(
                f"a row has {int(places.event.max())} events, the model has learned positions for "
                f"{self.options.max_length}: raise model.max_length or lower loader.max_length"
            )


def _projection(width: int, hidden: int) -> nn.Module:
    return nn.Identity() if width == hidden else nn.Linear(width, hidden)


def _head(options: HSTURankingOptions) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = options.hidden
    for place, out in enumerate(options.head):
        if place:
            layers.append(nn.ReLU() if options.head_activation == "relu" else nn.GELU())
        layers.append(nn.Linear(width, out, bias=options.head_bias))
        width = out
    return nn.Sequential(*layers)
