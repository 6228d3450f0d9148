"""What a ranking model costs: no catalogue is scored.

The unit is an event of a window, as in the loader's batches; the trainer's targets are those that are asked about.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.hstu_ranking import HSTURankingOptions
from models.losses import LossOptions
from pipelines.estimate.layer_work import Formats
from pipelines.estimate.ranking_layers import RankingShape, item_width, ranking_layers
from pipelines.estimate.work import PASSES, WEIGHT_PASSES, Work


@dataclass(frozen=True, kw_only=True)
class RankingWork(Work):
    """Of a ranking model.

    Attributes:
        shape: of data and windows.
    """

    shape: RankingShape

    @property
    def layer_flops(self) -> float:
        """Of a target in training, the head and its share of what it is told of the history included."""
        return super().layer_flops / self.shape.asked

    @property
    def loss_flops(self) -> float:
        """None worth counting: a number for each class or bit."""
        return 0.0

    @property
    def shared_candidates(self) -> bool:
        """No candidates of a loss."""
        return True

    @property
    def candidates(self) -> int:
        """Items that the loss scores: none."""
        return 0

    def moved(self, targets_a_step: float) -> float:
        """Bytes of a target in training that pass through memory, with its share of the update of all weights."""
        weights = WEIGHT_PASSES * 4.0 * self.parameters / targets_a_step
        return (PASSES * self.layers.saved + self.layers.streamed) / self.shape.asked + weights


def find_ranking_work(
    options: HSTURankingOptions, items: int, shape: RankingShape, shared_length: float, formats: Formats
) -> RankingWork:
    """Count a ranking model for a catalogue of ``items``; lengths are those of windows in events."""
    layers = ranking_layers(options, shape, shared_length, formats)
    width = item_width(options)
    parameters = layers.parameters + (items + 1) * width
    return RankingWork(parameters, items, width, layers, LossOptions(), formats, shape=shape)
