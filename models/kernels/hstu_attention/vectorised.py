"""HSTU's attention with PyTorch alone: rows of nearly equal length share a rectangle, computed again backward."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.kernels.hstu_attention.bias import bucket_borders
from models.kernels.hstu_attention.mask import PLACE, visible
from models.kernels.packed_attention.vectorised import equal_length_groups

RECTANGLE = 1 << 22  # numbers of one tensor of scores, unless one row needs more


def hstu_attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor,
    time: Tensor,
    offsets: Tensor,
    seen: Tensor,
    times: Tensor,
    next_times: Tensor,
    *,
    scale: float = 1.0,
    max_length: int = 1,
) -> Tensor:
    """Any float type and device; tensors as in the reference. Scores live for one rectangle at a time."""
    borders = offsets.cpu().numpy()
    lengths = np.diff(borders)
    limits = torch.tensor(bucket_borders(time.numel() or 1), dtype=torch.int64, device=q.device)
    parts, places = [], []
    for rows in _rectangles(lengths, q.shape[1]):
        longest, own = int(lengths[rows[0]]), lengths[rows, None]
        within = np.arange(longest)[None]
        # Places behind a row's end read its last token; what they give is not kept, and keys there are not seen.
        index = torch.from_numpy((borders[rows, None] + np.minimum(within, own - 1)).ravel()).to(q.device)
        real = torch.from_numpy(np.flatnonzero(within < own)).to(q.device)
        shape = len(rows), longest

        def attend(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            position: Tensor,
            time: Tensor,
            index: Tensor = index,
            shape: tuple[int, int] = shape,
        ) -> Tensor:
            queries, keys, values = (x.index_select(0, index).view(*shape, *x.shape[1:]) for x in (q, k, v))
            numbers, own, following = (x.index_select(0, index).view(*shape, -1) for x in (seen, times, next_times))
            scores = torch.einsum("uihd,ujhd->uhij", queries, keys) * scale  # [rows, H, L, L]
            if position.numel():
                place, furthest = numbers[..., PLACE].long(), position.numel() // 2
                apart = (place[:, :, None] - place[:, None, :]).clamp(-furthest, furthest)
                scores = scores + position[furthest + apart][:, None]
            if time.numel():
                apart = (following - own.transpose(1, 2)).abs()
                scores = scores + time[torch.bucketize(apart, limits, right=True)][:, None]
            shown = visible(numbers, torch.arange(shape[1], device=q.device))[:, None]
            weights = functional.silu(scores).div(max_length).masked_fill(~shown, 0)
            return torch.einsum("uhij,ujhe->uihe", weights, values)

        out = checkpoint(attend, q, k, v, position, time, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(out, Tensor)
        parts.append(out.flatten(0, 1).index_select(0, real))
        places.append(index.index_select(0, real))
    if not parts:
        return torch.zeros_like(v)
    return torch.cat(parts).index_select(0, torch.argsort(torch.cat(places)))


def _rectangles(lengths: np.ndarray, heads: int) -> list[np.ndarray]:
    """Row numbers of each rectangle, longest rows first."""
    found = []
    for rows in equal_length_groups(lengths):
        at_a_time = max(1, RECTANGLE // (heads * int(lengths[rows[0]]) ** 2))
        found += [rows[start : start + at_a_time] for start in range(0, len(rows), at_a_time)]
    return found
