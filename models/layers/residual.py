"""What stands around a sub-layer F: its LayerNorm, and a residual or hyper-connections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from models.layers.hyper_connections import HyperConnection

Norm = Literal["post", "pre", "query"]
SubLayer = Callable[[Tensor, Tensor], Tensor]
"""F(queries, context), both ``[T, D]``, to ``[T, D]``, without a residual of its own."""


@dataclass(frozen=True)
class StreamOptions:
    """Hyper-connections: how many streams, and how they start."""

    streams: int
    iterations: int
    init_gate: float


class Residual(nn.Module):
    """``post``: LN(x + F(x, x)). ``pre``: x + F(LN x, LN x). ``query``, the papers' own: LN x + F(LN x, x).

    With hyper-connections x is what is read from the streams ``X``, and the residual is ``H_res X + H_post^T F``:
    ``post`` normalises every stream afterwards, ``pre`` and ``query`` differ in the context alone.

    Args:
        width: ``D``.
        norm: where the LayerNorm stands.
        streams: hyper-connections, or None for a plain residual.
    """

    def __init__(self, width: int, norm: Norm, streams: StreamOptions | None) -> None:
        super().__init__()
        self.placed = norm
        self.norm = nn.LayerNorm(width, eps=1e-8)
        self.connection = (
            None if streams is None else HyperConnection(width, streams.streams, streams.iterations, streams.init_gate)
        )

    def forward(self, x: Tensor, sub_layer: SubLayer) -> Tensor:
        """``x`` ``[T, D]``, or ``[T, n, D]`` with hyper-connections, to the same shape."""
        if self.connection is None:
            if self.placed == "post":
                return self.norm(x + sub_layer(x, x))
            normed = self.norm(x)
            return x + sub_layer(normed, normed) if self.placed == "pre" else normed + sub_layer(normed, x)
        read, routes = self.connection.read(x)  # [T, D]
        if self.placed == "post":
            return self.connection.write(routes, sub_layer(read, read), self.norm)
        normed = self.norm(read)
        output = sub_layer(normed, normed if self.placed == "pre" else read)
        return self.connection.write(routes, output)

    def newest(self, x: Tensor, chosen: Tensor, sub_layer: SubLayer) -> Tensor:
        """What :meth:`forward` gives for the tokens ``chosen`` ``[U]`` alone, ``[U, D]``, without hyper-connections.

        ``sub_layer`` takes queries ``[U, D]`` and the context ``[T, D]`` of all tokens.
        """
        if self.connection is not None:
            raise ValueError("with hyper-connections every token's streams are needed")
        own = x.index_select(0, chosen)
        if self.placed == "post":
            return self.norm(own + sub_layer(own, x))
        if self.placed == "pre":
            normed = self.norm(x)
            return own + sub_layer(normed.index_select(0, chosen), normed)
        normed = self.norm(own)
        return normed + sub_layer(normed, x)
