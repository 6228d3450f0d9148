"""What the processes of a block exchange besides Megatron's linear layers: tokens, sums and gradients.

All of it is torch.distributed's: DTensor turns one placement into another and knows the gradient of it. Tokens need not
be a multiple of the processes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard


class TokenShards:
    """Tokens dealt in order over the processes of a block, ``[T, ...]`` to about ``[T / processes, ...]``.

    Args:
        mesh: of those processes, one-dimensional.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self.shape: torch.Size = torch.Size()

    def own_tokens(self, x: Tensor) -> Tensor:
        """This process' part of tokens ``x`` that all have; backward gives all their gradients to all."""
        self.shape = x.shape
        return _replaced(x, self.mesh, Replicate(), Shard(0), Shard(0))

    def same_tokens(self, x: Tensor) -> Tensor:
        """All tokens, for what all processes compute alike; backward gives each its part."""
        return self._whole(x, Replicate())

    def all_tokens(self, x: Tensor) -> Tensor:
        """All tokens, for what each process computes differently; backward sums, and gives each its part."""
        return self._whole(x, Partial())

    def sum_to_own_tokens(self, x: Tensor) -> Tensor:
        """This process' part of the sum of all processes' ``x``; backward gives all gradients to all."""
        return _replaced(x, self.mesh, Partial(), Shard(0), Shard(0))

    def _whole(self, x: Tensor, gradient: Placement) -> Tensor:
        shape = torch.Size((self.shape[0], *x.shape[1:]))
        spread = DTensor.from_local(
            x, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=torch.empty(shape, device="meta").stride()
        )
        return spread.redistribute(placements=[Replicate()]).to_local(grad_placements=[gradient])


def summed(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The sum of all processes' ``x``, in all of them; each goes on differently, so backward sums as well."""
    return _replaced(x, mesh, Partial(), Replicate(), Partial())


def summed_gradient(parameter: nn.Parameter, group: dist.ProcessGroup) -> None:
    """Let the gradient of a parameter that all hold, and each uses for its own part, be the sum of all."""

    def add_up(gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total, group=group)
        return total

    parameter.register_hook(add_up)  # type: ignore[no-untyped-call]


def _replaced(x: Tensor, mesh: DeviceMesh, given: Placement, wanted: Placement, gradient: Placement) -> Tensor:
    spread = DTensor.from_local(x, mesh, [given], run_check=False)
    return spread.redistribute(placements=[wanted]).to_local(grad_placements=[gradient])
