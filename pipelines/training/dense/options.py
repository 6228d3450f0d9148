"""How a recipe asks for tensor parallel layers, and what does not go with them: checked before anything is loaded.

    parallel: {tensor: 2, sequence: true}

Free of torch and of Megatron-Core.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import ConfigError
from pipelines.training.sparse.options import require


@dataclass(frozen=True)
class ParallelOptions:
    """How a block's layers are spread."""

    tensor: int = 1
    """Processes that share each block, every one with its part of the heads. The rest of the processes are groups of so
    many, each with its own share of the batches."""
    sequence: bool = False
    """Between a block's projections, each of the ``tensor`` processes keeps its part of the tokens alone: norms and
    residuals are computed once instead of by all, and less is kept for the backward pass."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        if self.tensor < 1:
            raise ConfigError(f"{self.tensor} is less than 1", where="parallel.tensor")
        if self.sequence and self.tensor == 1:
            fix = "set parallel.tensor to 2 or more, or leave it away"
            raise ConfigError("tokens are spread over the processes of a block", where="parallel.sequence", fix=fix)


def check_heads(options: ParallelOptions, *, heads: int | None, model: str) -> None:
    """Refuse a model that cannot be spread so.

    Args:
        options: the recipe's ``parallel``.
        heads: the model's ``heads``; None for a model without a tensor parallel form.
        model: its name.

    Raises:
        ConfigError: one line that names the key.
    """
    size, where = options.tensor, "parallel.tensor"
    if size == 1:
        return
    if heads is None:
        fix = "set it to 1, or use hstu or hstu-ranking"
        raise ConfigError(f"{model} has no tensor parallel form", where=where, fix=fix)
    if heads % size:
        fix = "choose a divisor of model.heads"
        raise ConfigError(f"{size} does not divide the {heads} heads of the model", where=where, fix=fix)


def check_processes(options: ParallelOptions, processes: int) -> None:
    """Refuse a number of processes that makes no whole groups, alike in every process: nothing is exchanged.

    Raises:
        ConfigError: one line that names the key.
        MachineError: Megatron-Core is not installed.
    """
    size, where = options.tensor, "parallel.tensor"
    if size == 1:
        return
    if processes % size:
        what = f"{processes} process{'es' if processes > 1 else ''} cannot make groups of {size}"
        raise ConfigError(what, where=where, fix=f"start a multiple of {size} (entrypoints/launch.sh --processes)")
    require("megatron.core", f"parallel.tensor: {size}")
