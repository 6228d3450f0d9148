"""The models by name: what a configuration may ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.sasrec import SASRec, SASRecOptions
from models.ss4rec import SS4Rec, SS4RecOptions
from models.tasks import Retrieval
from models.tisasrec import TiSASRec, TiSASRecOptions


@dataclass(frozen=True)
class ModelEntry:
    """A model and its options: ``task(num_items, options)`` builds it."""

    options: type[Any]
    task: Callable[[int, Any], Retrieval]


MODELS: dict[str, ModelEntry] = {
    "sasrec": ModelEntry(SASRecOptions, SASRec),
    "ss4rec": ModelEntry(SS4RecOptions, SS4Rec),
    "tisasrec": ModelEntry(TiSASRecOptions, TiSASRec),
}


def build_model(name: str, num_items: int, options: Any) -> Retrieval:
    """The model ``name`` for a catalogue of ``num_items``, with ``options`` of the entry's options type."""
    return MODELS[name].task(num_items, options)
