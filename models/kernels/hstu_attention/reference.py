"""HSTU's attention as the equations read, on a padded view. The truth the fast paths are held to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.batch import Jagged
from models.kernels.hstu_attention.bias import time_bucket
from models.kernels.hstu_attention.mask import PLACE, visible


def hstu_attention_reference(
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
    """Tensors as in :func:`models.kernels.hstu_attention.hstu_attention`, an empty table where there is no bias.

    Plain autograd in the dtype of its inputs (float64 works), memory ``[U, H, L, L]``: for tests, not for training.
    """
    if q.shape[0] == 0:
        return torch.zeros_like(v)
    queries, keys, values = (Jagged(x, offsets).to_padded().transpose(1, 2) for x in (q, k, v))  # [U, H, L, d]
    numbers, own, following = (Jagged(x, offsets).to_padded() for x in (seen, times, next_times))  # [U, L, ...]
    scores = queries @ keys.transpose(-1, -2) * scale  # [U, H, L, L]
    if position.numel():
        place, furthest = numbers[..., PLACE].long(), position.numel() // 2
        apart = (place[:, :, None] - place[:, None, :]).clamp(-furthest, furthest)
        scores = scores + position[furthest + apart][:, None]
    if time.numel():
        scores = scores + time[time_bucket(following[:, :, None] - own[:, None, :], time.numel())][:, None]
    shown = visible(numbers, torch.arange(numbers.shape[1], device=q.device))
    weights = functional.silu(scores) / max_length * shown[:, None]
    return Jagged.from_padded((weights @ values).transpose(1, 2), offsets).values
