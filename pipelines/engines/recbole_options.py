"""Options of RecBole's attention models that this project's have no counterpart of, and when that changes nothing.

RecBole itself takes any key without a word; here a value that would change the numbers is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "silu", "silu": "silu", "swiglu": "swiglu"}
"""``hidden_act``, and what it is called here."""
INITIALIZER_RANGE = 0.02
"""RecBole's default; this project's weights start Xavier-normal instead."""
NORM_EPS = 1e-8
"""What this project's LayerNorm adds to the variance."""
WITHOUT_COUNTERPART = {
    "attn_dropout_prob": "it equals hidden_dropout_prob, the one dropout here",
    "initializer_range": "weights start Xavier-normal",
    "layer_norm_eps": f"LayerNorm adds {NORM_EPS:g} to the variance",
}
"""The keys, and what there is in their place."""


def refusal(key: str, value: Any, given: Mapping[str, Any]) -> str | None:
    """Why a value of one of :data:`WITHOUT_COUNTERPART` cannot be honoured; None where it changes nothing.

    Args:
        key: RecBole's.
        value: its value.
        given: all keys, for those that depend on each other.
    """
    if key == "attn_dropout_prob" and value != (hidden := given.get("hidden_dropout_prob")):
        says = "is not given" if hidden is None else f"is {hidden}"
        return f"attention and layers have one dropout, hidden_dropout_prob, which {says}: give both the same value"
    if key == "initializer_range" and value != INITIALIZER_RANGE:
        return "weights start Xavier-normal: leave it out"
    if key == "layer_norm_eps" and not 0 <= float(value) <= NORM_EPS:
        return f"LayerNorm adds {NORM_EPS:g} to the variance: leave it out"
    return None


def activation(value: Any) -> str:
    """``hidden_act``.

    Raises:
        ValueError: the layers do not have it.
    """
    if value not in ACTIVATIONS:
        raise ValueError(f"the layers do not have it; they have {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[value]
