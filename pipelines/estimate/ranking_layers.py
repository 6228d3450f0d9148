"""What an event costs in HSTU for ranking: the tokens that it becomes, its vectors, and the head where it is asked.

A window of ``l`` events, ``c`` of them candidates, is a row of ``h = C + 2 (l - c)`` tokens, ``C`` user features among
them, and ``c`` tokens more. A token of those sees the older ones, the prefix all of itself; a candidate sees them and
its own group up to itself. So a row has ``h (h + 1) / 2 + C (C - 1) / 2 + c h + c (g + 1) / 2`` pairs,
``g`` the size of a group. What a token costs in a block is counted by :mod:`pipelines.estimate.hstu_layers`.

CPU counts are held against real layers by tests; those for a GPU are read off the code and are not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from models.hstu_ranking import HSTURankingOptions
from models.ranking import RankingData
from pipelines.estimate.hstu_layers import block_layers
from pipelines.estimate.layer_sizes import WIDE
from pipelines.estimate.layer_work import Formats, LayerWork

INDEX = 8  # bytes of a place


@dataclass(frozen=True)
class RankingShape:
    """What the count needs to know of data and windows.

    Attributes:
        context: codes of each user feature; 0 where nobody has counted them.
        actions: different actions.
        kind: ``classes`` or ``bits``.
        names: how many classes or bits.
        mean_length: events of a window.
        asked: share of a window's events that are asked about.
    """

    context: Mapping[str, int]
    actions: int
    kind: str
    names: int
    mean_length: float
    asked: float


def shape_of(data: RankingData, mean_length: float, asked: float) -> RankingShape:
    """The shape of ``data`` in windows of so many events on average, of which the share ``asked`` is asked about."""
    return RankingShape(dict(data.context), data.num_actions, data.kind, len(data.names), mean_length, asked)


def ranking_layers(options: HSTURankingOptions, shape: RankingShape, shared: float, formats: Formats) -> LayerWork:
    """Of an event of a window, all tables but the item table included.

    Args:
        options: of the model.
        shape: of data and windows.
        shared: events that an event shares its window with, on average (``sum l^2 / sum l``).
        formats: number formats.
    """
    prefix = len(shape.context) if options.context else 0
    tokens = tokens_of_event(options, shape)
    pairs = _pairs(options, shape, shared, prefix) / tokens
    length = 2 * pairs - 1  # of which a token is taken to share (length + 1) / 2
    block = block_layers(options.block(prefix), options.blocks, length, formats)
    head = _head_bytes(options, shape, formats)
    flops = tokens * block.product_flops + _vector_flops(options, shape, prefix)
    return replace(
        block,
        parameters=block.parameters + _own_parameters(options, shape),
        product_flops=flops + 2.0 * shape.asked * sum(a * b for a, b in pairwise((options.hidden, *options.head))),
        scan_flops=tokens * block.scan_flops,
        attention_flops=tokens * block.attention_flops,
        saved=tokens * block.saved + _vector_bytes(options, shape, prefix, formats) + head,
        encode=tokens * block.encode,
        backward=tokens * block.backward - head,
    )


def tokens_of_event(options: HSTURankingOptions, shape: RankingShape) -> float:
    """Tokens of the blocks, of each event of a window on average."""
    prefix = len(shape.context) if options.context else 0
    return prefix / shape.mean_length + 1 + _past(options, shape)


def _past(options: HSTURankingOptions, shape: RankingShape) -> float:
    """The share of events that are history, and so have a token for what the user did."""
    return 1 - shape.asked if options.candidates else 1.0


def _pairs(options: HSTURankingOptions, shape: RankingShape, shared: float, prefix: int) -> float:
    """Who sees whom, for each event: the sum over rows by ``l`` and ``l^2``, candidates alike in all windows."""
    mean = shape.mean_length
    candidates = mean * shape.asked if options.candidates else 0.0
    apart = prefix - 2 * candidates  # h = apart + 2 l
    squares = apart**2 / mean + 4 * apart + 4 * shared
    history = apart + 2 * mean
    group = min(options.target_group_size, max(candidates, 1))
    own = candidates * (history + (group + 1) / 2)
    mask = prefix * (prefix - 1) / 2 if options.context_mask else 0
    return squares / 2 + (history / 2 + mask + own) / mean


def item_width(options: HSTURankingOptions) -> int:
    """Of item and action vectors."""
    return options.item_dim or options.hidden


def _own_parameters(options: HSTURankingOptions, shape: RankingShape) -> int:
    """Of everything but the blocks and the item table."""
    d, item, context = options.hidden, item_width(options), options.context_dim or options.hidden
    codes = shape.context if options.context else {}
    tables = shape.actions * item + sum(codes.values()) * context
    projections = (item + 1) * d * (item != d) + (context + 1) * d * (context != d and bool(codes))
    positions = (options.max_length + 1) * d * options.positions
    norm = 2 * d * (options.output_norm == "layer")
    return tables + projections + positions + norm + sum((a + options.head_bias) * b for a, b in _widths(options))


def _widths(options: HSTURankingOptions) -> list[tuple[int, int]]:
    """Of the head's layers, in and out."""
    return list(pairwise((options.hidden, *options.head)))


def _vector_flops(options: HSTURankingOptions, shape: RankingShape, prefix: int) -> float:
    """Forward products that make item, action and context vectors as wide as the states."""
    d, item, context = options.hidden, item_width(options), options.context_dim or options.hidden
    items = 2.0 * (1 + _past(options, shape)) * item * d * (item != d)
    return items + 2.0 * prefix / shape.mean_length * context * d * (context != d)


def _vector_bytes(options: HSTURankingOptions, shape: RankingShape, prefix: int, formats: Formats) -> float:
    """Kept: what those products read, which rows were looked up, and the order that everything was brought into."""
    d, item, context = options.hidden, item_width(options), options.context_dim or options.hidden
    past = _past(options, shape)
    read = formats.narrow * (1 + past) * item * (item != d)
    read += formats.narrow * prefix / shape.mean_length * context * (context != d)
    rows = INDEX * past + (INDEX + 1) * options.positions
    return read + rows + INDEX * (tokens_of_event(options, shape) + 1)


def _head_bytes(options: HSTURankingOptions, shape: RankingShape, formats: Formats) -> float:
    """Kept of an event by norm, head and loss, those that are not asked included."""
    d, outputs = options.hidden, options.head[-1]
    norm = {"layer": WIDE * (d + 2), "l2": WIDE * (d + 1), "none": 0}[options.output_norm]
    hidden = sum(options.head[:-1]) * (2 if options.head_activation == "gelu" else 1)
    loss = WIDE * outputs * (1 if shape.kind == "classes" else 2)
    return shape.asked * (norm + formats.narrow * (d + hidden) + loss)
