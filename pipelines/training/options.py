"""How a training goes: the options of the loop."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import ConfigError


@dataclass(frozen=True)
class TrainingOptions:
    """How long to train, what to keep, when to look."""

    epochs: int = 200
    """Passes over the training windows at most."""
    accumulate: int = 1
    """Batches whose gradients make one update."""
    grad_clip: float = 0.0
    """Largest global gradient norm; 0 does not clip."""
    precision: str = "auto"
    """Of the layers: ``float32``, ``bfloat16`` (autocast), ``auto``: bfloat16 on a GPU, float32 on a CPU; ``float64``,
    weights included, shows whether two runs differ by rounding alone. The loss has its own: ``model.loss.precision``;
    environment.json says what it came to."""
    eval_every: int = 1
    """Epochs between validations."""
    patience: int = 10
    """Validations without a better ``select`` metric after which training stops; 0: never."""
    select: str = "NDCG@10"
    """Validation metric that chooses the checkpoint. The test set is never looked at here."""
    log_every: int = 10
    """Updates between log lines."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints inside an epoch."""
    keep: int = 2
    """Newest checkpoints kept, beside the best."""
    deterministic: bool = False
    """On a GPU: bit-identical repeats at some cost in speed. On a CPU runs repeat bit by bit anyway."""
    max_steps: int = 0
    """Updates at most, wherever in an epoch that is; 0: ``epochs`` alone decides."""
    eval_steps: int = 0
    """Updates between validations, in place of ``eval_every``; 0: by epochs."""
    valid_queries: int = 0
    """Validation queries that are asked while training, spread evenly over the users; 0: all. Final figures are always
    of all queries."""
    checkpoint_steps: int = 0
    """Updates between checkpoints, beside those by the clock; 0: by the clock alone."""
    profile_from: int = 0
    """First update, from 0, of the window that is profiled into the run's folder ``profile``."""
    profile_until: int = 0
    """The update before which that window ends; 0: no profile."""
    prefetch: int = 0
    """Batches made ahead by a thread, and on a GPU copied ahead beside the computing; 0: each when it is needed. With
    resident events (``loader.resident``) nothing is left to be made ahead, and none is."""
    cuda_graph: bool = False
    """On one GPU, with ``loader.batch: tokens``: batches are filled up to a fixed shape, and forward and backward are
    captured once as a CUDA graph and replayed, so that the host does not wait on the launching of kernels. The numbers
    are those of training without but for rounding and, with dropout or drawn negatives, for which numbers are drawn."""

    compile: bool = False
    """torch.compile for the feed-forward layers. Meant for GPUs; on a CPU it does not pay: SASRec's step with it is
    timed by benchmarks/model_steps.py. The numbers are those without but for rounding and what dropout draws."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        known = ("auto", "float32", "bfloat16", "float64")
        if self.precision not in known:
            raise ConfigError(f"'{self.precision}' is not one of {', '.join(known)}", where="training.precision")
        counts = ("max_steps", "eval_steps", "valid_queries", "checkpoint_steps", "profile_from", "prefetch")
        for key in ("grad_clip", "patience", "checkpoint_minutes", *counts):
            if not getattr(self, key) >= 0:
                raise ConfigError(f"{getattr(self, key)} is negative", where=f"training.{key}")
        for key in ("epochs", "accumulate", "eval_every", "log_every", "keep"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{getattr(self, key)} is less than 1", where=f"training.{key}")
        if self.profile_until and self.profile_until <= self.profile_from:
            what = f"the window ends at {self.profile_until}, before it begins at {self.profile_from}"
            raise ConfigError(what, where="training.profile_until")

    def validation_due(self, step: int) -> bool:
        """Whether to validate after ``step`` updates, be the epoch at its end or not."""
        return bool(self.eval_steps and step % self.eval_steps == 0) or bool(self.max_steps and step >= self.max_steps)

    def checkpoint_due(self, step: int) -> bool:
        """Whether the count of updates asks for a checkpoint."""
        return bool(self.checkpoint_steps) and step % self.checkpoint_steps == 0
