"""HSTU blocks whose heads are spread over processes: tensor parallel, and sequence parallel between the projections.

Each process of a block makes the gates, values, queries and keys of its heads (column-parallel), attends with them, and
multiplies its columns of the gated output; the products are summed (row-parallel). The norm over all heads' outputs
needs two sums over processes for each token. With sequence parallelism a process keeps its part of the tokens from one
block's sum to the next block's projection, so the input norm and the residual are computed once.

Context parallelism - rows cut over processes inside attention - is not offered. A row's scores need every key of the
row, and unlike softmax's they need no running maximum, so a ring would only have to add. But rows are packed: at the
published lengths (up to 8192) a row's attention fits one process with room to spare, heads divide it already, and
sequence parallelism divides what is kept outside of it. Dealing whole rows by length^2 (pipelines/data/dealing.py)
gives every process the same attention work without one message. docs/hstu-parallelism.md says more.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from models.layers.hstu import HSTULayer, HSTULayout
from pipelines.errors import ConfigError
from pipelines.training.dense.megatron_linears import ColumnParallel, RowParallel
from pipelines.training.dense.options import ParallelOptions
from pipelines.training.dense.token_shards import TokenShards, summed, summed_gradient


def process_mesh(options: ParallelOptions, device: str) -> DeviceMesh:
    """The processes as ``data`` x ``tensor``; those of a block are neighbours, on one node where that is possible."""
    groups = dist.get_world_size() // options.tensor
    return init_device_mesh(device, (groups, options.tensor), mesh_dim_names=("data", "tensor"))


class SpreadNorm(nn.Module):
    """LayerNorm over columns that lie in several processes; each gives and gets its own.

    Mean first, then the mean square of what is left: as exact as LayerNorm's own.

    Args:
        whole: the norm over all columns.
        mesh: the processes of a block.
    """

    def __init__(self, whole: nn.LayerNorm, mesh: DeviceMesh) -> None:
        super().__init__()
        self.mesh, self.eps, self.columns = mesh, whole.eps, whole.normalized_shape[0]
        self.weight = self.bias = None
        if whole.elementwise_affine:
            self.weight = nn.Parameter(_own(whole.weight, mesh))
            self.bias = nn.Parameter(_own(whole.bias, mesh))

    def forward(self, x: Tensor) -> Tensor:
        """``[T, columns / processes]`` to the same shape."""
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        centred = wide - summed(wide.sum(-1, keepdim=True), self.mesh) / self.columns
        variance = summed(centred.square().sum(-1, keepdim=True), self.mesh) / self.columns
        normed = (centred * (variance + self.eps).rsqrt()).to(x.dtype)
        return normed if self.weight is None or self.bias is None else normed * self.weight + self.bias


class OwnDropout(nn.Module):
    """Dropout of columns that no other process has: independent of theirs, while all random generators stay alike.

    Args:
        share: of the numbers that are dropped.
        rank: of the process within the block.
    """

    def __init__(self, share: float, rank: int) -> None:
        super().__init__()
        self.share, self.rank = share, rank

    def forward(self, x: Tensor) -> Tensor:
        """``x`` of any shape; in evaluation mode itself."""
        if not self.training or self.share == 0:
            return x
        seed = int(torch.empty((), dtype=torch.int64).random_())  # of the CPU's generator: nobody waits for a GPU
        generator = torch.Generator(x.device).manual_seed((seed + self.rank) % 2**63)
        keep = torch.empty_like(x, requires_grad=False).bernoulli_(1 - self.share, generator=generator)
        return x * keep / (1 - self.share)


class ParallelBlocks(nn.Module):
    """A model's blocks one after the other; the first gets, and the last gives, all tokens in every process.

    Args:
        blocks: whole blocks, alike in all processes.
        options: how they are spread.
        mesh: the processes of a block, one-dimensional.

    Raises:
        ConfigError: the processes do not divide the heads.
    """

    def __init__(self, blocks: nn.ModuleList, options: ParallelOptions, mesh: DeviceMesh) -> None:
        super().__init__()
        self.shards = TokenShards(mesh) if options.sequence else None
        self.blocks = nn.ModuleList(spread_block(block, mesh, self.shards) for block in blocks)  # type: ignore[arg-type]

    def forward(self, x: Tensor, layout: HSTULayout) -> Tensor:
        """``[T, D]`` to ``[T, D]``."""
        x = x if self.shards is None else self.shards.own_tokens(x)
        for block in self.blocks:
            x = block(x, layout)
        return x if self.shards is None else self.shards.same_tokens(x)


def spread_block(block: HSTULayer, mesh: DeviceMesh, shards: TokenShards | None) -> HSTULayer:
    """This process' part of a whole ``block``, with the numbers that it had.

    Raises:
        ConfigError: the processes do not divide the heads.
    """
    heads, processes, group = block.options.heads, mesh.size(), mesh.get_group()
    if heads % processes:
        fix = "choose a divisor of model.heads"
        raise ConfigError(
            f"{processes} does not divide the {heads} heads of the model", where="parallel.tensor", fix=fix
        )
    assert isinstance(block.project_in, nn.Linear) and isinstance(block.project_out, nn.Linear)
    part = HSTULayer(
        block.options,
        ColumnParallel(block.project_in, group, shards),
        RowParallel(block.project_out, group, shards),
    )
    part.attention_norm = SpreadNorm(block.attention_norm, mesh)  # type: ignore[assignment]
    part.input_norm, part.bias = block.input_norm, block.bias
    part.dropout = OwnDropout(block.options.dropout, mesh.get_local_rank())  # type: ignore[assignment]
    # All hold them, and each uses them for its own heads or tokens.
    partly_used = [*(part.bias.parameters() if part.bias is not None else ())]
    partly_used += part.input_norm.parameters() if shards is not None else ()
    for parameter in partly_used:
        summed_gradient(parameter, group)
    return part.to(block.project_in.weight)


def _own(whole: Tensor, mesh: DeviceMesh) -> Tensor:
    return whole.detach().chunk(mesh.size())[mesh.get_local_rank()].clone()
