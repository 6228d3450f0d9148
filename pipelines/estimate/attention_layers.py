"""What a token costs in the attention models, SASRec and TiSASRec, with and without hyper-connections.

Letters: ``D`` width, ``I`` inner width, ``n`` streams, ``k = 2n + n^2`` routes, ``S`` the largest interval, ``L`` the
tokens that a token shares its row with on average: a row of ``l`` has ``l (l + 1) / 2`` causal pairs, hence
``(L + 1) / 2`` for each token. Numbers are of 4 bytes unless they leave a matrix product under autocast.

Products forward, multiply-adds a token and block: SASRec's projections ``4 D^2``, TiSASRec's ``3 D^2``, the
feed-forward layer ``2 D I`` (swiglu 3); hyper-connections: see stream_layers.py.

Attention. SASRec: 2 products of ``D`` a causal pair forward, 5 backward (the scores again). TiSASRec compiled: likewise
for each causal pair and for each of ``S + 1`` intervals: scores and values forward; backward the scores again and the
gradients of weights, queries, keys and values. Its code leaves out intervals longer than the longest of sixteen
queries, which depends on the data: the count is that of histories longer than ``S`` units. TiSASRec with torch computes
the whole square, ``L`` pairs a token: 2 products a pair and 2 an interval forward, again (all but the last product),
and twice backward.

CPU counts are held against real layers by tests. Those for a GPU are read off the code and off what torch's operations
keep, and are not measured; of the path of rectangles, SASRec's under dropout, the CPU's run without dropout is tested.
"""

from __future__ import annotations

from models.sasrec import SASRecOptions
from models.tisasrec import TiSASRecOptions
from pipelines.estimate.layer_sizes import WIDE, Sizes, sizes_of, whole_vectors
from pipelines.estimate.layer_work import Formats, LayerWork, Rectangles, Strips
from pipelines.estimate.stream_layers import (
    connection_fixed,
    connection_kept,
    read_kept,
    sinkhorn_flops,
    stream_products,
    streams_backward,
    streams_encode,
)

RECTANGLE = 1 << 20  # numbers of one tensor of interval attention (a test compares)
# Passes over TiSASRec's rectangles, numbers of 4 bytes read or written forward, forward again and backward: by interval
# and by pair, for each head, and by pair for all heads together. They count as moved although a chunk may stay in a
# cache (a test compares with what real operations read and write).
BUCKET_PASSES, PAIR_PASSES, SHARED_PASSES = 20, 66, 10.5
# Compiled, elementwise on a causal pair forward: to find its interval 13 operations, again backward but no third time;
# and for each head an addition to look up and one to gather, backward twice as many.
FIND, LOOK_UP = 13 * 2 / 3, 2
RUNS = 16  # of rows, each with its own sums of the tables' gradients (a test compares)


def sasrec_layers(options: SASRecOptions, shared_length: float, formats: Formats) -> LayerWork:
    """SASRec. Kept of attention, beside its input: q, k, v and the input of the last product.

    On a GPU: with float16 or bfloat16 and no dropout packed tokens; else rectangles of gathered q, k, v, the output
    before it is put back, and three lists of places. Both keep a number a head for the softmax.
    """
    s = sizes_of(options, formats)
    d, heads = s.d, options.heads
    if s.cpu:
        padded, copies = s.padded, s.padded > d
        flat = s.narrow * d if s.mixed or heads > 1 else WIDE * padded  # of one head it is a view of the padded output
        attention = WIDE * 3 * padded + flat
        widest = 3 * d + padded + max(3 * padded * copies, d + d * copies)
    else:
        gathered = options.dropout > 0 or not s.mixed
        attention = s.narrow * (3 * d + d) + WIDE * heads + (s.narrow * d + 24 if gathered else 0)
        widest = 11 * d  # q, k, v, all three gathered, the output, made adjacent, put together, put back, projected
    block = _block(options, s, attention_kept=attention, calls=3)
    return LayerWork(
        parameters=options.max_length * d + options.blocks * (d * d + d) + _shared_parameters(options, s),
        product_flops=2.0 * options.blocks * d * d + _shared_products(options, s),
        scan_flops=sinkhorn_flops(options, s),
        saved=s.mask * d + 8 + options.blocks * block + s.norm,
        saved_row=0.0,
        encode=max(WIDE * (widest + _held(options, s)), *_encode(options, s)),
        backward=max(_backward(options, s)),
        backward_row=0.0,
        backward_fixed=0.0,
        attention_flops=options.blocks * 3.5 * 4 * d * (shared_length + 1) / 2,
        saved_fixed=float(_fixed(options, s)),
    )


