"""Guards: a training that cannot succeed any more, or may not go on, stops while it still costs little."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.errors import ConfigError, RunError

_LOADED = time.monotonic()  # with the configuration, a second or two after the process began


@dataclass(frozen=True)
class GuardOptions:
    """When to stop a training early."""

    max_grad_norm: float = 1e4
    """Gradient norm (before clipping) that counts as an explosion; 0 switches the guard off."""
    explosion_steps: int = 3
    """Logged steps in a row over ``max_grad_norm`` before the run stops."""
    stuck_epochs: int = 3
    """Epochs after the first in which the training loss must have moved; 0 switches the guard off."""
    stuck_change: float = 1e-3
    """The smallest relative change of the epoch's mean loss that counts as moving."""
    max_hours: float | None = None
    """Hours for which the machine is paid, over all resumes; then the run stops with what it has."""
    max_cost: float | None = None
    """Spend over all resumes, in the currency of ``price_per_hour``; then the run stops with what it has."""
    price_per_hour: float | None = None
    """What the machine costs an hour; needed by ``max_cost``."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        if self.max_cost is not None and self.price_per_hour is None:
            raise ConfigError(
                "--max-cost needs the price of an hour", where="guards.max_cost", fix="add --price-per-hour"
            )
        for key in ("max_hours", "max_cost", "price_per_hour"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(f"{value} is not positive", where=f"guards.{key}")

    def cost(self, seconds: float) -> float | None:
        """What ``seconds`` of the machine cost, or None when no price is given."""
        return None if self.price_per_hour is None else seconds / 3600 * self.price_per_hour


@dataclass(frozen=True)
class Rent:
    """Seconds that the machine has been paid for before a training begins; what a budget counts starts there.

    Attributes:
        earlier: before this process, where somebody has kept count of them (RECPOD_RENT_SECONDS); else a checkpoint
            knows those of the sessions before it.
        here: in this process: data, checks, compiling.
    """

    earlier: float = 0.0
    here: float = 0.0

    @staticmethod
    def so_far() -> Rent:
        """As environment and clock have it now. A worker that was started again counts from its launch on.

        Raises:
            ConfigError: a variable that is no number.
        """
        launched, here = _number("RECPOD_LAUNCHED"), time.monotonic() - _LOADED
        return Rent(_number("RECPOD_RENT_SECONDS") or 0.0, max(here, time.time() - launched) if launched else here)

    def after(self, saved: float) -> float:
        """All of it, after sessions that have left ``saved`` seconds in a checkpoint."""
        return max(self.earlier, saved) + self.here


def _number(name: str) -> float | None:
    text = os.environ.get(name)
    try:
        return float(text) if text else None
    except ValueError:
        raise ConfigError(f"'{text}' is no number of seconds", where=name) from None


@dataclass
class Guards:
    """The guards' memory: it goes into the checkpoint.

    Attributes:
        options: when to stop.
        exploding: logged steps in a row with an exploded gradient.
        losses: mean training loss of each finished epoch.
    """

    options: GuardOptions
    exploding: int = 0
    losses: list[float] = field(default_factory=list)

    def check_step(self, step: int, loss: float, grad_norm: float) -> None:
        """Look at a logged step.

        Raises:
            RunError: the loss or the gradient is not finite, or the gradient has exploded several times in a row.
        """
        self.check_finite(step, "loss", loss)
        self.check_finite(step, "gradient norm", grad_norm)
        limit = self.options.max_grad_norm
        self.exploding = self.exploding + 1 if limit and grad_norm > limit else 0
        if self.exploding >= self.options.explosion_steps:
            raise RunError(
                f"the gradient norm was over {limit:g} for {self.exploding} logged steps, "
                f"now {grad_norm:.3g} at step {step}",
                fix="lower optimizer.lr, set training.grad_clip, or raise guards.max_grad_norm",
            )

    def check_finite(self, step: int, name: str, value: float) -> None:
        """Refuse NaN and infinity.

        Raises:
            RunError: ``value`` is not finite.
        """
        if not math.isfinite(value):
            fix = "lower optimizer.lr or set training.grad_clip; --debug names the module that made it first"
            raise RunError(f"the {name} is {value} at step {step}", fix=fix)

    def check_epoch(self, epoch: int, mean_loss: float) -> None:
        """Look at a finished epoch's mean loss.

        Raises:
            RunError: the loss has not moved since the first epoch.
        """
        self.losses.append(mean_loss)
        window = self.options.stuck_epochs
        if not window or len(self.losses) != window + 1:
            return
        first = self.losses[0]
        if max(abs(loss - first) for loss in self.losses[1:]) < self.options.stuck_change * max(abs(first), 1e-12):
            raise RunError(
                f"the training loss has not moved: {first:.6g} in epoch 1, {mean_loss:.6g} in epoch {epoch}",
                fix="check optimizer.lr and the data, or set guards.stuck_epochs=0",
            )

    def spent(self, seconds: float) -> str | None:
        """Why the budget is used up when ``seconds`` of the machine are paid for, or None."""
        if self.options.max_hours is not None and seconds >= self.options.max_hours * 3600:
            return f"max_hours {self.options.max_hours:g} reached"
        cost = self.options.cost(seconds)
        if cost is not None and self.options.max_cost is not None and cost >= self.options.max_cost:
            return f"max_cost {self.options.max_cost:g} reached"
        return None

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the guards."""
        return {key: value for key, value in asdict(self).items() if key != "options"}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.exploding, self.losses = int(state["exploding"]), list(state["losses"])
