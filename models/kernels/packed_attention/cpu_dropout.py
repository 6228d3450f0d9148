"""Dropout of plain numbers on a CPU in one pass, with the hash of ``dropout.py``: no mask is drawn, stored or read.

Numbers lie in blocks of 4,096: the lane of a block's vectors is the query, the vector the key. Blocks are computed by
one thread each: bit-identical for any number of threads.
"""

# mypy: ignore-errors
# ruff: noqa: ANN
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.kernels.compiled import compiled, run_tasks
from models.kernels.packed_attention.cpu_lanes import keep_lanes, query_keys
from models.kernels.packed_attention.dropout import threshold
from models.kernels.simd import LANES, load, store

BLOCK = 4096
_TASKS = 16  # dealt to threads


@compiled("void(float32[::1],int64,int64,int64,int64,float32,float32[::1])")
def _drop(source, first, last, seed, limit, kept, target):
    """Blocks ``first .. last - 1`` of ``source`` to ``target``; numbers behind the last whole vector one by one."""
    count = source.size
    rest, survives = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for block in range(first, last):
        own = query_keys(block * LANES, 1, 0, seed)
        start = block * BLOCK
        for vector in range((min(start + BLOCK, count) - start) // LANES):
            place = start + vector * LANES
            store(target, place, load(source, place) * keep_lanes(own, vector, limit, kept))
        end = min(start + BLOCK, count)
        left = (end - start) % LANES
        if left:
            place, vector = end - left, (end - start) // LANES
            for lane in range(LANES):
                rest[lane] = source[place + lane] if lane < left else np.float32(0.0)
            store(survives, 0, load(rest, 0) * keep_lanes(own, vector, limit, kept))
            for lane in range(left):
                target[place + lane] = survives[lane]


def drop(x: Tensor, seed: int, share: float) -> Tensor:
    """``x`` of any shape, float32, with a share of its numbers 0 and the others grown by ``1 / (1 - share)``.

    Args:
        x: on the CPU.
        seed: of :func:`models.kernels.packed_attention.dropout.draw_seed`; equal seeds drop equal places.
        share: in [0, 1).
    """
    source = x.detach().contiguous()
    target = torch.empty_like(source)
    given, found = source.view(-1).numpy(), target.view(-1).numpy()
    blocks = -(-given.size // BLOCK)
    borders = np.linspace(0, blocks, min(_TASKS, max(blocks, 1)) + 1).astype(np.int64)
    settings = seed, threshold(share), 1 / (1 - share)

    def run(task: int) -> None:
        _drop(given, borders[task], borders[task + 1], *settings, found)

    run_tasks(run, len(borders) - 1)
    return target
