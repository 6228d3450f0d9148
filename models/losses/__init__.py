"""Losses over item catalogues: token states and an item table in, the sum over tokens out, never ``[tokens, items]``.

>>> options = LossOptions(name="softmax")
>>> total = compute_loss(options, states, table, targets, generator)   # doctest: +SKIP
>>> (total / targets.numel()).backward()                               # doctest: +SKIP
"""

from models.losses.full import full_softmax
from models.losses.options import LossOptions, compute_loss
from models.losses.sampled import bpr, sampled_softmax
from models.losses.samplers import PopularitySampler, uniform_negatives

__all__ = [
    "LossOptions",
    "PopularitySampler",
    "bpr",
    "compute_loss",
    "full_softmax",
    "sampled_softmax",
    "uniform_negatives",
]
