"""Where negatives come from. Every draw takes its generator, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def uniform_negatives(
    num_items: int, shape: int | tuple[int, ...], generator: torch.Generator, device: torch.device | str
) -> Tensor:
    """Items drawn uniformly from 1 .. num_items, with replacement.

    Args:
        num_items: size of the catalogue.
        shape: how many, K or a shape such as ``(M, k)``.
        generator: drawn from on its own device.
        device: where the result goes.

    Returns:
        ``shape`` int64.
    """
    size = (shape,) if isinstance(shape, int) else shape
    drawn = torch.randint(1, num_items + 1, size, generator=generator, device=generator.device)
    return drawn.to(device)


def in_batch_negatives(targets: Tensor, shape: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Items drawn from the targets of the step: an item comes as often as it is popular, and its row is at hand anyway.

    A set for all tokens (``shape`` is one number) is drawn without replacement: no target stands for two draws, and a
    number at or above that of the targets takes every target once, the in-batch softmax of two-tower models. Negatives
    of each token's own are drawn with replacement. To correct for the draw, take the log probabilities of a
    :class:`PopularitySampler` of power 1 (logQ, Yi et al. 2019, doi 10.1145/3298689.3346996).

    Args:
        targets: ``[M]`` int64, M at least 1.
        shape: how many, K or ``(M, k)``.
        generator: drawn from on its own device.

    Returns:
        ``[min(K, M)]`` or ``[M, k]`` int64, on the device of ``targets``.
    """
    if isinstance(shape, int):
        places = torch.randperm(targets.numel(), generator=generator, device=generator.device)[:shape]
    else:
        places = torch.randint(targets.numel(), shape, generator=generator, device=generator.device)
    return targets[places.to(targets.device)]


@dataclass(frozen=True)
class PopularitySampler:
    """Draws items in proportion to a power of how often they occur.

    Attributes:
        cumulative: ``[num_items]`` float64, running sum of the probabilities of items 1 .. num_items, ending at 1.
        log_q: ``[num_items + 1]`` float32, log probability of drawing each item; row 0 (padding) is minus infinity.
    """

    cumulative: Tensor
    log_q: Tensor

    @classmethod
    def from_counts(cls, counts: Tensor, power: float = 1.0) -> PopularitySampler:
        """A sampler from training counts.

        Args:
            counts: ``[num_items + 1]``, events of each item in the training part; row 0 is ignored. An item without
                events counts as one event: every item can be drawn and every log probability is finite.
            power: 1 draws by popularity, 0 uniformly, .75 as word2vec does.

        Raises:
            ValueError: no items.
        """
        if counts.numel() < 2:
            raise ValueError("a popularity sampler needs counts of at least one item besides padding")
        weights = counts[1:].to(torch.float64).clamp(min=1.0).pow(power)
        cumulative = weights.cumsum(0) / weights.sum()
        cumulative[-1] = 1.0  # rounding may leave the last sum under a draw just below 1
        log_q = torch.full((counts.numel(),), float("-inf"), device=counts.device)
        log_q[1:] = (weights / weights.sum()).log()
        return cls(cumulative, log_q)

    def sample(self, shape: int | tuple[int, ...], generator: torch.Generator, device: torch.device | str) -> Tensor:
        """Items drawn with replacement, ``shape`` int64 on ``device``; the generator must lie where the counts lie."""
        size = (shape,) if isinstance(shape, int) else shape
        draws = torch.rand(size, generator=generator, device=generator.device, dtype=torch.float64)
        return (torch.searchsorted(self.cumulative, draws, right=True) + 1).to(device)

    def log_probability(self, items: Tensor) -> Tensor:
        """Log probability of drawing each of ``items``, same shape, float32, on the device of ``items``."""
        return self.log_q.to(items.device)[items]
