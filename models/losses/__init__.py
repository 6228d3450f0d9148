"""Losses over item catalogues: token states and an item table in, the sum over tokens out, never ``[tokens, items]``.

>>> options = LossOptions(name="softmax")
>>> total = compute_loss(options, states, table, targets, generator)   # doctest: +SKIP
>>> (total / targets.numel()).backward()                               # doctest: +SKIP
"""

from models.losses.binary import binary_cross_entropy, gbce_target_weight
from models.losses.full import full_softmax
from models.losses.options import Drawn, LossOptions, compute_loss, draw_negatives
from models.losses.sampled import bpr, sampled_softmax
from models.losses.samplers import PopularitySampler, in_batch_negatives, uniform_negatives
from models.losses.seen import Seen

__all__ = [
    "Drawn",
    "LossOptions",
    "PopularitySampler",
    "Seen",
    "binary_cross_entropy",
    "bpr",
    "compute_loss",
    "draw_negatives",
    "full_softmax",
    "gbce_target_weight",
    "in_batch_negatives",
    "sampled_softmax",
    "uniform_negatives",
]