def tisasrec_layers(options: TiSASRecOptions, shared_length: float, formats: Formats) -> LayerWork:
    """TiSASRec. Kept of attention, beside its input: q, k, v.

    Compiled also the time, unless a unit is given, and both tables by head. With torch for every pair of a row its
    interval, 8 bytes; rectangles, of ``RECTANGLE`` numbers or of one row, live one at a time and are computed again
    backward.
    """
    s = sizes_of(options, formats)
    d, tables, drops = s.d, (options.time_span + 1) * s.d, options.dropout > 0
    times = 8 if options.time_unit is None else 0
    rectangles = 3 * s.narrow * d + 24  # index, real places, their order
    attention = WIDE * 3 * s.padded + times if s.strips else rectangles
    block = _block(options, s, attention_kept=attention, calls=3)
    by_head = 2 * WIDE * whole_vectors(options.time_span + 1) * s.padded
    if s.strips:
        fixed = options.blocks * by_head
    else:  # the dropped tables, or casts of them in every block
        fixed = 2 * tables * (s.narrow * options.blocks if s.mixed else WIDE * drops)
    fixed += 2 * tables * s.mask + _fixed(options, s)
    flops, elementwise, streamed = _interval_work(options, s, shared_length)
    return LayerWork(
        parameters=2 * options.max_length * d + 2 * tables + _shared_parameters(options, s),
        product_flops=_shared_products(options, s),
        scan_flops=sinkhorn_flops(options, s) + options.blocks * elementwise,
        saved=3 * s.mask * d + 8 + options.blocks * block + s.norm,
        saved_row=0.0,
        encode=max(WIDE * 2 * d + part for part in _encode(options, s)),
        backward=max(_backward(options, s)),
        backward_row=0.0,
        backward_fixed=0.0,
        attention_flops=options.blocks * flops,
        saved_pair=0.0 if s.strips else 8.0 * options.blocks,
        saved_fixed=float(fixed),
        streamed=options.blocks * streamed,
        working=_strips(options, s, by_head) if s.strips else _rectangles(options, s),
    )


def _interval_work(options: TiSASRecOptions, s: Sizes, shared_length: float) -> tuple[float, float, float]:
    """Of a block's attention: FLOPs of its products, a third of the elementwise ones, bytes moved that nobody keeps.

    The compiled path's strips are sixteen queries wide and stay in a cache, as SASRec's do.
    """
    buckets, product = options.time_span + 1, 2 * s.d
    if s.strips:
        pairs = (shared_length + 1) / 2
        return 7.0 * product * (pairs + buckets), pairs * (FIND + LOOK_UP * s.heads), 0.0
    forward = 2 * product * (shared_length + buckets)
    pairs = (PAIR_PASSES * s.heads + SHARED_PASSES) * shared_length
    return 4 * forward - product * buckets, 0.0, WIDE * (BUCKET_PASSES * s.heads * buckets + pairs)


def _strips(options: TiSASRecOptions, s: Sizes, by_head: int) -> Strips:
    """Alive without gradients: both positions' vectors, q, k, v (padded ones twice), the output, times, their units."""
    copies = 3 * s.padded if s.padded > s.d else 0
    return Strips(
        runs=RUNS,
        tables=by_head,
        held=WIDE * (5 * s.d + copies + s.padded + _held(options, s)) + 16,
        beside=_attending(options, s),
    )


def _rectangles(options: TiSASRecOptions, s: Sizes) -> Rectangles:
    return Rectangles(
        RECTANGLE,
        s.heads,
        options.time_span + 1,
        s.d,
        options.dropout > 0,
        share=s.narrow / WIDE if s.cpu else 1.0,  # a GPU's softmax leaves bfloat16
        held=WIDE * (6 * s.d + _held(options, s)) + 16,
        beside=_attending(options, s),
    )


