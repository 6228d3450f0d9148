"""Packed attention with PyTorch alone: rows of nearly equal length share a rectangle, one fused call a rectangle."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

MAX_PADDING = 0.05  # of a rectangle's tokens; the loop below is over rectangles, never over rows


def equal_length_groups(lengths: np.ndarray, max_padding: float = MAX_PADDING) -> list[np.ndarray]:
    """Rows of nearly equal length: as few groups as padding of at most ``max_padding`` of a group's tokens allows.

    Args:
        lengths: ``[U]`` int64.
        max_padding: padded places that a group may have, as a share of its tokens.

    Returns:
        Row numbers of each group, longest rows first; rows without tokens are in none.
    """
    order = np.argsort(-lengths, kind="stable")[: int((lengths > 0).sum())]
    groups, longest_first = [], lengths[order]
    while len(order):
        tokens = longest_first.cumsum()
        padding = longest_first[0] * np.arange(1, len(order) + 1) - tokens
        count = int(np.searchsorted(padding > max_padding * tokens, True))  # the share of padding never falls
        groups.append(order[:count])
        order, longest_first = order[count:], longest_first[count:]
    return groups


def packed_attention_torch(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, dropout: float = 0.0, longest: int | None = None
) -> Tensor:
    """Any float type and device; dropout draws from the generator of the device.

    Arguments as in :func:`models.kernels.packed_attention.packed_attention`.
    """
    if longest is not None:
        return _one_rectangle(q, k, v, offsets, dropout, longest)
    borders = offsets.cpu().numpy()
    lengths = np.diff(borders)
    parts, places = [], []
    for rows in equal_length_groups(lengths):
        longest, own = int(lengths[rows[0]]), lengths[rows, None]
        position = np.arange(longest)[None]
        # Places behind a row's end read its last token; causality keeps them from every real query.
        index = torch.from_numpy((borders[rows, None] + np.minimum(position, own - 1)).ravel()).to(q.device)
        shape = len(rows), longest, *q.shape[1:]
        queries, keys, values = (x.index_select(0, index).view(shape).transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)  # [rows, H, L, d]
        real = torch.from_numpy(np.flatnonzero(position < own)).to(q.device)
        parts.append(out.transpose(1, 2).flatten(0, 1).index_select(0, real))
        places.append(index.index_select(0, real))
    if not parts:
        return torch.zeros_like(q)
    return torch.cat(parts).index_select(0, torch.argsort(torch.cat(places)))


def _one_rectangle(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, dropout: float, longest: int) -> Tensor:
    """All rows as one rectangle ``[U, longest]``: more is computed, but nothing depends on the rows' lengths."""
    rows, tokens = offsets.numel() - 1, q.shape[0]
    if not rows or not tokens:
        return torch.zeros_like(q)
    lengths, position = offsets.diff()[:, None], torch.arange(longest, device=q.device)
    # Places behind a row's end read its last token, as above; an empty row reads any.
    places = offsets[:-1, None] + torch.minimum(position, (lengths - 1).clamp(min=0))
    index = places.clamp(max=tokens - 1).flatten()
    queries, keys, values = (
        x.index_select(0, index).view(rows, longest, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)
    )
    out = scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)  # [U, H, L, d]
    row = torch.repeat_interleave(torch.arange(rows, device=q.device), lengths[:, 0], output_size=tokens)  # [T]
    own = row * longest + torch.arange(tokens, device=q.device) - offsets.index_select(0, row)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, own)
