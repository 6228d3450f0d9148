"""What of a configuration must fit where the item table and the blocks are spread over processes.

Checked when a recipe is read, but for the number of processes: a finished run is evaluated by any number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipelines.config_files import Layered
from pipelines.errors import ConfigError
from pipelines.training.dense.options import check_heads, check_processes
from pipelines.training.distributed import World
from pipelines.training.sparse.options import EmbeddingOptions, check_capacity, check_embedding

if TYPE_CHECKING:
    from pipelines.config import RunConfig

TENSOR_PARALLEL = ("hstu", "hstu-ranking")


def check_spread(config: RunConfig, layers: Layered) -> None:
    """Refuse now what the loops over spread tables and blocks would refuse after the data have been prepared.

    Raises:
        ConfigError: names the key, with the file and line (or flag) that it comes from.
    """
    with written_at(layers):
        _check(config)


@contextlib.contextmanager
def written_at(layers: Layered) -> Iterator[None]:
    """Give an error that names a key the file with line (or the flag) that the key comes from."""
    try:
        yield
    except ConfigError as error:
        key = tuple((error.where or "").split("."))
        origin = layers.origin(key)
        if origin == "configuration":  # nobody wrote it: the line already names the key that does not go with it
            raise
        raise ConfigError(f"'{error.where}': {error.what}", where=origin, fix=error.fix) from error


def _check(config: RunConfig) -> None:
    embedding, parallel, model = config.embedding, config.parallel, config.model["name"]
    if config.engine.name != "recpod":
        for key, changed in (("embedding.sharding", embedding.sharded), ("parallel.tensor", parallel.tensor > 1)):
            if changed:
                raise ConfigError(f"not used with --engine {config.engine.name}", where=key, fix="leave it away")
        return
    if config.training.cuda_graph and (embedding.sharded or parallel.tensor > 1):
        what = "rows or sums travel between processes in the midst of a step, which is captured whole or not at all"
        raise ConfigError(what, where="training.cuda_graph", fix="leave it out")
    options = config.model_options()
    loss = getattr(options, "loss", None)  # a model that predicts actions has none to choose
    check_embedding(embedding, config.training, loss=loss.name if loss else "", item_l2=config.optimizer.item_l2)
    check_heads(parallel, heads=options.heads if model in TENSOR_PARALLEL else None, model=model)


def check_world(config: RunConfig, world: World) -> None:
    """Refuse a number of processes that does not fit, alike in each of them: nothing is exchanged.

    Raises:
        ConfigError: names the key.
        MachineError: TorchRec or Megatron-Core is needed and not installed.
    """
    check_processes(config.parallel, world.size)
    check_capacity(config.embedding, world.size)


def check_measured(config: RunConfig) -> None:
    """Refuse to time what `recpod estimate --measure` does not build: it trains whole tables and blocks, alone.

    Raises:
        ConfigError: names the key.
    """
    for key, spread in (
        ("embedding.sharding", config.embedding.sharded),
        ("parallel.tensor", config.parallel.tensor > 1),
    ):
        if spread:
            fix = f"leave --measure or {key} away"
            raise ConfigError("--measure times one process that holds the whole model", where=key, fix=fix)


def embedding_identity(options: EmbeddingOptions) -> dict[str, Any]:
    """What of ``embedding`` decides the weights: nothing while every process holds the table.

    Where a spread table lies decides none: its files are read whatever lies where.
    """
    if not options.sharded:
        return {}
    managed = ("capacity", "eviction", "eviction_interval") if options.capacity else ()
    return {"embedding": {key: getattr(options, key) for key in ("lr_scale", *managed)}}
