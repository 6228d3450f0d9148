"""The causal depthwise convolution as its equation reads: shifted copies of a padded view. The truth for fast paths."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from models.batch import Jagged


def causal_conv_reference(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
    """SiLU(convolution) over packed rows; shapes as in :func:`models.kernels.causal_conv.causal_conv`.

    Plain autograd in the dtype of its inputs (float64 works).
    """
    taps = weight.shape[1]
    padded = Jagged(x, offsets).to_padded()  # [U, L, D]
    length = padded.shape[1]
    history = functional.pad(padded, (0, 0, taps - 1, 0))  # zeros before every row
    total = bias.expand_as(padded)
    for tap in range(taps):
        total = total + history[:, tap : tap + length] * weight[:, tap]
    return functional.silu(Jagged.from_padded(total, offsets).values)
