"""Debug mode: watches every update, names the module that made the first NaN, and keeps that one step on disk.

Torch only. It is attached to a model or it costs nothing; attached, it adds a pass over each module's output and never
shortens or changes a run: no random number is drawn, no gradient touched. Of several processes each watches its own
part, and after every update all of them hear of the others: they end together, in one line that names the process.
"""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.batch import SequenceBatch
from pipelines.errors import ConfigError, RunError
from pipelines.training.debug_dump import random_state, save_dump
from pipelines.training.debug_trace import Origin, Seen, Trace, find_origin
from pipelines.training.distributed import World

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DebugOptions:
    """How closely to watch."""

    every: int = 100
    """Updates between reports of gradient norms and activations; what is not finite is looked for in every update."""
    stuck_window: int = 500
    """Updates over which the loss must move after the first epoch, else an alarm; 0 switches it off."""
    stuck_change: float = 1e-3
    """The smallest relative change, between the window's older and newer half, that counts as moving."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"{self.every} is less than 1", where="debug.every")
        if self.stuck_window < 0 or self.stuck_window == 1:
            raise ConfigError(
                f"{self.stuck_window} is no window", where="debug.stuck_window", fix="use 0, or 2 and more"
            )


@dataclass
class LossAlarm:
    """Says when the loss has not moved.

    Attributes:
        window: updates looked at.
        change: smallest relative change that counts as moving.
    """

    window: int
    change: float

    def __post_init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=max(self.window, 1))

    def update(self, loss: float, epoch: int) -> str | None:
        """Take one update's loss; the alarm's words, or None.

        Args:
            loss: mean loss of the update.
            epoch: finished epochs: during the first, warm-up alone may keep the loss where it is.
        """
        if not self.window or epoch < 1:
            return None
        self._losses.append(loss)
        if len(self._losses) < self.window:
            return None
        losses, half = list(self._losses), self.window // 2
        before, after = sum(losses[:half]) / half, sum(losses[half:]) / (self.window - half)
        self._losses.clear()  # one alarm a window, not one an update
        relative = abs(after - before) / max(abs(before), 1e-12)
        if not relative < self.change:
            return None
        return f"the loss has not moved in {self.window} updates: {before:.6g} to {after:.6g} ({relative:.1e} relative)"


@dataclass(frozen=True)
class _Line:
    """What a :class:`RunError` is made of, as it can be sent."""

    what: str
    where: str | None
    fix: str


@dataclass
class DebugWatch:
    """Looks over the shoulder of every update.

    The trainer calls :meth:`attach` once, :meth:`before_update` before each batch's forward and :meth:`after_backward`
    when the gradients of the update are complete and the optimiser has not stepped yet, in all processes.

    Attributes:
        folder: the run's ``debug`` folder: ``step-N.pt`` and ``step-N.json`` of a failed step go there.
        options: how closely to watch.
        write: takes events as ``write(kind, step=, epoch=, **numbers)``: kinds "debug", of all processes the largest
            numbers, and "alarm".
        world: this process among all that train together.
    """

    folder: Path
    options: DebugOptions = field(default_factory=DebugOptions)
    write: Callable[..., object] | None = None
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        self._model: nn.Module | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._trace: Trace | None = None
        self._step = -1
        self._batches: list[SequenceBatch] = []
        self._random_states: list[dict[str, Tensor]] = []
        self._alarm = LossAlarm(self.options.stuck_window, self.options.stuck_change)

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Start to watch ``model``; ``optimizer`` is for the dump alone."""
        self.detach()
        self._model, self._optimizer, self._trace = model, optimizer, Trace(model)

    def detach(self) -> None:
        """Take every hook off the model."""
        if self._trace is not None:
            self._trace.detach()
        self._model = self._optimizer = self._trace = None

    def before_update(self, batch: SequenceBatch, step: int) -> None:
        """Before the forward of one batch; several batches of one ``step`` are one update.

        Raises:
            RuntimeError: nothing is attached.
        """
        model, trace = self._attached()
        if step == self._step and self._batches:
            trace.resume()
        else:
            self._step, self._batches, self._random_states = step, [], []
            trace.start(count_zeros=step % self.options.every == 0)
        self._batches.append(batch)
        self._random_states.append(random_state(next(model.parameters()).device))

    def after_backward(self, loss: float, step: int, epoch: int = 0) -> None:
        """After the backward of the update's last batch, before the optimiser's step.

        Args:
            loss: mean loss of the update.
            step: updates done before this one.
            epoch: epochs finished.

        Raises:
            RunError: in all processes, when a value of any of them is not finite; names the module that made the first
                one, the process, and the dump.
        """
        model, trace = self._attached()
        seen = trace.read()
        norms = gradient_norms(model)
        # Only these two decide: an infinity on the way may be meant, as in a mask.
        broken = not (math.isfinite(loss) and all(map(math.isfinite, norms.values())))
        origin = find_origin(seen, model) if broken else None
        found = self.world.gather((origin is not None, broken))
        if any(failed for _, failed in found):
            # A loss that is not finite is everyone's: who has seen where it came from speaks, of several the first.
            speaker = max(range(len(found)), key=lambda rank: (found[rank], -rank))
            mine = self.world.rank == speaker
            told = self.world.gather(self._failure(seen, origin, norms, loss, step, epoch) if mine else None)[speaker]
            assert told is not None
            raise RunError(told.what, where=told.where, fix=told.fix)
        self._batches, self._random_states = [], []
        if step % self.options.every == 0:
            self._tell("debug", step, epoch, **_largest(self.world.gather({**norms, **activations(seen)})))
        if (alarm := self._alarm.update(loss, epoch)) and self.world.first:  # the loss is that of all
            logger.warning("step %d: %s", step, alarm)
            self._tell("alarm", step, epoch, message=alarm)

    def _attached(self) -> tuple[nn.Module, Trace]:
        if self._model is None or self._trace is None:
            raise RuntimeError("attach a model first")
        return self._model, self._trace

    def _tell(self, kind: str, step: int, epoch: int, **values: float | str) -> None:
        if self.write is not None:
            self.write(kind, step=step, epoch=epoch, **values)

    def _failure(
        self, seen: list[Seen], origin: Origin | None, norms: dict[str, float], loss: float, step: int, epoch: int
    ) -> _Line:
        """Dump the step, as this process has it, and put what is known into one line."""
        model, _ = self._attached()
        facts = {"step": step, "epoch": epoch, "loss": loss, "rank": self.world.rank, "processes": self.world.size}
        path = self.folder / f"step-{step}.pt"
        maker = origin or "the loss function, outside any module"
        which = f" on rank {self.world.rank} of {self.world.size}" if self.world.size > 1 else ""
        what = f"the first value that is not finite came from {maker} at step {step}{which}"
        try:
            save_dump(
                path,
                model=model,
                optimizer=self._optimizer,
                batches=self._batches,
                random_states=self._random_states,
                facts={**facts, "origin": str(origin)},
            )
            summary = _summary(facts, origin, norms, seen, path)
            path.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        except OSError as error:  # the finding matters more than the dump
            return _Line(
                what, None, f"Lower the learning rate or look at that module (the step could not be dumped: {error})"
            )
        return _Line(what, str(path), "Lower the learning rate, or load the dump and look at that module")


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Norm of the gradient of each group of parameters: ``grad_norm/blocks.0``, ``grad_norm/item_embedding``, ..."""
    groups: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in _leaves(model):
        if parameter.grad is not None:
            groups[parameter_group(name)].append(parameter.grad.detach().norm().float())
    if not groups:
        return {}
    norms = torch.stack([torch.stack(group).norm() for group in groups.values()]).tolist()
    return {f"grad_norm/{name}": norm for name, norm in zip(groups, norms, strict=True)}


def _leaves(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What gradients end in: the parameters, and plain tensors in their place, as a page of a spread item table is."""
    yield from model.named_parameters()
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_leaf and value.requires_grad:
                yield f"{name}.{key}", value


