"""The training loop: jagged batches in, the best checkpoint on validation out; it can be killed and resumed anywhere.

The loop knows a task's ``loss`` alone. A loss comes as a sum and a count; gradients are divided by the count over all
accumulated batches and all processes, so that uneven batches weigh as much as they hold. With several processes (see
distributed.py) every one runs this loop over its share of each batch, and all decide alike; the first one writes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.batch import SequenceBatch
from models.tasks import LossOutput
from pipelines.data.loader import Gather, LoaderOptions, Windows, epoch_batches, gather_batch, training_batches
from pipelines.data.resident import Residence
from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError
from pipelines.training.checkpoint import load_checkpoint, prune_checkpoints, save_checkpoint
from pipelines.training.compiled import compile_layers
from pipelines.training.distributed import World, gradients_kept, shared_loss
from pipelines.training.graphed import GraphedStep, StepShape
from pipelines.training.guards import GuardOptions, Guards, Rent
from pipelines.training.observers import Log, Watch
from pipelines.training.optimizers import OptimizerOptions, build_optimizer, learning_rate
from pipelines.training.options import TrainingOptions as TrainingOptions
from pipelines.training.prefetch import ahead
from pipelines.training.profiling import ProfileWindow
from pipelines.training.signals import Interrupted, StopSignal
from pipelines.training.speed import Speed, WorkOf
from pipelines.training.state import TrainState, check_identity, random_state, set_random_state, spread_seeds


@dataclass(frozen=True)
class TrainingData:
    """What to train on: a store, the windows of its training events, how to batch them and where its events lie."""

    store: SequenceStore
    windows: Windows
    loader: LoaderOptions
    seed: int
    gather: Gather = gather_batch
    residence: Residence = field(default_factory=Residence)


@dataclass(frozen=True)
class Asked:
    """What all processes heard with the last update.

    Attributes:
        stop: one of them got a signal.
        save: the first one's clock says that a checkpoint is due.
        paid: seconds of the machine that are paid for, by the first one's clock.
    """

    stop: bool = False
    save: bool = False
    paid: float = 0.0


class Trainer:
    """A training in progress. ``run`` is the loop; the other methods are its steps.

    Args:
        task: the model with its loss, on its device.
        data: what to train on.
        options: how long, what to keep, when to look.
        optimizer: optimiser and schedule.
        guards: when to stop early.
        checkpoints: folder of the run's checkpoints.
        log: where events go.
        validate: metrics on the validation queries; called with the stop signal's check between batches.
        stop: SIGTERM and SIGINT.
        identity: digest of configuration and data that a checkpoint must match.
        provenance: code digest and commit of this process; a checkpoint lists those of every process that trained it.
        watch: debug mode, or None.
        world: this process among those that train together.
        rent: what the machine has cost before.
        work_of: FLOPs of a step, for the log; None where nobody has counted them.
    """

    def __init__(
        self,
        task: nn.Module,
        data: TrainingData,
        *,
        options: TrainingOptions,
        optimizer: OptimizerOptions,
        guards: GuardOptions,
        checkpoints: Path,
        log: Log,
        validate: Callable[[], Mapping[str, float]],
        stop: StopSignal,
        identity: str,
        provenance: Mapping[str, str] | None = None,
        watch: Watch | None = None,
        world: World | None = None,
        rent: Rent | None = None,
        work_of: WorkOf | None = None,
    ) -> None:
        self.task, self.data, self.options, self.optimizer_options = task, data, options, optimizer
        self.checkpoints, self.log, self.validate, self.stop, self.identity = checkpoints, log, validate, stop, identity
        self.watch, self.provenance = watch, [dict(provenance)] if provenance else []
        self.world, self.rent = world or World(), rent or Rent()
        self.device = next(task.parameters()).device
        bring = data.residence.bring
        self.resident = self.world.agree(lambda: bring(data.store, data.loader, data.gather, self.device))
        if options.compile:
            self.world.agree(lambda: compile_layers(task))  # one node may have no compiler
        self.loss = shared_loss(task, self.world)
        self.graphed = self.graphed_step() if options.cuda_graph else None
        self.optimizer = build_optimizer(task, optimizer)
        self.guards = Guards(guards)
        self.state, self.asked = TrainState(paid=self.rent.after(0.0)), Asked()
        self.epoch_loss = torch.zeros((), device=self.device, dtype=torch.float64)
        self.parameters = [p for p in task.parameters() if p.requires_grad]
        self.saved_at, self.clock = time.monotonic(), time.monotonic()
        batches = len(epoch_batches(data.windows, data.loader, seed=data.seed, epoch=0))
        self.epoch_steps = -(-batches // options.accumulate)
        self.total_steps = min(options.epochs * self.epoch_steps, options.max_steps or 2**62)
        self.speed = Speed(work_of)
        self.profile = ProfileWindow(options, checkpoints.parent / "profile", self.world.rank)
        if options.deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports the compiler
            torch.use_deterministic_algorithms(options.deterministic)
        if self.world.size > 1:
            spread_seeds(data.seed, self.world)
        if watch is not None:
            watch.attach(task, self.optimizer)

    def run(self) -> TrainState:
        """Train until an end: all epochs, no more progress, a spent budget. Returns where it ended.

        Raises:
            Interrupted: SIGTERM or SIGINT came; a checkpoint has been written.
            RunError: a guard has stopped the run, or a checkpoint could not be written.
        """
        self.write("start", total_steps=self.total_steps)
        with self.stop.deferred(), self.profile:
            while not self.state.finished:
                if self.state.to_validate:
                    self.judge_epoch()
                else:
                    self.train_epoch()
        return self.state

    def train_epoch(self) -> None:
        """The rest of the running epoch, or its part up to the next validation."""
        state, options = self.state, self.options
        batches = training_batches(
            self.data.store,
            self.data.windows,
            self.data.loader,
            seed=self.data.seed,
            epoch=state.epoch,
            first=state.batch,
            rank=self.world.rank,
            world=self.world.size,
            gather=self.resident or self.data.gather,
        )
        if options.prefetch and not self.resident:  # a resident batch is made where it is needed, in no time
            batches = ahead(batches, options.prefetch, self.device)
        self.task.train()
        self.speed.start(state.targets)
        while group := [batch for _, batch in zip(range(options.accumulate), batches, strict=False)]:
            self.profile.before(state.step)
            loss, norm = self.update(group)
            if state.step % options.log_every == 0:
                mean, grad_norm = loss.item(), norm.item()
                self.guards.check_step(state.step, mean, grad_norm)
                lr = self.optimizer.param_groups[0]["lr"]
                self.write("train", loss=mean, grad_norm=grad_norm, lr=lr, **self.speed.measure(state.targets))
            if reason := self.guards.spent(self.asked.paid):
                state.finished = reason
                self.save()
                return
            state.to_validate = options.validation_due(state.step)  # before a checkpoint that may be the last
            if self.asked.stop or self.asked.save or options.checkpoint_due(state.step):
                self.save()
            if self.asked.stop:
                raise Interrupted("stopped on request")
            if state.to_validate:
                return
        self.end_epoch()

    def update(self, group: list[SequenceBatch]) -> tuple[Tensor, Tensor]:
        """One optimiser step over the batches of ``group``; its mean loss and gradient norm (before clipping).

        Both stay on the device: reading them would make the host wait for every step.
        """
        state = self.state
        lr = learning_rate(self.optimizer_options, state.step, self.total_steps, self.epoch_steps)
        for parameter_group in self.optimizer.param_groups:
            parameter_group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        total, count = torch.zeros((), device=self.device, dtype=torch.float64), 0
        for number, batch in enumerate(group, start=1):
            self.speed.count(batch)
            if self.watch is not None:
                self.watch.before_update(batch, state.step)
            output = self.backward(batch.to(self.device), more=number < len(group))
            total += output.sum.detach()
            count += output.count
        total, count = self.hear(total, count)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_div_(grads, max(count, 1) / self.world.size)  # they are a mean over the processes so far
        norm = nn.utils.clip_grad_norm_(self.parameters, self.options.grad_clip or float("inf"))
        mean = total / max(count, 1)
        if self.watch is not None:
            self.watch.after_backward(mean.item(), state.step, state.epoch)
        self.optimizer.step()
        state.step += 1
        state.batch += len(group)
        state.targets += count
        state.loss_count += count
        self.epoch_loss += total
        return mean, norm

    def backward(self, batch: SequenceBatch, more: bool) -> LossOutput:
        """The loss of ``batch``, its gradients added to those of the batches before; ``more`` of the update follow."""
        if self.graphed is not None and (replayed := self.graphed.run(batch)) is not None:
            return replayed
        with gradients_kept(self.loss, more):
            with autocast(self.device, self.options.precision):
                output: LossOutput = self.loss(batch)
            output.sum.backward()  # type: ignore[no-untyped-call]
        return output

    def graphed_step(self) -> GraphedStep:
        """The step of this training as a CUDA graph.

        Raises:
            ConfigError: what it cannot be made of.
        """
        whole = type(self) is Trainer and self.world.size == 1 and self.options.accumulate == 1 and self.watch is None
        shape = StepShape.of(self.task, self.data.windows, self.data.loader, self.data.seed, self.device, plain=whole)
        return GraphedStep(self.loss, shape, lambda: autocast(self.device, self.options.precision, cached=False))

    def hear(self, total: Tensor, count: int) -> tuple[Tensor, int]:
        """Loss and count over all processes; the same message says whether to go on, so that all do the same."""
        first, paid = self.world.first, self.tick().paid
        due = time.monotonic() - self.saved_at > self.options.checkpoint_minutes * 60
        total, (targets, stop, save, paid) = self.world.add_up(
            total, count, self.stop.requested, first and due, first * paid
        )
        self.asked = Asked(stop > 0, save > 0, paid)
        return total, int(targets)

    def end_epoch(self) -> None:
        """Close the epoch's books."""
        state = self.state
        mean = self.epoch_loss.item() / max(state.loss_count, 1)
        state.epoch, state.batch, state.loss_count = state.epoch + 1, 0, 0
        self.epoch_loss.zero_()
        self.guards.check_finite(state.step, "epoch's mean loss", mean)
        self.guards.check_epoch(state.epoch, mean)
        self.write("epoch", train_loss=mean, seconds=self.tick().seconds)
        if state.judged < state.step:
            every = 0 if self.options.eval_steps else self.options.eval_every
            state.to_validate = state.epoch == self.options.epochs or bool(every and state.epoch % every == 0)
        else:  # its last update was one after which to validate
            state.finished = self.world.on_first(self.end_reason)
            if state.finished:
                self.save()

    def judge_epoch(self) -> None:
        """Validate, keep the best, decide whether to go on.

        An interrupted validation is not lost: the checkpoint says that it is still to come.
        """
        state, options = self.state, self.options
        self.task.eval()
        try:
            metrics = self.validate()
        except Interrupted:
            self.save()
            raise
        if options.select not in metrics:
            known = ", ".join(sorted(metrics))
            raise ConfigError(f"'{options.select}' is not measured; there are {known}", where="training.select")
        state.to_validate, state.judged = False, state.step
        if metrics[options.select] > state.best_value:
            state.best_value, state.best_step, state.stale = metrics[options.select], state.step, 0
        else:
            state.stale += 1
        self.write("valid", **metrics)
        due = time.monotonic() - self.saved_at > options.checkpoint_minutes * 60
        state.finished, due = self.world.on_first(lambda: (self.end_reason(), due))  # one clock for all
        if state.finished or state.best_step == state.step or due:
            self.save()

    def end_reason(self) -> str:
        """Why training should end after this validation; empty when it should go on."""
        state, options = self.state, self.options
        if options.patience and state.stale >= options.patience:
            return f"no better {options.select} in {options.patience} validations"
        if state.epoch >= options.epochs:
            return f"{options.epochs} epochs done"
        if options.max_steps and state.step >= options.max_steps:
            return f"{options.max_steps} updates done"
        return self.guards.spent(self.tick().paid) or ""

    def save(self) -> None:
        """Write a checkpoint of this very moment.

        Raises:
            RunError: the weights are not finite, or the disk does not take them; the checkpoints before stay.
        """
        self.tick()
        largest = torch.stack(torch._foreach_norm([p.detach() for p in self.parameters], ord=float("inf"))).max()
        self.guards.check_finite(self.state.step, "largest weight", largest.item())
        self.state.loss_sum = self.epoch_loss.item()
        random = self.world.gather(random_state(self.device))
        self.world.on_first(lambda: self.put_down(random))
        self.saved_at = time.monotonic()
        self.log.write("checkpoint", step=self.state.step, epoch=self.state.epoch)

    def put_down(self, random: list[dict[str, Any]]) -> None:
        """Write the checkpoint, with the random state of every process, and delete what it makes superfluous."""
        state = {
            "identity": self.identity,
            "model": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": asdict(self.state),
            "guards": self.guards.state(),
            "rng": random,
            "tracker_ids": dict(self.log.tracker_ids),
            "provenance": self.provenance,
        }
        save_checkpoint(self.checkpoints, self.state.step, state)
        best = self.state.best_step if self.state.best_step >= 0 else None
        prune_checkpoints(self.checkpoints, keep=self.options.keep, best=best)

    def restore(self, path: Path) -> None:
        """Go on from the checkpoint at ``path``, which the first process reads for all.

        Raises:
            RunError: it cannot be read, or belongs to another configuration or other data.
        """
        saved = self.world.on_first(lambda: load_checkpoint(path))
        check_identity(saved, self.identity, path)
        earlier = [entry for entry in saved.get("provenance", []) if entry not in self.provenance]
        self.provenance = earlier + self.provenance
        self.task.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state = TrainState(**saved["state"])
        self.state.paid = self.rent.after(self.state.paid)
        self.epoch_loss.fill_(self.state.loss_sum)
        self.guards.restore(saved["guards"])
        if not set_random_state(saved["rng"], self.device, self.world, self.data.seed + self.state.step):
            before, now = len(saved["rng"]), self.world.size
            self.write("processes", message=f"{before} before, {now} now: random numbers are drawn afresh")
        if self.state.finished:  # epochs, patience or budget may have been raised since
            self.state.finished = self.world.on_first(self.end_reason)

    def tick(self) -> TrainState:
        """Add the time since the last call to the run's seconds."""
        now = time.monotonic()
        passed, self.clock = now - self.clock, now
        self.state.seconds += passed
        self.state.paid += passed
        return self.state

    def write(self, kind: str, **values: float | str) -> None:
        """One event at the present step and epoch, with the cost so far when the price is known."""
        cost = self.guards.options.cost(self.tick().paid)
        extra: dict[str, Any] = {} if cost is None else {"cost": cost}
        self.log.write(kind, step=self.state.step, epoch=self.state.epoch, **values, **extra)


def autocast(device: torch.device, precision: str, *, cached: bool = True) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 autocast where ``precision`` asks for it (``auto``: on a GPU only).

    Weights that are used twice are converted once where they are ``cached``, which a CUDA graph does not bear.
    """
    wanted = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    if not wanted:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=cached)
