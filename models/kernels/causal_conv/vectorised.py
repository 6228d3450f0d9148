"""The causal convolution in PyTorch alone: shifted copies of the packed tokens, cut at row starts by a mask."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from models.batch import Jagged


def causal_conv_torch(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
    """float32 or float64; arguments as in :func:`models.kernels.causal_conv.causal_conv`."""
    tokens, taps = x.shape[0], weight.shape[1]
    position = Jagged(x, offsets).position_of_token()  # [T]
    total = x * weight[:, -1] + bias
    for back in range(1, taps):
        earlier = functional.pad(x, (0, 0, back, 0))[:tokens]  # token t holds x[t - back]
        total = total + (earlier * (position >= back)[:, None]) * weight[:, taps - 1 - back]
    return functional.silu(total)
