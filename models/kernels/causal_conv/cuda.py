"""The causal convolution through causal-conv1d's CUDA kernel, which wants a rectangle: rows are padded, then cut."""

from __future__ import annotations

from causal_conv1d import causal_conv1d_fn
from torch import Tensor

from models.batch import Jagged


def causal_conv_mamba(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
    """float32, 2 to 4 taps; arguments as in :func:`models.kernels.causal_conv.causal_conv`."""
    wide = Jagged(x, offsets).to_padded().transpose(1, 2).contiguous()  # [U, D, L]
    y = causal_conv1d_fn(wide, weight.contiguous(), bias, activation="silu")
    return Jagged.from_padded(y.transpose(1, 2), offsets).values
