"""Megatron-Core's column- and row-parallel linear layers, as plain modules. The one file that imports Megatron-Core.

Its initialisers, DDP wrapper, optimiser and own sequence parallelism need CUDA devices; the layers themselves do not.
So weights are given to them, and what travels along the sequence goes through DTensor (token_shards.py).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.training.dense.token_shards import TokenShards, summed_gradient


class ColumnParallel(nn.Module):
    """``x W^T + b`` of this process' rows of ``W``: it makes some of the output's columns.

    Args:
        whole: the layer, alike in all processes; its columns are dealt in order.
        group: the processes of a block.
        shards: where each process gives its part of the tokens and all of them are wanted; None gives all.
    """

    def __init__(self, whole: nn.Linear, group: dist.ProcessGroup, shards: TokenShards | None = None) -> None:
        super().__init__()
        self.shards = shards
        # What arrives through shards has its gradient summed on the way back: then not here once more.
        self.linear = _made(
            "ColumnParallelLinear",
            whole,
            tp_group=group,
            disable_grad_reduce=shards is not None,
        )
        _take(self.linear.weight, whole.weight, group, 0)
        if whole.bias is not None:
            _take(self.linear.bias, whole.bias, group, 0)

    def forward(self, x: Tensor) -> Tensor:
        """``[T, in]`` to ``[T, out / processes]``."""
        return self.linear(x if self.shards is None else self.shards.all_tokens(x))[0]


class RowParallel(nn.Module):
    """``x W^T + b`` where each process has some columns of ``x``: the products are summed over processes.

    Args:
        whole: the layer, alike in all processes; its inputs are dealt in order.
        group: the processes of a block.
        shards: where each process wants its part of the tokens; None gives all tokens to all.
    """

    def __init__(self, whole: nn.Linear, group: dist.ProcessGroup, shards: TokenShards | None = None) -> None:
        super().__init__()
        self.shards = shards
        self.linear = _made(
            "RowParallelLinear",
            whole,
            input_is_parallel=True,
            skip_bias_add=True,
            tp_group=group,
            is_expert=shards is not None,  # then Megatron leaves the sum to us: it is scattered, not given to all
        )
        _take(self.linear.weight, whole.weight, group, 1)
        if whole.bias is not None:
            with torch.no_grad():
                self.linear.bias.copy_(whole.bias)
            if shards is not None:
                summed_gradient(self.linear.bias, group)

    def forward(self, x: Tensor) -> Tensor:
        """``[T, in / processes]`` to ``[T, out]``, or to this process' tokens of it."""
        product, bias = self.linear(x)
        if self.shards is not None:
            product = self.shards.sum_to_own_tokens(product)
        return product if bias is None else product + bias


def _layers() -> Any:
    with warnings.catch_warnings():  # of packages for GPUs that are not there, and are not needed
        warnings.simplefilter("ignore")
        from megatron.core.tensor_parallel import layers
    # Its advice, once a process, on how a GPU may overlap product and sum.
    layers.linear_with_grad_accumulation_and_async_allreduce.warned = True
    return layers


def _made(kind: str, whole: nn.Linear, **options: Any) -> Any:
    """Megatron's layer ``kind`` in the shape of ``whole``, without numbers."""
    return getattr(_layers(), kind)(
        whole.in_features,
        whole.out_features,
        config=_config(whole),
        init_method=None,
        bias=whole.bias is not None,
        **options,
    )


def _config(whole: nn.Linear) -> Any:
    from megatron.core import ModelParallelConfig

    return ModelParallelConfig(
        use_cpu_initialization=True, perform_initialization=False, params_dtype=whole.weight.dtype
    )


@torch.no_grad()
def _take(own: Tensor, whole: Tensor, group: dist.ProcessGroup, dim: int) -> None:
    own.copy_(whole.chunk(group.size(), dim)[group.rank()])