def _attending(options: TiSASRecOptions, s: Sizes) -> float:
    """What the last block's attention adds while its gradients are computed, its working memory apart.

    Gradients of the residual, the output (padded: a copy), q, k, v, and of the streams (twice with torch; compiled,
    those of the routes take the routes' place); gone by then is what came after it, and the output.
    """
    d, calls = s.d, 2 if options.activation == "swiglu" else 1
    copy = s.padded if s.padded > d else 0
    grown = WIDE * (2 * d + 3 * s.padded + copy) if s.strips else (3 * WIDE + 2 * s.narrow) * d
    gone = s.norm + _feed_forward(options, s)
    if options.mhc:
        output, gradients = (WIDE * s.columns, 1) if s.fused else (s.narrow * d, 2)
        grown += gradients * WIDE * s.n * s.columns
        return float(grown - gone - output - connection_kept(options, s) - read_kept(options, s, calls))
    norms = 2 * s.norm if options.norm == "post" else 0
    return float(grown - gone - norms - _around(options, s, calls))


def _shared_parameters(options: SASRecOptions, s: Sizes) -> int:
    """Three projections, the feed-forward layer, norms, hyper-connections."""
    d, inner = s.d, s.inner
    into = 2 if options.activation == "swiglu" else 1
    streams = (s.routes * s.n * d + 3 + s.routes) if options.mhc else 0
    block = 3 * (d * d + d) + into * (d * inner + inner) + inner * d + d + 2 * (2 * d + streams)
    return options.blocks * block + 2 * d


def _shared_products(options: SASRecOptions, s: Sizes) -> float:
    d, into = s.d, 2 if options.activation == "swiglu" else 1
    streams = 2 * stream_products(options, s) if options.mhc else 0
    return 2.0 * options.blocks * (3 * d * d + (into + 1) * d * s.inner + streams)


def _feed_forward(options: SASRecOptions, s: Sizes) -> int:
    """Kept by the feed-forward layer, its input apart: what the activation needs, dropout's masks, the last input.

    relu needs its result alone, which is the last product's input where nothing is dropped.
    """
    drops = options.dropout > 0
    numbers = {"relu": drops, "gelu": 1, "silu": 1, "swiglu": 3}[options.activation] + 1
    return (s.narrow * numbers + s.narrow_mask) * s.inner + s.narrow_mask * s.d


def _around(options: SASRecOptions, s: Sizes, calls: int) -> int:
    """Kept around a sub-layer: its norm (in ``post`` of a plain residual the caller's) and its input.

    Autocast casts a wide input anew for each of the ``calls`` that multiply it.
    """
    inputs = s.narrow * s.d * calls if s.mixed else WIDE * s.d
    return inputs + (s.norm if options.norm != "post" else 0)


def _block(options: SASRecOptions, s: Sizes, *, attention_kept: int, calls: int) -> int:
    """Kept by a block: two sub-layers with what stands around them."""
    calls_inside = 2 if options.activation == "swiglu" else 1
    inside = attention_kept + _feed_forward(options, s)
    if not options.mhc:
        norms = 2 * s.norm if options.norm == "post" else 0
        return inside + norms + _around(options, s, calls) + _around(options, s, calls_inside)
    read = read_kept(options, s, calls) + read_kept(options, s, calls_inside)
    return inside + 2 * connection_kept(options, s) + read


def _fixed(options: SASRecOptions, s: Sizes) -> int:
    """Kept by all hyper-connections whatever the batch."""
    return options.blocks * 2 * connection_fixed(s) if options.mhc else 0


def _backward(options: SASRecOptions, s: Sizes) -> list[float]:
    """What the widest moments of the backward pass add to what is then still kept.

    The last norm: its two gradients. The feed-forward layer: its own, the residual's and the output's. Gone by then
    are norms and dropout's last mask.
    """
    d = s.d
    if options.mhc:
        return streams_backward(options, s)
    after = 2 * s.norm + s.narrow_mask * d if options.norm == "post" else s.norm + s.narrow_mask * d
    return [2.0 * WIDE * d, float(s.narrow * s.inner + 2 * WIDE * d - after)]


def _held(options: SASRecOptions, s: Sizes) -> int:
    """Numbers alive during attention without gradients: the input, normed too, and the streams that it is read from."""
    streams = s.n * s.columns + s.held_routes if options.mhc else 0
    return s.d * (1 if options.norm == "post" else 2) + streams


def _encode(options: SASRecOptions, s: Sizes) -> list[int]:
    """The widest moments of a forward pass without gradients, attention's apart."""
    hidden = 3 if options.activation == "swiglu" else 2
    if options.mhc:
        return streams_encode(options, s, hidden)
    return [WIDE * (3 * s.d + hidden * s.inner) + (0 if options.norm == "post" else WIDE * s.d)]
