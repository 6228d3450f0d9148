"""Which attention weights survive dropout: a hash of (seed, query, head, key), so that no mask is ever stored.

The backward pass asks the hash again. The seed is drawn from torch's generator of the CPU, whose state is part of every
checkpoint: a resumed run drops what it would have dropped. The compiled path computes the same hash.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEP = 0x9E3779B9  # 2^32 / golden ratio: neighbouring keys of one query get far-apart numbers
# A 32-bit mixer of two rounds, every input bit reaching every output bit: (shift, odd multiplier) twice, last shift.
ROUNDS = ((16, 0x21F0AAAD), (15, 0xD35A2D97))
LAST_SHIFT = 15
_WORD = 0xFFFFFFFF


def draw_seed() -> int:
    """63 bits from torch's generator of the CPU."""
    return int(torch.randint(2**63 - 1, ()))


def threshold(dropout: float) -> int:
    """A weight is dropped where its 32-bit number lies under this."""
    return min(round(dropout * 2**32), _WORD)


def keep_weights(seed: int, offsets: Tensor, heads: int, length: int, dropout: float) -> Tensor:
    """What each attention weight is multiplied by: 0 or ``1 / (1 - dropout)``.

    Args:
        seed: of :func:`draw_seed`.
        offsets: ``[U + 1]``, row borders; a query is known by its place among all packed tokens.
        heads: ``H``.
        length: ``L``, of the padded view.
        dropout: share of weights dropped, in [0, 1).

    Returns:
        ``[U, H, L, L]`` float64 on the device of ``offsets``; a query's numbers run along the last dimension.
    """
    device = offsets.device
    places = torch.arange(length, device=device)
    queries = (offsets[:-1, None] + places)[:, None, :] * heads + torch.arange(heads, device=device)[:, None]
    own = _mix((_mix((queries & _WORD) ^ (seed & _WORD)) + (seed >> 32)) & _WORD)  # [U, H, L]
    numbers = _mix((own[..., None] + places * STEP) & _WORD)  # [U, H, L, L]
    return (numbers >= threshold(dropout)).to(torch.float64) / (1.0 - dropout)


def _mix(numbers: Tensor) -> Tensor:
    """The mixer on 32-bit numbers held in int64; products may wrap, their low 32 bits stay right."""
    for shift, multiplier in ROUNDS:
        numbers = ((numbers ^ (numbers >> shift)) * multiplier) & _WORD
    return numbers ^ (numbers >> LAST_SHIFT)
