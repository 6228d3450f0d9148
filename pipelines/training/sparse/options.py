"""How a recipe asks for a sharded item table, and what does not go with one: checked before anything is loaded.

    embedding: {sharding: row_wise}

torch-free, and free of TorchRec.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Protocol

from pipelines.errors import ConfigError, MachineError, nearest

SHARDINGS = ("data_parallel", "table_wise", "row_wise", "auto")
EVICTIONS = ("lru", "lfu", "distance_lfu")
_OF_IDS = ("eviction", "eviction_interval")  # nobody loses a row that is his
_EXTRA = "extra hstu: entrypoints/setup.sh --hstu"


@dataclass(frozen=True)
class EmbeddingOptions:
    """Where the item table lives."""

    sharding: str = "data_parallel"
    """``data_parallel``: every process holds the whole table, and ``optimizer`` trains it. The others spread it over
    the processes and train it by row-wise Adagrad inside the backward pass: ``row_wise`` (rows are dealt to all),
    ``table_wise`` (one process holds it), ``auto`` (TorchRec's planner chooses by room and speed)."""
    lr_scale: float = 1.0
    """Row-wise Adagrad's learning rate as a multiple of ``optimizer``'s, warm-up and schedule included. It knows no
    weight decay: ``optimizer.weight_decay`` is that of the other weights."""
    capacity: int = 0
    """Rows of a table whose ids are not numbered in advance; an id gets a row when it comes up and loses it again to
    others. 0: one row an item."""
    eviction: str = "lru"
    """Which id gives its row up once all ``capacity`` are taken: ``lru`` (longest unseen), ``lfu`` (least often seen),
    ``distance_lfu`` (seldom and long ago)."""
    eviction_interval: int = 1
    """Updates between two admissions of new ids (``capacity`` alone)."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        for key, valid in (("sharding", SHARDINGS), ("eviction", EVICTIONS)):
            if (value := getattr(self, key)) not in valid:
                raise ConfigError(f"'{value}' is no {key}", where=f"embedding.{key}", fix=nearest(str(value), valid))
        if not 0 < self.lr_scale < float("inf"):
            raise ConfigError(f"{self.lr_scale} is not a positive factor", where="embedding.lr_scale")
        if self.capacity < 0:
            raise ConfigError(f"{self.capacity} is negative", where="embedding.capacity")
        if self.eviction_interval < 1:
            raise ConfigError(f"{self.eviction_interval} is less than 1", where="embedding.eviction_interval")
        if self.capacity and self.sharding not in ("row_wise", "auto"):
            fix = "set embedding.sharding: row_wise"
            raise ConfigError("managed ids are spread by rows", where="embedding.capacity", fix=fix)
        self._check_used()

    def _check_used(self) -> None:
        """Refuse what would change nothing."""
        lone = (
            ("lr_scale", self.sharded, "sharding: row_wise"),
            *((key, self.capacity, "capacity") for key in _OF_IDS),
        )
        for key, used, need in lone:
            if not used and getattr(self, key) != getattr(EmbeddingOptions, key):
                what = f"{getattr(self, key)} changes nothing without embedding.{need.partition(':')[0]}"
                raise ConfigError(what, where=f"embedding.{key}", fix=f"set embedding.{need}, or leave it away")

    @property
    def sharded(self) -> bool:
        """Whether TorchRec holds the table."""
        return self.sharding != "data_parallel"


class Asked(Protocol):
    """What the check reads of a run's options; the names are those of the recipe."""

    @property
    def grad_clip(self) -> float:
        """Largest gradient norm."""

    @property
    def accumulate(self) -> int:
        """Batches of an update."""

    @property
    def precision(self) -> str:
        """Of the layers."""


def check_embedding(options: EmbeddingOptions, training: Asked, *, loss: str, item_l2: float = 0.0) -> None:
    """Refuse what a sharded table cannot do, by the name of the key that asks for it.

    Args:
        options: the recipe's ``embedding``.
        training: its ``training``.
        loss: its ``model.loss.name``.
        item_l2: its ``optimizer.item_l2``.

    Raises:
        ConfigError: one line for the first thing that does not go together.
    """
    if not options.sharded:
        return
    fused, here = "a sharded table steps inside the backward pass", f"embedding.sharding: {options.sharding}"
    refused = (
        (training.grad_clip > 0, "training.grad_clip", f"{fused}, before any global norm is known", "set it to 0"),
        (training.accumulate > 1, "training.accumulate", f"{fused}, so every batch is an update", "set it to 1"),
        (training.precision == "float64", "training.precision", "a sharded table is float32", "use float32 or auto"),
        (item_l2 > 0, "optimizer.item_l2", "row-wise Adagrad adds no penalty", "set it to 0"),
        (
            loss == "softmax",
            "model.loss.name",
            "softmax multiplies with the whole table, which no process holds",
            "use sampled_softmax, whose negatives are looked up",
        ),
    )
    for applies, key, why, fix in refused:
        if applies:
            raise ConfigError(f"{why} ({here})", where=key, fix=fix)


def check_capacity(options: EmbeddingOptions, processes: int) -> None:
    """Refuse a number of processes that a managed table's rows do not divide over, alike in every process.

    Raises:
        ConfigError: one line that names the key.
        MachineError: TorchRec is not installed.
    """
    if not options.sharded:
        return
    if options.capacity % processes:
        what = f"{options.capacity} rows do not divide over {processes} processes"
        raise ConfigError(what, where="embedding.capacity", fix=f"choose a multiple of {processes}")
    require("torchrec", f"embedding.sharding: {options.sharding}")


def require(package: str, what: str) -> None:
    """Check that an optional package is there, without importing it.

    Raises:
        MachineError: it is not; names the extra.
    """
    if importlib.util.find_spec(package.partition(".")[0]) is None:
        raise MachineError(f"needs {package}, which is not installed", where=what, fix=f"Install {_EXTRA}")
