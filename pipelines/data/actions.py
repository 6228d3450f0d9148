"""What a user did with an item, as a token feature: a class (a rating) or a bit mask (click, like, ...)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.errors import DataError


def classes_of_ratings(ratings: np.ndarray, levels: Sequence[float], label: str) -> np.ndarray:
    """The place of each rating among ``levels``, ``[events]`` uint8.

    Raises:
        DataError: a rating is none of the levels.
    """
    ordered = np.asarray(levels, dtype=np.float32)
    place = np.minimum(np.searchsorted(ordered, ratings), len(ordered) - 1).astype(np.uint8)
    strange = ordered[place] != ratings
    if strange.any():
        example = ratings[np.argmax(strange)]
        raise DataError(
            f"{int(strange.sum())} of {len(ratings)} ratings are none of rating_levels, such as {example:g}",
            where=label,
            fix="List every level in prepare.rating_levels",
        )
    return place


def checked_mask(mask: np.ndarray, bits: Sequence[str], label: str) -> np.ndarray:
    """A bit mask in the narrowest type, ``[events]``.

    Raises:
        DataError: a value has bits that have no name.
    """
    if int(mask.min()) < 0 or int(mask.max()) >= 1 << len(bits):
        low, high = int(mask.min()), int(mask.max())
        raise DataError(f"actions reach from {low} to {high}, {len(bits)} bits have names", where=label)
    return mask.astype(np.min_scalar_type((1 << len(bits)) - 1))


def describe_actions(levels: Sequence[float], bits: Sequence[str]) -> dict[str, Any] | None:
    """What the manifest says of the token feature ``actions``; None where there is none."""
    if levels:
        return {"kind": "classes", "names": [f"{level:g}" for level in levels]}
    return {"kind": "bits", "names": list(bits)} if bits else None
