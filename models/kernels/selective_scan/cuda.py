"""The selective scan through mamba-ssm's CUDA kernel, which wants a rectangle: rows are padded here and cut again."""

from __future__ import annotations

from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor

from models.batch import Jagged


def selective_scan_mamba(
    x: Tensor,
    dt: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    z: Tensor,
    offsets: Tensor,
) -> Tensor:
    """float32; arguments as in :func:`models.kernels.selective_scan.selective_scan`.

    Causal: what stands in the padding after a row's end reaches none of its tokens.
    """
    wide_x, wide_dt, wide_b, wide_c, wide_z = (  # [U, D, L]; b and c [U, N, L]
        Jagged(v, offsets).to_padded().transpose(1, 2).contiguous() for v in (x, dt, b, c, z)
    )
    y = selective_scan_fn(wide_x, wide_dt, a, wide_b, wide_c, skip, z=wide_z, delta_bias=dt_bias, delta_softplus=True)
    return Jagged.from_padded(y.transpose(1, 2), offsets).values
