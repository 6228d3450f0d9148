"""Kernels over packed jagged rows: selective scan (Mamba), diagonal scan (S5), causal convolution, attention.

Each has one signature and several implementations that give the same numbers: ``reference`` (the equations as they
read), ``torch`` (PyTorch alone), ``numba`` (compiled, CPU), ``triton`` and ``mamba`` (GPU). The best one that runs here
is taken; ``path=`` or ``RECPOD_KERNELS`` (``torch``, or ``selective_scan=torch,causal_conv=numba``) forces another.
"""

from models.kernels.causal_conv import causal_conv
from models.kernels.check import KernelCheck, chosen_paths, self_check
from models.kernels.diagonal_scan import diagonal_scan
from models.kernels.hstu_attention import hstu_attention
from models.kernels.interval_attention import interval_attention
from models.kernels.mhc_streams import mhc_read, mhc_write
from models.kernels.packed_attention import packed_attention
from models.kernels.paths import KernelUnavailable
from models.kernels.selective_scan import selective_scan

__all__ = [
    "KernelCheck",
    "KernelUnavailable",
    "causal_conv",
    "chosen_paths",
    "diagonal_scan",
    "hstu_attention",
    "interval_attention",
    "mhc_read",
    "mhc_write",
    "packed_attention",
    "selective_scan",
    "self_check",
]
