"""RecBole's training epochs, one after another, between this project's validations, guards and checkpoints."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.config import RunConfig
from pipelines.errors import ConfigError, RunError, nearest
from pipelines.training.checkpoint import prune_checkpoints, save_checkpoint
from pipelines.training.guards import Guards, Rent
from pipelines.training.run_log import RunLog, beat
from pipelines.training.signals import StopSignal
from pipelines.training.state import TrainState


@dataclass(frozen=True)
class Loop:
    """What surrounds the epochs.

    Attributes:
        config: the recipe.
        identity: digest of what decides the weights.
        provenance: code and commit of each start.
        checkpoints: folder of the checkpoints.
        log: where events go.
        stop: a request to stop is honoured between batches.
    """

    config: RunConfig
    identity: str
    provenance: list[dict[str, str]]
    checkpoints: Path
    log: RunLog
    stop: StopSignal


class EpochLoop:
    """The epochs of a RecBole trainer.

    Args:
        around: see :class:`Loop`.
        trainer: RecBole's; it makes the loss and the updates of an epoch.
        loader: RecBole's loader of training rows.
        validate: the metrics of the validation queries.
    """

    def __init__(self, around: Loop, trainer: Any, loader: Any, validate: Callable[[], Mapping[str, float]]) -> None:
        self.around, self.trainer, self.loader, self.validate = around, trainer, loader, validate
        self.options = around.config.training
        self.guards = Guards(around.config.guards)
        self.state = TrainState()

    def run(self, saved: Mapping[str, Any] | None) -> TrainState:
        """Train to the end, from the checkpoint ``saved`` or from the start; the state says why it ended.

        Raises:
            RunError: the loss is not finite or does not move.
            Interrupted: asked to stop; the last validated epoch is saved.
        """
        if saved is not None:
            self._restore(saved)
        rent = Rent.so_far()
        before, paid, started = self.state.seconds, rent.after(self.state.paid), time.perf_counter()
        self.state.finished = self._ended()
        while not self.state.finished:
            self._epoch()
            passed = time.perf_counter() - started
            self.state.seconds, self.state.paid = before + passed, paid + passed
            if self.state.epoch % self.options.eval_every == 0 or self.state.epoch == self.options.epochs:
                self._validate()
                self._save()
            self.state.finished = self._ended()
        return self.state

    def _epoch(self) -> None:
        """One of RecBole's epochs."""
        state, started, losses, rows = self.state, time.perf_counter(), 0, 0

        def loss(interaction: Any) -> Any:
            nonlocal losses, rows
            beat()
            self.around.stop.raise_if_requested()
            losses, rows = losses + 1, rows + len(interaction)
            return self.trainer.model.calculate_loss(interaction)

        try:
            total = self.trainer._train_epoch(self.loader, state.epoch, loss_func=loss)
        except KeyError as error:
            name = self.around.config.engine.model
            raise ConfigError(
                f"RecBole's {name} reads {error}, which these data do not have", where="engine.model"
            ) from error
        except ValueError as error:  # RecBole's own look at the loss
            if "nan" not in str(error):
                raise
            raise RunError(f"RecBole: {error}", fix="lower engine.options.learning_rate") from error
        mean = (sum(total) if isinstance(total, tuple) else total) / max(losses, 1)
        state.step, state.epoch, state.targets = state.step + losses, state.epoch + 1, state.targets + rows
        if not math.isfinite(mean):
            self.guards.check_finite(state.step, "loss", mean)
        seconds = time.perf_counter() - started
        self.around.log.write(
            "epoch",
            step=state.step,
            epoch=state.epoch,
            train_loss=mean,
            seconds=state.seconds + seconds,
            targets_per_s=rows / seconds,
        )
        self.guards.check_epoch(state.epoch, mean)

    def _validate(self) -> None:
        state, metrics, select = self.state, self.validate(), self.options.select
        if select not in metrics:
            raise ConfigError(f"'{select}' is not measured", where="training.select", fix=nearest(select, metrics))
        if metrics[select] > state.best_value:
            state.best_value, state.best_step, state.stale = metrics[select], state.step, 0
        else:
            state.stale += 1
        self.around.log.write("valid", step=state.step, epoch=state.epoch, **metrics)

    def _ended(self) -> str:
        """Why there is no further epoch, or nothing."""
        if self.state.epoch >= self.options.epochs:
            return f"{self.options.epochs} epochs"
        if self.options.patience and self.state.stale >= self.options.patience:
            return f"no better {self.options.select} in {self.options.patience} validations"
        return self.guards.spent(self.state.paid) or ""

    def _save(self) -> None:
        generator: torch.Generator = self.loader.generator
        content = {
            "identity": self.around.identity,
            "provenance": self.around.provenance,
            "tracker_ids": dict(self.around.log.tracker_ids),
            "state": asdict(self.state),
            "guards": self.guards.state(),
            "model": self.trainer.model.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            "random": random_states(generator),
        }
        step = self.state.step
        with self.around.stop.deferred():
            save_checkpoint(self.around.checkpoints, step, content)
            prune_checkpoints(self.around.checkpoints, keep=self.options.keep, best=self.state.best_step)
            self.around.log.write("checkpoint", step=step, epoch=self.state.epoch)

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self.state = TrainState(**saved["state"])
        self.guards.restore(saved["guards"])
        self.trainer.model.load_state_dict(saved["model"])
        self.trainer.optimizer.load_state_dict(saved["optimizer"])
        set_random_states(saved["random"], self.loader.generator)


def random_states(generator: torch.Generator) -> dict[str, Any]:
    """Every generator that RecBole draws from, as tensors and numbers: Python's, NumPy's, PyTorch's, its loader's."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  (RecBole samples negatives from it)
    return {
        "python": random.getstate(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "loader": generator.get_state(),
    }


def set_random_states(saved: Mapping[str, Any], generator: torch.Generator) -> None:
    """Put every generator where :func:`random_states` found it."""
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = saved["numpy"]
    numbers: Tensor = keys
    np.random.set_state((name, numbers.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(saved["torch"].cpu())
    if saved["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in saved["cuda"]])
    generator.set_state(saved["loader"].cpu())
