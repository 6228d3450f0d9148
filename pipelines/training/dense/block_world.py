"""Processes of which several share each block: for the loop one of them, to each other each its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from pipelines.training.distributed import World

T = TypeVar("T")


@dataclass(frozen=True)
class BlockWorld(World):
    """A world whose ``rank`` and ``size`` count groups.

    The processes of a block get the same share of each batch and the same random numbers. Whoever writes, waits or
    fails is still one process among all.

    Attributes:
        processes: all of them, and this one's place.
        replicas: the processes that hold the same part of a block as this one, one of each group.
    """

    processes: World = field(default_factory=World)
    replicas: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, world: World, mesh: DeviceMesh) -> BlockWorld:
        """The groups of ``mesh``, ``data`` x ``tensor``."""
        data = mesh["data"]
        return cls(data.get_local_rank(), data.size(), world.local_rank, world, data.get_group())

    @property
    def first(self) -> bool:
        """Whether this is the one process that writes."""
        return self.processes.first

    @property
    def group(self) -> dist.ProcessGroup | None:
        """Those over which gradients are averaged."""
        return self.replicas

    def on_first(self, work: Callable[[], T]) -> T:
        """As ever, over all processes."""
        return self.processes.on_first(work)

    def agree(self, work: Callable[[], T]) -> T:
        """As ever, over all processes."""
        return self.processes.agree(work)

    def in_turn(self, work: Callable[[], T]) -> T:
        """As ever, over all processes."""
        return self.processes.in_turn(work)

    def gather(self, value: T) -> list[T]:
        """As ever, over all processes."""
        return self.processes.gather(value)

    def add_up(self, total: Tensor, *numbers: float) -> tuple[Tensor, list[float]]:
        """As ever, over all processes: what a group has in common is in it once for each of its processes."""
        return self.processes.add_up(total, *numbers)