def _largest(told: list[dict[str, float]]) -> dict[str, float]:
    """Of each number the largest that any process has."""
    found: dict[str, float] = {}
    for numbers in told:
        found |= {key: max(value, found.get(key, value)) for key, value in numbers.items()}
    return found


def parameter_group(name: str) -> str:
    """The part of a parameter's name that names its group: up to the first number, else the first word."""
    parts = name.split(".")
    end = next((index for index, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: end + 1])


def activations(seen: list[Seen]) -> dict[str, float]:
    """``max_abs/MODULE`` and ``zeros/MODULE`` (share of zeros) of the modules' outputs, the largest over an update."""
    values: dict[str, float] = {}
    for entry in seen:
        if entry.where != "output":
            continue
        name = entry.module or "model"
        largest = max(abs(entry.low), abs(entry.high))
        values[f"max_abs/{name}"] = max(largest, values.get(f"max_abs/{name}", 0.0))
        if entry.zeros is not None:
            values[f"zeros/{name}"] = max(entry.zeros, values.get(f"zeros/{name}", 0.0))
    return values


def _summary(
    facts: dict[str, Any], origin: Origin | None, norms: dict[str, float], seen: list[Seen], dump: Path
) -> dict[str, Any]:
    """What a person reads first; numbers that are not finite as text, since JSON has none."""

    def text(value: float) -> float | str:
        return value if math.isfinite(value) else str(value)

    return {
        **facts,
        "loss": text(facts["loss"]),
        "origin": asdict(origin) if origin is not None else None,
        "gradient_norms": {name: text(norm) for name, norm in norms.items()},
        "not_finite": [f"{entry.where} of {entry.module or 'model'}" for entry in seen if not entry.finite][:20],
        "activations": {name: text(value) for name, value in activations(seen).items()},
        "dump": dump.name,
    }
