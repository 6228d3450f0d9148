"""TiSASRec's attention under the name of a layer: see models/kernels/interval_attention."""

from models.kernels.interval_attention import UNITS, interval_attention, interval_buckets

__all__ = ["UNITS", "interval_attention", "interval_buckets"]
