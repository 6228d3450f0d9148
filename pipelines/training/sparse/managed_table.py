"""A sharded table for ids that nobody has numbered: TorchRec's managed collisions (zero-collision hashing).

TorchRec's ``MCHManagedCollisionModule`` gives an id a row of its own when it comes up, and when all are taken, by an
LRU or LFU policy, the row of another. Ids without a row share the last one of their shard. Of TorchRec 1.8's two
modules this one runs everywhere; the other (``HashZchManagedCollisionModule``) has no CPU kernel that admits ids.

Each process keeps the ids of its own range, sorted; so unlike plain tables these go on with as many processes only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.errors import RunError
from pipelines.training.sparse.options import check_capacity
from pipelines.training.sparse.torchrec_table import NAME, ShardedTable, collection, fused, table_config

_IDS = 1 << 62
_SPREAD = 0x1E3779B97F4A7C15  # odd: times it, modulo 2^62, no two ids meet


class ManagedTable(ShardedTable):
    """``options.capacity`` rows for any ids from 0 to 2^62 - 1; rows begin small and normal.

    Takes what :class:`ShardedTable` takes; ``rows`` counts the ids that :meth:`gather` gives, from 0 on.
    """

    def _make(self, eps: float) -> tuple[nn.Module, Any]:
        from torchrec.distributed.embedding import EmbeddingCollectionSharder
        from torchrec.distributed.mc_modules import ManagedCollisionCollectionSharder
        from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection
        from torchrec.modules.mc_modules import ManagedCollisionCollection

        options, width, processes = self.options, self.width, dist.get_world_size()
        check_capacity(options, processes)
        module = _module_class()(
            zch_size=options.capacity,
            device=self.device,
            eviction_policy=_policy(options.eviction),
            eviction_interval=options.eviction_interval,
            input_hash_size=_IDS,
            input_hash_func=spread_ids,
            buckets=processes,
        )
        managed = ManagedCollisionCollection({NAME: module}, [table_config(options.capacity, width, small)])
        tables = ManagedCollisionEmbeddingCollection(collection(options.capacity, width, small), managed)
        sharder = _sharder_class(self.device)(
            EmbeddingCollectionSharder(fused_params=fused(eps)), ManagedCollisionCollectionSharder()
        )
        return _First(tables), sharder

    def fill(self, weight: Tensor) -> None:
        """Nothing: ids get their rows as they come."""

    def gather(self) -> Tensor:
        """The vectors of ids 0 .. rows - 1 in main memory, ``[rows, D]``; none is admitted. Collective."""
        self.sharded.eval()
        vectors = super().gather()
        self.sharded.train()
        return vectors

    def state(self) -> dict[str, Any]:
        """As ever, and which id has which row."""
        kept = {key.rpartition(".")[2]: value for key, value in self.sharded.state_dict().items() if "mch" in key}
        processes = torch.tensor(dist.get_world_size())
        return super().state() | kept | {"processes": processes}

    def check_loaded(self, state: dict[str, Any]) -> None:
        """Refuse what another number of processes has written."""
        before, now = int(state["processes"]), dist.get_world_size()
        if before != now:
            what = f"managed ids of {before} processes, {now} are here"
            raise RunError(what, where="embedding.capacity", fix=f"go on with {before} processes")


class _First(nn.Module):
    """Managed collections answer with the rows that they took as well."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, features: Any) -> Any:
        return self.tables(features)[0]


def small(weight: Tensor) -> Tensor:
    """How a row begins."""
    return nn.init.normal_(weight, std=0.02)


def spread_ids(ids: Tensor, size: int) -> Tensor:
    """``ids`` spread evenly over 0 .. size - 1 (a power of two), one to one: shards are ranges of these."""
    return (ids * _SPREAD) & (size - 1)


def _module_class() -> Any:
    from torchrec import JaggedTensor
    from torchrec.modules.mc_modules import MCHManagedCollisionModule

    class Module(MCHManagedCollisionModule):  # type: ignore[misc]
        """Remembers twice as many ids between admissions as it has rows.

        TorchRec's own remembers as many as the first batch had; of larger ones it would overlook the highest ids.
        """

        def _init_history_buffers(self, features: Any) -> None:
            room = torch.zeros(2 * self._zch_size, dtype=torch.int64, device=self.device)
            super()._init_history_buffers({NAME: JaggedTensor(room, lengths=torch.tensor([len(room)]))})

    return Module


def _policy(name: str) -> Any:
    from torchrec.modules import mc_modules

    kinds = {
        "lru": mc_modules.LRU_EvictionPolicy,
        "lfu": mc_modules.LFU_EvictionPolicy,
        "distance_lfu": mc_modules.DistanceLFU_EvictionPolicy,
    }
    return kinds[name]()


def _sharder_class(device: torch.device) -> Any:
    from torchrec.distributed.mc_embedding import (
        ManagedCollisionEmbeddingCollectionSharder,
        ShardedManagedCollisionEmbeddingCollection,
    )

    if device.type != "cpu":
        return ManagedCollisionEmbeddingCollectionSharder

    class CpuCollection(ShardedManagedCollisionEmbeddingCollection):  # type: ignore[misc]
        """FBGEMM's reset of rows that change hands has no CPU kernel: here it is an assignment."""

        @torch.no_grad()
        def _evict(self, evictions_per_table: dict[str, Tensor | None]) -> None:
            for table, rows in evictions_per_table.items():
                if rows is None or not rows.numel():
                    continue
                kernel, _ = self._table_to_tbe_and_index[table]
                (weight,), ((sums,),) = kernel.split_embedding_weights(), kernel.split_optimizer_states()
                weight[rows] = small(weight[rows])
                sums[rows] = 0.0

    class CpuSharder(ManagedCollisionEmbeddingCollectionSharder):  # type: ignore[misc]
        def shard(
            self, module: Any, params: Any, env: Any, device: torch.device | None = None, module_fqn: str | None = None
        ) -> Any:
            assert device is not None
            return CpuCollection(
                module, params, ec_sharder=self._e_sharder, mc_sharder=self._mc_sharder, env=env, device=device
            )

        @property
        def sharded_module_type(self) -> Any:
            return CpuCollection

    return CpuSharder
