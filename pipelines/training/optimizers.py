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
SCHEDULES = ("constant", "linear", "cosine")


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
    schedule: str = "constant"
    """After the warm-up: ``constant``, or ``linear`` or ``cosine`` down to ``final_lr_ratio`` at the last epoch."""
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
        for key in ("eps", "weight_decay", "warmup_steps"):
            if not getattr(self, key) >= 0:
                raise ConfigError(f"{getattr(self, key)} is negative", where=f"optimizer.{key}")


def build_optimizer(module: nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    """The optimiser over ``module``'s parameters, in its fused form (one pass over memory a step)."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            no_decay = parameter.ndim < 2 or getattr(parameter, "no_weight_decay", False)
            (plain if no_decay else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return OPTIMIZERS[options.name](
        [group for group in groups if group["params"]],
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        fused=True,
    )


def learning_rate(options: OptimizerOptions, step: int, total_steps: int) -> float:
    """The learning rate of update number ``step`` (from 0) of ``total_steps``.

    A function of the step alone, so that there is no schedule state to save.
    """
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    if options.schedule == "constant":
        return options.lr
    done = min(1.0, (step - options.warmup_steps) / max(1, total_steps - options.warmup_steps))
    left = 1.0 - done if options.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return options.lr * (options.final_lr_ratio + (1.0 - options.final_lr_ratio) * left)
