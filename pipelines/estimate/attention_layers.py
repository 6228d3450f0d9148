"""What a token costs in the attention models, SASRec and TiSASRec, with and without hyper-connections.

Letters: ``D`` width, ``I`` inner width, ``n`` streams, ``k = 2n + n^2`` routes, ``S`` the largest interval, ``L`` the
tokens that a token shares its row with on average: a row of ``l`` has ``l (l + 1) / 2`` causal pairs, hence
``(L + 1) / 2`` for each token. Numbers are of 4 bytes unless they leave a matrix product under autocast.

Products forward, multiply-adds a token and block: SASRec's projections ``4 D^2``, TiSASRec's ``3 D^2``, the
feed-forward layer ``2 D I`` (swiglu 3); each of a block's two hyper-connections ``nDk`` (routes), ``nD`` (read),
``n^2 D`` (mix). Elementwise: each of Sinkhorn's rounds adds and divides ``n^2`` numbers twice.

Attention. SASRec: 2 products of ``D`` a causal pair forward, 5 backward (the scores again). TiSASRec computes the whole
square, ``L`` pairs a token: 2 products of ``D`` a pair and 2 for each of ``S + 1`` intervals; forward, again (all but
the last product), and twice backward.

CPU counts are held against real layers by tests. Those for a GPU are read off the code and off what torch's operations
keep, and are not measured; of the path of rectangles, SASRec's under dropout, the CPU's run without dropout is tested.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.sasrec import SASRecOptions
from models.tisasrec import TiSASRecOptions
from pipelines.estimate.layer_work import Formats, LayerWork, Rectangles

WIDE = 4
LANES = 16  # the compiled attention pads a head's width to whole vectors (a test compares)
RECTANGLE = 1 << 20  # numbers of one tensor of interval attention (a test compares)
# Passes over TiSASRec's rectangles, numbers of 4 bytes read or written forward, forward again and backward: by interval
# and by pair, for each head, and by pair for all heads together. They count as moved although a chunk may stay in a
# cache (a test compares with what real operations read and write).
BUCKET_PASSES, PAIR_PASSES, SHARED_PASSES = 20, 66, 10.5


@dataclass(frozen=True)
class _Sizes:
    """Sizes and bytes that all parts need.

    Attributes:
        d: width.
        inner: of the feed-forward layer.
        n: streams, 1 without hyper-connections.
        narrow: bytes of a number out of a product.
        mask: bytes of a number of dropout's mask over wide numbers; 0 without dropout.
        narrow_mask: likewise over numbers out of a product.
        cpu: whether on a CPU.
    """

    d: int
    inner: int
    n: int
    narrow: int
    mask: int
    narrow_mask: int
    cpu: bool

    @property
    def mixed(self) -> bool:
        """Whether under autocast."""
        return self.narrow < WIDE

    @property
    def norm(self) -> int:
        """LayerNorm's input and two numbers."""
        return WIDE * (self.d + 2)

    @property
    def routes(self) -> int:
        """Of one hyper-connection."""
        return 2 * self.n + self.n**2


def _sizes(options: SASRecOptions, formats: Formats) -> _Sizes:
    cpu, drops = formats.device == "cpu", options.dropout > 0
    return _Sizes(
        d=options.hidden,
        inner=options.inner,
        n=options.mhc_expansion_rate if options.mhc else 1,
        narrow=formats.narrow,
        mask=(WIDE if cpu else 1) * drops,  # numbers on a CPU, bools on a GPU
        narrow_mask=(formats.narrow if cpu else 1) * drops,
        cpu=cpu,
    )


