"""One embedding table, spread over the processes by TorchRec: an EmbeddingCollection under DistributedModelParallel.

The planner places it; FBGEMM's fused row-wise Adagrad trains it inside the backward pass of a lookup (its CPU kernels
have no Adam). A lookup is collective: all processes make the same number of them, in the same order, an empty one where
they need no row. This is the one file that imports TorchRec.

Row-wise Adagrad keeps one number a row, the sum over updates of the mean square of the row's gradient ``g``:

    G += mean(g^2);   w -= lr * g / (sqrt(G) + eps)
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.errors import MachineError
from pipelines.machine import memory_bytes
from pipelines.training.sparse.options import EmbeddingOptions, require

Begin = Callable[[Tensor], Tensor]

NAME = "item"
_BLOCK = 1 << 16  # rows that are asked for at a time when the whole table is
_KINDS = {"table_wise": ["table_wise"], "row_wise": ["row_wise"], "auto": ["table_wise", "row_wise"]}


class ShardedTable:
    """``rows`` vectors of ``width`` float32 numbers, zero until :meth:`fill`; no nn.Module, so DDP leaves it alone.

    Args:
        rows: of the table.
        width: ``D``.
        options: how it is spread.
        device: of the lookups' results.
        eps: of row-wise Adagrad.

    Raises:
        MachineError: TorchRec is not installed, or no process has room for its share.
    """

    def __init__(self, rows: int, width: int, options: EmbeddingOptions, *, device: torch.device, eps: float) -> None:
        require("torchrec", f"embedding.sharding: {options.sharding}")
        for noisy in ("torchrec", "torch.fx._symbolic_trace"):  # advice for the planner's authors
            logging.getLogger(noisy).setLevel(logging.ERROR)
        join_alone()
        self.rows, self.width, self.options, self.device = rows, width, options, device
        self.module, sharder = self._make(eps)
        self.sharded = _distribute(self.module, sharder, options, device)

    def _make(self, eps: float) -> tuple[nn.Module, Any]:
        """The table before it is spread, and what spreads it."""
        from torchrec.distributed.embedding import EmbeddingCollectionSharder

        return _Lookup(collection(self.rows, self.width)), EmbeddingCollectionSharder(fused_params=fused(eps))

    def fetch(self, ids: Tensor, lr: float = 0.0) -> Tensor:
        """The rows ``ids`` ``[n]`` int64, ``[n, D]``, which :meth:`step` then changes at the rate ``lr``. Collective.

        FBGEMM takes the rate that holds during the lookup, not the one of the backward pass.
        """
        for group in self.sharded.fused_optimizer.param_groups:
            group["lr"] = lr
        self.sharded.fused_optimizer.step()  # only hands the rate on
        return self.sharded(_request(ids))[NAME].values()

    def step(self, fetched: Tensor, gradient: Tensor) -> None:
        """One update of the rows of a :meth:`fetch` by ``gradient`` ``[n, D]``, summed over processes. Collective."""
        # TorchRec means the mean over processes; the gradients here are shares of one sum.
        fetched.backward(gradient * dist.get_world_size())  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def fill(self, weight: Tensor) -> None:
        """Take the values of ``weight`` ``[rows, D]``, of which each process copies its part."""
        for start, part in self.local_parts():
            part.copy_(weight[start : start + len(part)])

    def local_parts(self) -> Iterator[tuple[int, Tensor]]:
        """The first row and the values ``[r, D]`` of each part that this process holds; a view."""
        for shard in self.state()["weight"].local_shards():
            yield shard.metadata.shard_offsets[0], shard.tensor

    @torch.no_grad()
    def gather(self) -> Tensor:
        """The whole table in main memory, ``[rows, D]``, in every process. Collective."""
        blocks = torch.split(torch.arange(self.rows, device=self.device), _BLOCK)
        return torch.cat([self.fetch(block).cpu() for block in blocks])

    def finite(self) -> bool:
        """Whether the part that lies here holds finite numbers only."""
        return all(bool(torch.isfinite(part).all()) for _, part in self.local_parts())

    def state(self) -> dict[str, Any]:
        """The table and the optimiser's sums as sharded tensors that share their memory, for checkpoints."""
        weight = next(value for key, value in self.sharded.state_dict().items() if key.endswith(f"{NAME}.weight"))
        kept = self.sharded.fused_optimizer.state_dict()["state"].values()
        sums = {name: value for entry in kept for name, value in entry.items()}  # none where no part lies here
        return {"weight": weight, **sums}

    def check_loaded(self, state: dict[str, Any]) -> None:
        """Called with what :meth:`state` has become by loading; a plain table takes what any processes have written."""


class _Lookup(nn.Module):
    """DistributedModelParallel looks for tables below the module that it is given."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, features: Any) -> Any:
        return self.tables(features)


def collection(rows: int, width: int, begin: Begin = nn.init.zeros_) -> nn.Module:
    """An EmbeddingCollection of one table without memory: that comes with its parts."""
    from torchrec import EmbeddingCollection

    return EmbeddingCollection(device=torch.device("meta"), tables=[table_config(rows, width, begin)])


def table_config(rows: int, width: int, begin: Begin) -> Any:
    """TorchRec's description of the table; ``begin`` sets new rows in place."""
    from torchrec import EmbeddingConfig

    return EmbeddingConfig(name=NAME, embedding_dim=width, num_embeddings=rows, feature_names=[NAME], init_fn=begin)


def fused(eps: float) -> dict[str, Any]:
    """The optimiser inside the backward pass; its rate is set before each."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType

    return {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.0, "eps": eps}


def _request(ids: Tensor) -> Any:
    from torchrec import KeyedJaggedTensor

    length = torch.tensor([ids.numel()], device=ids.device)
    return KeyedJaggedTensor.from_lengths_sync(keys=[NAME], values=ids, lengths=length)


def _distribute(module: nn.Module, sharder: Any, options: EmbeddingOptions, device: torch.device) -> Any:
    """Plan and spread ``module``."""
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
    from torchrec.distributed.planner.types import PlannerError
    from torchrec.distributed.types import ShardingEnv

    group, world = dist.GroupMember.WORLD, dist.get_world_size()
    assert group is not None
    gpu = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    topology = Topology(world_size=world, compute_device=device.type, hbm_cap=gpu, ddr_cap=memory_bytes() // world)
    constraint = ParameterConstraints(sharding_types=_KINDS[options.sharding], compute_kernels=["fused"])
    with warnings.catch_warnings():  # advice for the planner's authors
        warnings.simplefilter("ignore")
        planner = EmbeddingShardingPlanner(topology=topology, constraints={NAME: constraint})
    plan: list[Any] = [None]
    if dist.get_rank() == 0:  # the planner's own exchange would leave the others waiting where there is no plan
        with contextlib.suppress(PlannerError):
            plan = [planner.plan(module, [sharder])]
    dist.broadcast_object_list(plan, src=0, group=group)
    if plan[0] is None:
        what = f"no process has room for its share of the item table on {world} x {device.type}"
        fix = "use more processes, embedding.sharding: row_wise or a smaller model"
        raise MachineError(what, where=f"embedding.sharding: {options.sharding}", fix=fix)
    return DistributedModelParallel(
        module,
        env=ShardingEnv.from_process_group(group),
        device=device,
        plan=plan[0],
        sharders=[sharder],
        init_data_parallel=False,
    )


def join_alone() -> None:
    """A process group of one, where nobody else is: TorchRec and the sharded checkpoints want one."""
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
