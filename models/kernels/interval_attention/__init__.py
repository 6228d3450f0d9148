"""TiSASRec's attention: learned vectors for the time between two events, without a vector for each pair of events.

    score_ij = q_i . (k_j + RK[r_ij]) / sqrt(d),   out_i = sum_j a_ij (v_j + RV[r_ij])

Source: Li, Wang, McAuley 2020, "Time Interval Aware Self-Attention for Sequential Recommendation", WSDM. Its published
code holds ``[B, L, L, D]`` twice (1 GB each at 128 x 200 x 50).
"""

from __future__ import annotations

from torch import Tensor

from models.kernels.interval_attention.intervals import UNITS, interval_buckets
from models.kernels.paths import expect_shapes, resolve

__all__ = ["UNITS", "interval_attention", "interval_buckets"]


def interval_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    interval_keys: Tensor,
    interval_values: Tensor,
    timestamps: Tensor,
    offsets: Tensor,
    *,
    unit: str | None,
    dropout: float = 0.0,
    path: str | None = None,
) -> Tensor:
    """Causal attention with learned interval vectors over packed rows.

    Args:
        q: ``[T, H, d]``.
        k: ``[T, H, d]``, position vectors included.
        v: ``[T, H, d]``, position vectors included.
        interval_keys: ``RK``, ``[S + 1, H, d]``.
        interval_values: ``RV``, ``[S + 1, H, d]``.
        timestamps: ``[T]`` int64 seconds, never decreasing inside a row.
        offsets: ``[U + 1]`` int64, row borders.
        unit: of the intervals, see :func:`interval_buckets`.
        dropout: share of attention weights dropped.
        path: forces an implementation by name (also the environment's ``RECPOD_KERNELS``).

    Returns:
        ``[T, H, d]``; gradients for the first five arguments.

    Raises:
        ValueError: shapes that do not belong together, or a dropout outside [0, 1).
        KernelUnavailable: the forced path cannot run here.
    """
    tokens, table = tuple(q.shape), (interval_keys.shape[0], *q.shape[1:])
    expect_shapes("interval_attention", k=(k, tokens), v=(v, tokens), timestamps=(timestamps, tokens[:1]))
    expect_shapes("interval_attention", interval_keys=(interval_keys, table), interval_values=(interval_values, table))
    if not 0 <= dropout < 1:
        raise ValueError(f"interval_attention: dropout {dropout} is not in [0, 1)")
    function = resolve("interval_attention", q.device.type, path, q.dtype)
    tables = interval_keys, interval_values
    out: Tensor = function(q, k, v, *tables, timestamps, offsets, unit=unit, dropout=dropout)
    return out
