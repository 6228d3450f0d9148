"""x"""
from __future__ import annotations
from typing import Any
from pipelines.estimate.layer_work import Formats, LayerWork
def sasrec_layers(options: Any, shared_length: float, formats: Formats) -> LayerWork:
    return LayerWork(0, 0, 0, 0, 0, 0, 0, 0, 0)
tisasrec_layers = sasrec_layers
