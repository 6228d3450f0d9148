"""What a model is asked to do. The trainer knows :meth:`loss` alone; the evaluator knows the other methods alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.batch import SequenceBatch
from models.losses import Drawn, LossOptions, PopularitySampler, Seen, compute_loss


@dataclass(frozen=True)
class LossOutput:
    """A loss that adds up over batches, accumulation steps and processes.

    Attributes:
        sum: scalar, summed over the targets of the batch.
        count: how many targets that was.
    """

    sum: Tensor
    count: int


class Retrieval(nn.Module):
    """Next-item retrieval: a state for each token, and items as vectors in the same space.

    A model derives from it and writes :meth:`token_states`. The table of item vectors is tied: it is the input
    embedding and the output layer.

    Args:
        num_items: items in the catalogue; indices are 1 .. num_items, row 0 of the table is padding.
        hidden: width ``D`` of states and item vectors.
        loss: which loss, and its options.

    Attributes:
        takes_fixed_shapes: with a batch of fixed shape the model asks the device for nothing (see
            :class:`models.batch.FixedShape`).
    """

    takes_fixed_shapes = False

    def __init__(self, num_items: int, hidden: int, loss: LossOptions) -> None:
        super().__init__()
        self.num_items = num_items
        self.loss_options = loss
        self.popularity: PopularitySampler | None = None
        self.drawn: Drawn | None = None  # the coming step's negatives, where another one than the loss holds the table
        self.item_embedding = nn.Embedding(num_items + 1, hidden, padding_idx=0)

    def token_states(self, batch: SequenceBatch) -> Tensor:
        """The state after each token, ``[T, D]``; row ``i`` may read tokens up to ``i`` only."""
        raise NotImplementedError(f"{type(self).__name__} must define token_states")

    def loss(self, batch: SequenceBatch) -> LossOutput:
        """The training loss over all positions of the batch that have a target."""
        states, targets, chosen = self.token_states(batch), batch.targets, None  # [T, D], [T]
        if batch.fixed is not None:
            return LossOutput(self._fixed_loss(states, batch), batch.fixed.targets)
        if not batch.all_targets:  # choosing tokens makes a GPU wait; a training batch has a target at every one
            chosen = targets > 0
            states, targets = states[chosen], targets[chosen]
        seen = Seen.of_rows(batch.items, batch.offsets, chosen) if self.loss_options.exclude_seen else None
        return LossOutput(self.catalogue_loss(states, targets, seen), targets.numel())

    def _fixed_loss(self, states: Tensor, batch: SequenceBatch) -> Tensor:
        """The summed loss of a batch of fixed shape: what a token without a target adds to value and gradients is 0.

        A zero state makes its gradient with respect to every item vector zero, and no gradient flows back through it.
        """
        counted = batch.targets > 0
        states = states.masked_fill(~counted[:, None], 0.0)
        excludes = self.loss_options.exclude_seen
        seen = Seen.of_rows(batch.items, batch.offsets, longest=batch.longest) if excludes else None
        return self._table_loss(states, batch.targets.clamp(min=1), seen, counted)

    def catalogue_loss(self, states: Tensor, targets: Tensor, seen: Seen | None) -> Tensor:
        """The summed loss of ``targets`` ``[M]`` for ``states`` ``[M, D]``; ``seen`` where the loss leaves it out."""
        return self._table_loss(states, targets, seen, None)

    def _table_loss(self, states: Tensor, targets: Tensor, seen: Seen | None, counted: Tensor | None) -> Tensor:
        """As :meth:`catalogue_loss`, of the tokens that ``counted`` ``[M]`` names; the states of the others are 0."""
        table, generator = self.item_embedding.weight, default_generator(states.device)
        drawn, popularity = self.drawn, self.popularity
        return compute_loss(self.loss_options, states, table, targets, generator, popularity, seen, drawn, counted)

    def encode(self, batch: SequenceBatch) -> Tensor:
        """The state of each row's newest token, ``[U, D]``."""
        return batch.jagged(self.token_states(batch)).last()

    def item_vectors(self, ids: Tensor) -> Tensor:
        """The vectors of the items ``ids`` ``[n]``, ``[n, D]``."""
        return self.item_embedding(ids)

    def score_block(self, states: Tensor, ids: Tensor) -> Tensor:
        """Scores of the items ``ids`` ``[n]`` for ``states`` ``[U, D]``, ``[U, n]``."""
        return states @ self.item_vectors(ids).T


def default_generator(device: torch.device) -> torch.Generator:
    """The device's own random generator: its state is part of every checkpoint."""
    if device.type == "cuda":
        index = device.index if device.index is not None else torch.cuda.current_device()
        return torch.cuda.default_generators[index]
    return torch.default_generator


def normal_init(module: nn.Module, std: float = 0.02) -> None:
    """Linear and embedding weights normal with ``std``, biases zero; meant for ``Module.apply``."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
