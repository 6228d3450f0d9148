"""A recipe with its data, or with a small made-up store where a benchmark is only tried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.synthetic_store import synthetic_store
from pipelines import stages
from pipelines.config import RunConfig, load_config
from pipelines.data.splits import make_split


def recipe_data(recipe: str, sets: Sequence[str], *, synthetic: bool, work: Path) -> tuple[RunConfig, stages.Prepared]:
    """The recipe, changed by ``sets`` (``KEY=VALUE``), and its data; ``synthetic``: a hundredth of ML-1M's size."""
    config = load_config(recipe, list(sets))
    if not synthetic:
        return config, stages.prepare(config)
    store = synthetic_store(work / "store", share=0.01)
    protocol = stages.protocol_of(config)
    return config, stages.Prepared(store, make_split(store, protocol.split), protocol)
