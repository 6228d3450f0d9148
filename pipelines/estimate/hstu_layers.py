"""What a token costs in HSTU.

Letters: ``D`` width, ``W`` of the input projection (gate, value, query, key of all heads), ``A`` of values and ``Q`` of
queries of all heads. A row of ``l`` tokens has ``l (l + 1) / 2`` causal pairs, hence ``(L + 1) / 2`` for each token.

Products forward, multiply-adds a token and block: ``D W + A D``. Attention, a causal pair: ``Q + A`` forward, and
backward the scores again, and gradients of weights, queries, keys and values: ``3 Q + 2 A``. Elementwise, a pair:
SiLU of each head's score 5, the bias 2.

CPU counts are held against real layers by tests; those for a GPU are read off the code and are not measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.hstu import HSTUOptions
from models.layers.hstu import HSTUBlockOptions
from pipelines.estimate.layer_sizes import WIDE, mask_bytes
from pipelines.estimate.layer_work import Formats, LayerWork

LAYOUT_BYTES = 20 + 8  # of a token, once for all blocks: five numbers of the mask, and the time it measures from
SILU, BIAS = 5, 2


@dataclass(frozen=True)
class _Sizes:
    """Widths, and bytes of a number.

    Attributes:
        d: of the states.
        w: of the input projection.
        a: of values.
        q: of queries.
        narrow: bytes of a number out of a product.
        gated: bytes of a number from the attention's norm to the output projection: a GPU's norm widens.
        widened: bytes of queries, keys and values once more, for the CPU's attention under autocast.
        mask: bytes of a number of dropout's mask over the attention's output.
        wide_mask: likewise over wide numbers.
    """

    d: int
    w: int
    a: int
    q: int
    narrow: int
    gated: int
    widened: int
    mask: int
    wide_mask: int

    @property
    def attention_norm(self) -> int:
        """What the norm after the attention keeps: its input and two numbers."""
        return self.gated * self.a + 2 * WIDE


def _sizes(block: HSTUBlockOptions, formats: Formats) -> _Sizes:
    cpu, narrow = formats.device == "cpu", formats.narrow
    gated, drops = narrow if cpu else WIDE, block.dropout > 0
    heads = block.heads * (2 * block.attention_dim + block.linear_dim)
    return _Sizes(
        d=block.width,
        w=block.heads * block.head_width,
        a=block.heads * block.linear_dim,
        q=block.heads * block.attention_dim,
        narrow=narrow,
        gated=gated,
        widened=WIDE * heads if cpu and narrow < WIDE else 0,
        mask=drops * mask_bytes(formats.device, narrow),
        wide_mask=drops * mask_bytes(formats.device, WIDE),
    )


def hstu_layers(options: HSTUOptions, shared_length: float, formats: Formats) -> LayerWork:
    """HSTU: its blocks, the positions at the input, and by cosine the states' and items' lengths."""
    stack = block_layers(options.block(), options.blocks, shared_length, formats)
    positions, cosine = options.positions != "none", options.similarity == "cosine"
    return replace(
        stack,
        parameters=stack.parameters + options.max_length * options.hidden * positions,
        saved=stack.saved + 8 * positions + cosine * WIDE * (options.hidden + 2),
        item_tables=float(cosine),
    )


def block_layers(block: HSTUBlockOptions, blocks: int, shared_length: float, formats: Formats) -> LayerWork:
    """So many ``blocks``, and what dropout keeps of their input.

    Kept of a block: the input norm's input and output, the projection before and after its SiLU (of which gate, value,
    query and key are views), the attention norm's input and output, dropout's mask, the last input.
    """
    s = _sizes(block, formats)
    kept = WIDE * (s.d + 2) + s.narrow * s.d * (not block.recompute_norm)
    kept += s.narrow * s.w * (2 - block.recompute_silu)
    kept += s.attention_norm + (s.gated + s.mask + s.narrow) * s.a + s.widened
    pairs = (shared_length + 1) / 2
    tables, kinds = _tables(block)
    return LayerWork(
        parameters=blocks * (_parameters(block, s) + tables),
        product_flops=2.0 * blocks * (s.d * s.w + s.a * s.d),
        scan_flops=blocks * pairs * (SILU * block.heads + BIAS * kinds),
        saved=s.wide_mask * s.d + LAYOUT_BYTES + blocks * kept,
        saved_row=0.0,
        encode=LAYOUT_BYTES + max(WIDE * (s.d + 2 * s.w), WIDE * (s.d + s.w + 3 * s.a)),
        backward=max(_backward(block, s)),
        backward_row=0.0,
        backward_fixed=0.0,
        attention_flops=blocks * 2.0 * (4 * s.q + 3 * s.a) * pairs,
    )


def _tables(block: HSTUBlockOptions) -> tuple[int, int]:
    """Numbers of a block's bias tables, and how many tables those are."""
    kinds = {"none": 0, "position": 1, "position_time": 2}[block.relative_bias]
    return (2 * block.max_length - 1) * (kinds > 0) + block.time_buckets * (kinds > 1), kinds


def _parameters(block: HSTUBlockOptions, s: _Sizes) -> int:
    """A block's two projections, and its norms' gain and shift where they have one."""
    return s.d * s.w + s.w + s.a * s.d + s.d + 2 * (s.d + s.a) * block.norm_affine


def _backward(block: HSTUBlockOptions, s: _Sizes) -> list[float]:
    """What the widest moments of the last block's backward pass add to what is then still kept.

    The attention: gradients of the residual, its output and the gate, what it makes, and the SiLU if it is made again.
    The projection: its gradient, and that put together from four. Gone by then is what came after the attention, and
    then what the attention kept.
    """
    after = s.attention_norm + (s.gated + s.mask + s.narrow) * s.a
    again = s.narrow * s.w * block.recompute_silu
    attention = WIDE * s.d + s.gated * s.a + s.narrow * (2 * s.a + 2 * s.q + s.a) + again
    projection = WIDE * s.d + 2 * s.narrow * s.w - s.narrow * s.w * (not block.recompute_silu)
    return [float(attention - after), float(projection - after)]