def sasrec_layers(options: SASRecOptions, shared_length: float, formats: Formats) -> LayerWork:
    """SASRec. Kept of attention, beside its input: q, k, v and the input of the last product.

    On a GPU: with float16 or bfloat16 and no dropout packed tokens; else rectangles of gathered q, k, v, the output
    before it is put back, and three lists of places. Both keep a number a head for the softmax.
    """
    s = _sizes(options, formats)
    d, heads = s.d, options.heads
    if s.cpu:
        padded = heads * -(-(d // heads) // LANES) * LANES
        copies = padded > d
        attention = WIDE * 3 * padded + s.narrow * d
        widest = 3 * d + padded + max(3 * padded * copies, d + d * copies)
    else:
        gathered = options.dropout > 0 or not s.mixed
        attention = s.narrow * (3 * d + d) + WIDE * heads + (s.narrow * d + 24 if gathered else 0)
        widest = 11 * d  # q, k, v, all three gathered, the output, made adjacent, put together, put back, projected
    block = _block(options, s, attention_kept=attention, output_kept=s.narrow * d, calls=3)
    return LayerWork(
        parameters=options.max_length * d + options.blocks * (d * d + d) + _shared_parameters(options, s),
        product_flops=2.0 * options.blocks * d * d + _shared_products(options, s),
        scan_flops=_sinkhorn(options, s),
        saved=s.mask * d + 8 + options.blocks * block + s.norm,
        saved_row=0.0,
        encode=max(WIDE * (widest + _held(options, s)), *_encode(options, s)),
        backward=max(_backward(options, s)),
        backward_row=0.0,
        backward_fixed=0.0,
        attention_flops=options.blocks * 3.5 * 4 * d * (shared_length + 1) / 2,
    )


def tisasrec_layers(options: TiSASRecOptions, shared_length: float, formats: Formats) -> LayerWork:
    """TiSASRec. Kept of attention, beside its input: q, k, v, and for every pair of a row its interval, 8 bytes.

    Its rectangles, of ``RECTANGLE`` numbers or of one row, live one at a time and are computed again backward.
    """
    s = _sizes(options, formats)
    d, buckets, drops = s.d, options.time_span + 1, options.dropout > 0
    attention = s.narrow * d + WIDE * 2 * d + 24  # and index, real places, their order
    block = _block(options, s, attention_kept=attention, output_kept=s.narrow * d, calls=3)
    tables = buckets * d
    per_pair, per_bucket = 2 * 2 * d, 2 * 2 * d  # FLOPs
    forward = per_pair * shared_length + per_bucket * buckets
    pairs = (PAIR_PASSES * options.heads + SHARED_PASSES) * shared_length
    streamed = WIDE * (BUCKET_PASSES * options.heads * buckets + pairs)
    return LayerWork(
        parameters=2 * options.max_length * d + 2 * tables + _shared_parameters(options, s),
        product_flops=_shared_products(options, s),
        scan_flops=_sinkhorn(options, s),
        saved=3 * s.mask * d + 8 + options.blocks * block + s.norm,
        saved_row=0.0,
        encode=max(WIDE * 2 * d + part for part in _encode(options, s)),
        backward=max(_backward(options, s)),
        backward_row=0.0,
        backward_fixed=0.0,
        attention_flops=options.blocks * (4 * forward - per_bucket / 2 * buckets),
        saved_pair=8.0 * options.blocks,
        saved_fixed=2 * tables * (WIDE + s.mask) * drops,
        streamed=options.blocks * streamed,
        rectangles=Rectangles(
            RECTANGLE,
            options.heads,
            buckets,
            d,
            drops,
            share=s.narrow / WIDE if s.cpu else 1.0,  # a GPU's softmax leaves bfloat16
            held=WIDE * (6 * d + _held(options, s)) + 16,
            beside=_attending(options, s),
        ),
    )


def _attending(options: TiSASRecOptions, s: _Sizes) -> float:
    """What the last block's attention adds while it is computed again, its rectangle apart.

    Gradients of the residual, the output, q, k, v, and of the streams twice; gone by then is what came after it.
    """
    d, calls = s.d, 2 if options.activation == "swiglu" else 1
    grown = (3 * WIDE + 2 * s.narrow) * d
    gone = s.norm + _feed_forward(options, s)
    if options.mhc:
        outputs = 2 * s.narrow * d
        return grown + 2.0 * WIDE * s.n * d - gone - outputs - _connection(options, s) - _read(options, s, calls)
    norms = 2 * s.norm if options.norm == "post" else 0
    return float(grown - gone - norms - _around(options, s, calls))


def _shared_parameters(options: SASRecOptions, s: _Sizes) -> int:
    """Three projections, the feed-forward layer, norms, hyper-connections."""
    d, inner = s.d, s.inner
    into = 2 if options.activation == "swiglu" else 1
    streams = (s.routes * s.n * d + 3 + s.routes) if options.mhc else 0
    block = 3 * (d * d + d) + into * (d * inner + inner) + inner * d + d + 2 * (2 * d + streams)
    return options.blocks * block + 2 * d


def _shared_products(options: SASRecOptions, s: _Sizes) -> float:
    d, into = s.d, 2 if options.activation == "swiglu" else 1
    streams = 2 * s.n * d * (s.routes + 1 + s.n) if options.mhc else 0
    return 2.0 * options.blocks * (3 * d * d + (into + 1) * d * s.inner + streams)


def _sinkhorn(options: SASRecOptions, s: _Sizes) -> float:
    return float(options.blocks * 2 * options.mhc_sinkhorn_iterations * 4 * s.n**2) if options.mhc else 0.0


def _feed_forward(options: SASRecOptions, s: _Sizes) -> int:
    """Kept by the feed-forward layer, its input apart: what the activation needs, dropout's masks, the last input.

    relu needs its result alone, which is the last product's input where nothing is dropped.
    """
    drops = options.dropout > 0
    numbers = {"relu": drops, "gelu": 1, "silu": 1, "swiglu": 3}[options.activation] + 1
    return (s.narrow * numbers + s.narrow_mask) * s.inner + s.narrow_mask * s.d


def _around(options: SASRecOptions, s: _Sizes, calls: int) -> int:
    """Kept around a sub-layer: its norm (in ``post`` of a plain residual the caller's) and its input.

    Autocast casts a wide input anew for each of the ``calls`` that multiply it.
    """
    inputs = s.narrow * s.d * calls if s.mixed else WIDE * s.d
    return inputs + (s.norm if options.norm != "post" else 0)


def _block(options: SASRecOptions, s: _Sizes, *, attention_kept: int, output_kept: int, calls: int) -> int:
    """Kept by a block: two sub-layers with what stands around them."""
    calls_inside = 2 if options.activation == "swiglu" else 1
    feed_forward = _feed_forward(options, s)
    if not options.mhc:
        norms = 2 * s.norm if options.norm == "post" else 0
        return attention_kept + feed_forward + norms + _around(options, s, calls) + _around(options, s, calls_inside)
    outputs = output_kept + s.narrow * s.d
    around = 2 * _connection(options, s) + _read(options, s, calls) + _read(options, s, calls_inside)
    return attention_kept + feed_forward + outputs + around


def _read(options: SASRecOptions, s: _Sizes, calls: int) -> int:
    """Kept of what is read from the streams: narrow already, so that no cast of it is needed unless a norm widens it.

    A CPU's LayerNorm stays narrow; a GPU's, under autocast, is wide.
    """
    d, narrow = s.d, s.narrow
    if options.norm == "post":
        return narrow * d
    if not s.mixed or s.cpu:
        return 2 * narrow * d + 2 * WIDE
    casts = calls if options.norm == "pre" or calls < 3 else 1  # ``query``: keys and values come from what was read
    return s.norm + narrow * d * casts + (narrow * d if options.norm == "query" and calls == 3 else 0)


def _connection(options: SASRecOptions, s: _Sizes) -> int:
    """Kept by a hyper-connection, its output apart: the streams, their norm, routes and Sinkhorn's sums."""
    n, streams, routes = s.n, s.n * s.d, s.routes
    sums = WIDE * 2 * options.mhc_sinkhorn_iterations * n
    kept = WIDE * streams + WIDE + s.narrow * routes + 2 * WIDE * n**2 + sums + WIDE * 3 * n + s.narrow * n**2
    # three products: of the normed streams, and two of the streams, which autocast casts anew
    kept += 3 * s.narrow * streams + s.narrow * n if s.mixed else WIDE * streams
    return kept + (WIDE * (streams + 2 * n) if options.norm == "post" else 0)


def _backward(options: SASRecOptions, s: _Sizes) -> list[float]:
    """What the widest moments of the backward pass add to what is then still kept.

    The last norm: its two gradients. The feed-forward layer: its own, the residual's and the output's. The streams:
    gradient, that of the mix and a product that is summed up. Gone by then are norms and dropout's last mask.
    """
    d, gone = s.d, s.norm
    if options.mhc:
        streams, last = WIDE * s.n * d, WIDE * (s.n * d + 2 * s.n) if options.norm == "post" else 0
        mix = 3 * streams + WIDE * s.n + (s.narrow * s.n * d if s.mixed else 0) - gone - last
        return [2.0 * streams - gone, float(mix)]
    after = 2 * s.norm + s.narrow_mask * d if options.norm == "post" else s.norm + s.narrow_mask * d
    return [2.0 * WIDE * d, float(s.narrow * s.inner + 2 * WIDE * d - after)]


def _held(options: SASRecOptions, s: _Sizes) -> int:
    """Numbers alive during attention without gradients: the input, normed too, and the streams that it is read from."""
    streams = s.n * s.d + s.routes if options.mhc else 0
    return s.d * (1 if options.norm == "post" else 2) + streams


def _encode(options: SASRecOptions, s: _Sizes) -> list[int]:
    """The widest moments of a forward pass without gradients, attention's apart."""
    d, normed = s.d, 0 if options.norm == "post" else WIDE * s.d
    hidden = 3 if options.activation == "swiglu" else 2
    if not options.mhc:
        return [WIDE * (3 * d + hidden * s.inner) + normed]
    n, streams, routes = s.n, WIDE * s.n * d, WIDE * (2 * s.n + s.n**2)
    feed_forward = 2 * streams + WIDE * (2 * d + hidden * s.inner) + normed + routes
    write = 5 * streams + 2 * WIDE * d + normed + routes
    sinkhorn = 2 * streams + 2 * routes + WIDE * (2 * n**2 + 2 * options.mhc_sinkhorn_iterations * n)
    return [feed_forward, write, max(sinkhorn, 4 * streams)]
