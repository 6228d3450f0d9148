"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


@dataclass(frozen=True)
class _View:
    """A part of the output that an operation wanted to keep."""

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


class Recomputed(saved_tensors_hooks):
    """The output of a cheap function; inside ``with``, operations that would keep it keep how to make it.

    ``kept = Recomputed(silu, x)``, then ``with kept: out = product(kept.output)``: of ``x`` and its SiLU only ``x``
    stays in memory between the passes. The output is made once more for all its users and let go after the last.

    Args:
        function: cheap, and gives the same numbers every time (no dropout).
        x: its input, which the function's own backward pass keeps anyway and which nobody may change in place.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.output = function(x)
        if self.output.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
            raise ValueError("the function gives its input back: there is nothing to save")
        source, storage = x.detach(), self.output.untyped_storage().data_ptr()
        made: list[Tensor] = []
        waiting = 0

        def pack(tensor: Tensor) -> Tensor | _View:
            nonlocal waiting
            if tensor.untyped_storage().data_ptr() != storage or tensor.dtype != dtype:
                return tensor
            waiting += 1
            return _View(tensor.shape, tensor.stride(), int(tensor.storage_offset()))

        def unpack(packed: Tensor | _View) -> Tensor:
            nonlocal waiting
            if isinstance(packed, Tensor):
                return packed
            with torch.no_grad(), torch.autocast(source.device.type, enabled=False):
                output = made.pop() if made else function(source).to(dtype)
            waiting -= 1
            if waiting > 0:
                made.append(output)
            return output.as_strided(packed.shape, packed.stride, packed.offset)

        dtype = self.output.dtype
        super().__init__(pack, unpack)
