"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from pipelines.errors import ConfigError, nearest


def _uncompiled(kind: type[torch.optim.Adam]) -> type[torch.optim.Adam]:
    """``kind`` without torch.compile's imports: its first use would load 900 modules, a quarter of a start on a CPU.

    Its methods are wrapped so that the compiler, if there is one, stays out of them. The training loop compiles no
    optimiser, so the methods behind the wrappers do the same. Where torch wraps them otherwise, nothing is changed.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None and not hasattr(method, "__dynamo_disable"):
            method.__dynamo_disable = method  # where the wrapper keeps what it calls, once it has asked the compiler
    step = getattr(kind.step, "__wrapped__", None)
    return kind if step is None else type(kind.__name__, (kind,), {"step": torch.no_grad()(step)})


OPTIMIZERS = {"adam": _uncompiled(torch.optim.Adam), "adamw": _uncompiled(torch.optim.AdamW)}
SCHEDULES = ("constant", "linear", "cosine", "exponential")
ITEM_TABLE = "item_embedding.weight"  # of every retrieval task


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimiser and learning-rate schedule."""

    name: str = "adam"
    """``adam`` (weight decay as L2 in the gradient) or ``adamw`` (decoupled)."""
    lr: float = 1e-3
    """Learning rate after the warm-up."""
    beta1: float = 0.9
    """Decay of the gradient's running mean."""
    beta2: float = 0.999
    """Decay of the squared gradient's running mean."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.0
    """For weights of two or more dimensions; biases, norms and state-space parameters have none."""
    item_l2: float = 0.0
    """Adds ``item_l2`` times the sum of squares of the item table to the mean loss (``adam`` only)."""
    schedule: str = "constant"
    """After the warm-up: ``constant``; ``linear`` or ``cosine`` down to ``final_lr_ratio`` at the last epoch;
    ``exponential``: ``lr * decay_rate ** (e / decay_epochs)`` in the ``e``-th whole epoch after the warm-up's."""
    decay_rate: float = 0.95
    """What an ``exponential`` schedule multiplies the learning rate with in ``decay_epochs``."""
    decay_epochs: int = 1000
    """Epochs in which an ``exponential`` schedule comes down by ``decay_rate``."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly from 0."""
    final_lr_ratio: float = 0.0
    """The learning rate at the end of a decaying schedule, as a share of ``lr``."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ConfigError(
                f"unknown optimizer '{self.name}'", where="optimizer.name", fix=nearest(self.name, OPTIMIZERS)
            )
        if self.schedule not in SCHEDULES:
            fix = nearest(self.schedule, SCHEDULES)
            raise ConfigError(f"unknown schedule '{self.schedule}'", where="optimizer.schedule", fix=fix)
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"{self.lr} is not a positive learning rate", where="optimizer.lr")
        for key, top in (("beta1", 1.0), ("beta2", 1.0), ("final_lr_ratio", 1.0)):
            if not 0 <= getattr(self, key) <= top or (key != "final_lr_ratio" and getattr(self, key) == 1):
                raise ConfigError(f"{getattr(self, key)} is not between 0 and 1", where=f"optimizer.{key}")
        for key in ("eps", "weight_decay", "item_l2", "warmup_steps"):
            if not getattr(self, key) >= 0:
                raise ConfigError(f"{getattr(self, key)} is negative", where=f"optimizer.{key}")
        if self.item_l2 and self.name != "adam":  # decoupled decay is another function
            raise ConfigError("only adam adds a penalty to the loss", where="optimizer.item_l2")
        if not 0 < self.decay_rate <= 1:
            raise ConfigError(f"{self.decay_rate} is not above 0 and at most 1", where="optimizer.decay_rate")
        if self.decay_epochs < 1:
            raise ConfigError(f"{self.decay_epochs} is less than 1", where="optimizer.decay_epochs")


def build_optimizer(module: nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    """The optimiser over ``module``'s parameters, in its fused form (one pass over memory a step).

    Raises:
        ConfigError: ``item_l2`` for a module without an item table.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    items: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            no_decay = parameter.ndim < 2 or getattr(parameter, "no_weight_decay", False)
            own = items if options.item_l2 and name == ITEM_TABLE else decayed
            (plain if no_decay else own).append(parameter)
    if options.item_l2 and not items:
        raise ConfigError("the model has no item table", where="optimizer.item_l2", fix="set optimizer.item_l2=0")
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": plain, "weight_decay": 0.0},
        {"params": items, "weight_decay": options.weight_decay + 2 * options.item_l2},  # the gradient of a square
    ]
    return OPTIMIZERS[options.name](
        [group for group in groups if group["params"]],
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        fused=True,
    )


def learning_rate(options: OptimizerOptions, step: int, total_steps: int, epoch_steps: int = 1) -> float:
    """The learning rate of update number ``step`` (from 0) of ``total_steps``, ``epoch_steps`` of them an epoch.

    A function of the step alone, so that there is no schedule state to save.
    """
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    if options.schedule == "constant":
        return options.lr
    if options.schedule == "exponential":
        epochs = step // epoch_steps - options.warmup_steps // epoch_steps
        return options.lr * options.decay_rate ** (epochs / options.decay_epochs)
    done = min(1.0, (step - options.warmup_steps) / max(1, total_steps - options.warmup_steps))
    left = 1.0 - done if options.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return options.lr * (options.final_lr_ratio + (1.0 - options.final_lr_ratio) * left)
