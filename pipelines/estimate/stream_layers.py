"""What a hyper-connection costs a token, on both paths of models/kernels/mhc_streams.

Letters: ``D`` width, ``n`` streams, ``k = 2n + n^2`` routes. Products forward, multiply-adds: ``nDk`` (routes), ``nD``
(read), ``n^2 D`` (mix); backward twice that. Elementwise: each of Sinkhorn's rounds adds and divides ``n^2`` numbers
twice. The compiled path makes Sinkhorn's rounds, and before a LayerNorm the mix, again in the backward pass; it pads
``D`` and ``k`` to whole vectors, which FLOPs leave out and bytes count.
"""

from __future__ import annotations

from models.sasrec import SASRecOptions
from pipelines.estimate.layer_sizes import WIDE, Sizes


def stream_products(options: SASRecOptions, s: Sizes) -> float:
    """Multiply-adds of a hyper-connection, a third of what forward and backward take together."""
    again = s.n**2 * s.d / 3 if s.fused and options.norm == "post" else 0.0
    return s.n * s.d * (s.routes + 1 + s.n) + again


def sinkhorn_flops(options: SASRecOptions, s: Sizes) -> float:
    """Of all blocks' Sinkhorn, a third of what forward and backward take together."""
    if not options.mhc:
        return 0.0
    rounds = options.blocks * 2 * options.mhc_sinkhorn_iterations * 4 * s.n**2
    return rounds * 4 / 3 if s.fused else float(rounds)


def connection_kept(options: SASRecOptions, s: Sizes) -> int:
    """Kept by a hyper-connection, with the sub-layer's output and without its input.

    Compiled: the streams (padded ones once for reading and once for writing), their products with the projection and
    one over their norm, the routes, the output in float32. With torch: the streams, their norm, the products,
    Sinkhorn's input, result and sums, two sigmoids, the routes, the output; before a LayerNorm its input.
    """
    n, streams = s.n, s.n * s.columns
    if s.fused:
        copies = 2 if s.columns > s.d else 1
        return WIDE * (copies * streams + 2 * s.held_routes + 1 + s.columns)
    sums = WIDE * 2 * options.mhc_sinkhorn_iterations * n
    kept = WIDE * (streams + 1 + 2 * n**2 + 2 * n + s.routes) + sums + s.narrow * (s.routes + s.d)
    # three products: of the normed streams, and two of the streams with routes, which autocast casts anew
    kept += s.narrow * (3 * streams + n + n**2) if s.mixed else WIDE * streams
    return kept + (WIDE * (streams + 2 * n) if options.norm == "post" else 0)


def connection_fixed(s: Sizes) -> int:
    """Kept by a hyper-connection whatever the batch: the projection where it had to be padded."""
    return WIDE * s.routes * s.n * s.columns if s.fused and s.columns > s.d else 0


def read_kept(options: SASRecOptions, s: Sizes, calls: int) -> int:
    """Kept of what is read from the streams, the sub-layer's input: wide, so that autocast casts it for each call.

    ``calls``: products that take it or, where there is one, its norm.
    """
    norm = 0 if options.norm == "post" else WIDE * (s.columns + 2)
    alone = s.columns if options.norm == "post" else s.d
    return norm + (s.narrow * s.d * calls if s.mixed else WIDE * alone)


def streams_backward(options: SASRecOptions, s: Sizes) -> list[float]:
    """What the streams add to what is kept at the widest moments of the backward pass; the last norm is gone by then.

    Both: two gradients of the streams. Compiled writing: beside them those of output and routes (a padded gradient is
    a copy). With torch: gradient, that of the mix and a product that is summed up.
    """
    streams = WIDE * s.n * s.columns
    if s.fused:
        copies = 3 if s.columns > s.d else 2
        return [float(copies * streams + WIDE * (s.columns + s.held_routes) - s.norm)]
    last = WIDE * (s.n * s.d + 2 * s.n) if options.norm == "post" else 0
    mix = 3 * streams + WIDE * s.n + (s.narrow * s.n * s.d if s.mixed else 0) - s.norm - last
    return [2.0 * streams - s.norm, float(mix)]


def streams_encode(options: SASRecOptions, s: Sizes, hidden: int) -> list[int]:
    """The widest moments without gradients, attention's apart; the block's own input lives through all of them.

    ``hidden`` tensors of the feed-forward layer; writing; with torch Sinkhorn's.
    """
    n, d, streams, normed = s.n, s.d, WIDE * s.n * s.columns, 0 if options.norm == "post" else WIDE * s.d
    routes = WIDE * s.held_routes
    feed_forward = 2 * streams + WIDE * (2 * s.columns + hidden * s.inner) + normed + routes
    if s.fused:
        padded = streams + WIDE * d if s.columns > d else 0  # copies of the streams and of the output
        return [feed_forward, 3 * streams + padded + WIDE * 2 * s.columns + normed + routes]
    write = 5 * streams + 2 * WIDE * d + normed + routes
    sinkhorn = 2 * streams + 2 * routes + WIDE * (2 * n**2 + 2 * options.mhc_sinkhorn_iterations * n)
    return [feed_forward, write, max(sinkhorn, 4 * streams)]
