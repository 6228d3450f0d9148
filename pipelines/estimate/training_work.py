"""What the training log says of FLOPs: the model's own count and the device's peak, where both are known."""

from __future__ import annotations

import numpy as np

from models.ranking import RankingData
from pipelines.config import RunConfig
from pipelines.errors import RecPodError
from pipelines.estimate.devices import find_device
from pipelines.estimate.ranking_layers import shape_of
from pipelines.estimate.ranking_work import find_ranking_work
from pipelines.estimate.work import LAYERS, find_work, formats_of
from pipelines.training.speed import WorkOf


def training_work(config: RunConfig, items: int, kind: str) -> WorkOf | None:
    """FLOPs of a token of the run's model for a catalogue of ``items`` on a ``cpu`` or ``cuda`` device.

    None for a model whose work nobody has counted, and where it differs from step to step by how many different items
    are in them (``loss.num_negatives: -1``). The peak is that of dense bfloat16 products, so it is given for a
    run in bfloat16 alone, on a GPU of docker/gpu-matrix.json.
    """
    model = config.model["name"]
    if model not in LAYERS:
        return None
    options, formats = config.model_options(), formats_of(config, kind)
    if options.loss.takes_all_of_step:
        return None
    peak = _peak() if kind == "cuda" and formats.narrow == 2 else None
    return WorkOf(lambda shared: find_work(model, options, items, shared, formats).flops, peak)


def ranking_training_work(config: RunConfig, items: int, kind: str, data: RankingData, lengths: np.ndarray) -> WorkOf:
    """FLOPs of an event of a ranking run's windows, which have ``lengths`` ``[W]``; as :func:`training_work`."""
    options, formats = config.model_options(), formats_of(config, kind)
    asked = np.minimum(lengths, options.candidates or lengths).sum() / lengths.sum()
    shape = shape_of(data, float(lengths.mean()), float(asked))
    peak = _peak() if kind == "cuda" and formats.narrow == 2 else None

    def flops(shared: float) -> float:
        return find_ranking_work(options, items, shape, shared, formats).flops * shape.asked

    return WorkOf(flops, peak)


def _peak() -> float | None:
    try:
        return find_device("this").bf16_flops
    except RecPodError:  # a GPU that no data sheet here describes: the log goes without a share of its peak
        return None
