"""The models by name: what a configuration may ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from models.hstu import HSTU, HSTUOptions
from models.hstu_ranking import HSTURanking, HSTURankingOptions
from models.ranking import Ranking, RankingData
from models.sasrec import SASRec, SASRecOptions
from models.ss4rec import SS4Rec, SS4RecOptions
from models.tasks import Retrieval
from models.tisasrec import TiSASRec, TiSASRecOptions


@dataclass(frozen=True)
class ModelEntry:
    """A retrieval model and its options: ``task(num_items, options)`` builds it."""

    options: type[Any]
    task: Callable[[int, Any], Retrieval]
    kind: ClassVar[str] = "retrieval"


@dataclass(frozen=True)
class RankingEntry:
    """A ranking model and its options: ``task(num_items, options, data)`` builds it."""

    options: type[Any]
    task: Callable[[int, Any, RankingData], Ranking]
    kind: ClassVar[str] = "ranking"


MODELS: dict[str, ModelEntry] = {
    "hstu": ModelEntry(HSTUOptions, HSTU),
    "sasrec": ModelEntry(SASRecOptions, SASRec),
    "ss4rec": ModelEntry(SS4RecOptions, SS4Rec),
    "tisasrec": ModelEntry(TiSASRecOptions, TiSASRec),
}


RANKING_MODELS: dict[str, RankingEntry] = {
    "hstu-ranking": RankingEntry(HSTURankingOptions, HSTURanking),
}

OPTIONS: dict[str, type[Any]] = {
    **{name: entry.options for name, entry in MODELS.items()},
    **{name: entry.options for name, entry in RANKING_MODELS.items()},
}
"""The options of every model, of either kind."""


def build_model(name: str, num_items: int, options: Any) -> Retrieval:
    """The model ``name`` for a catalogue of ``num_items``, with ``options`` of the entry's options type."""
    return MODELS[name].task(num_items, options)


def build_ranking(name: str, num_items: int, options: Any, data: RankingData) -> Ranking:
    """The ranking model ``name`` for a catalogue of ``num_items`` and the actions and user features of ``data``."""
    return RANKING_MODELS[name].task(num_items, options, data)
