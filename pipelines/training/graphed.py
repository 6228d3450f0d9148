"""A training step of fixed shape, captured once as a CUDA graph and replayed: one launch in place of hundreds.

Batches of equal tokens are filled up to one number of tokens and rows by rows at the end that nobody reads and that
weigh nothing. Forward and backward of such a batch depend on no value that the host would have to wait for (see
:class:`models.batch.FixedShape`), so they are captured after a warm-up on a side stream, as PyTorch asks, and replayed
with the batch copied into the memory that they were captured with. Dividing by the count, clipping and the optimiser
stay outside: they are a few launches, and the learning rate changes from step to step.

Random numbers come from the device's own generator, which a replay moves on as the step would have: they differ from
step to step, and a checkpoint holds where the generator stands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batch import FixedShape, SequenceBatch
from models.tasks import LossOutput
from pipelines.data.loader import LoaderOptions, Windows, epoch_batches
from pipelines.errors import ConfigError, MachineError

SPARE = 0.125  # of a batch's tokens may be filling
_WARM_UPS = 3
_STEP_OF_TOKENS, _STEP_OF_ROWS = 8, 32
_OFF = "set training.cuda_graph=false"


@dataclass(frozen=True)
class StepShape:
    """What every batch is filled up to.

    Attributes:
        tokens: ``T``.
        rows: ``U``.
        longest: no row has more tokens.
    """

    tokens: int
    rows: int
    longest: int

    @classmethod
    def of(
        cls,
        task: nn.Module,
        windows: Windows,
        options: LoaderOptions,
        seed: int,
        device: torch.device,
        *,
        plain: bool = True,
    ) -> StepShape:
        """The shape that takes every full batch of the first epoch, and with room for the others' rows.

        Args:
            task: the model with its loss.
            windows: of training.
            options: how they become batches.
            seed: of their order.
            device: to train on.
            plain: one process holds the whole model and each update is of one batch that nobody watches.

        Raises:
            ConfigError: a step of this task cannot have a fixed shape.
            MachineError: no GPU.
        """
        check_gpu(device.type)
        check_step(task, options, plain)
        return cls.fitting(windows, options, seed)

    @classmethod
    def fitting(cls, windows: Windows, options: LoaderOptions, seed: int) -> StepShape:
        """As :meth:`of`, whatever the device.

        Raises:
            ConfigError: rows so long that too much of a batch would be filling.
        """
        longest, asked = int(windows.lengths.max()), options.tokens_per_batch
        if 2 * longest > SPARE * asked:
            what = f"{asked} tokens a batch are too few for rows of up to {longest}: too much of it would be filling"
            fix = f"set loader.tokens_per_batch={round(2 * longest / SPARE)} or more"
            raise ConfigError(what, where="training.cuda_graph", fix=fix)
        # A batch ends with the row that crosses a multiple of `asked`: it has from asked - longest to asked + longest.
        tokens = _round_up(asked + longest, _STEP_OF_TOKENS)
        filling = -(-(tokens - asked + longest) // longest)
        most = max(len(rows) for rows in epoch_batches(windows, options, seed=seed, epoch=0))
        return cls(tokens, _round_up(most + most // 16, _STEP_OF_ROWS) + filling, longest)

    def filled(self, batch: SequenceBatch) -> SequenceBatch | None:
        """``batch`` with rows of item 1 without targets behind it; None where it is too large or much too small.

        Raises:
            ValueError: not every token of it has a target, or it has more than a sequence model reads.
        """
        if not batch.all_targets or batch.labels is not None or batch.context_offsets is not None:
            raise ValueError("only a training batch with a target at every token is filled up")
        tokens, rows = self.tokens - batch.num_tokens, self.rows - batch.num_rows
        if not 0 <= tokens <= SPARE * self.tokens or rows * self.longest < tokens:
            return None

        def pad(values: Tensor | None, count: int, value: int = 0) -> Any:
            return None if values is None else functional.pad(values, (0, count), value=value)

        more = torch.arange(1, rows + 1, device=batch.offsets.device) * self.longest + batch.num_tokens
        return replace(
            batch,
            offsets=torch.cat([batch.offsets, more.clamp(max=self.tokens)]),
            items=pad(batch.items, tokens, 1),  # an item, as every token's: losses look its vector up
            timestamps=pad(batch.timestamps, tokens),
            targets=pad(batch.targets, tokens),
            request_time=pad(batch.request_time, rows),
            user_index=pad(batch.user_index, rows),
            ratings=pad(batch.ratings, tokens),
            actions=pad(batch.actions, tokens),
            context={key: pad(value, rows) for key, value in batch.context.items()} if batch.context else None,
            all_targets=False,
            fixed=FixedShape(self.longest, batch.num_tokens),
        )


def check_gpu(kind: str) -> None:
    """Whether a device of ``kind`` replays graphs.

    Raises:
        MachineError: it is no GPU.
    """
    if kind != "cuda":
        what = f"a CUDA graph needs a GPU, and the run is on {kind}"
        raise MachineError(what, where="training.cuda_graph", fix=_OFF)


def check_step(task: nn.Module, options: LoaderOptions, plain: bool) -> None:
    """Whether a training step can have a fixed shape.

    Raises:
        ConfigError: what stands in the way.
    """
    name = type(task).__name__
    if not getattr(task, "takes_fixed_shapes", False):
        raise ConfigError(f"a step of {name} depends on the batch's lengths", where="training.cuda_graph", fix=_OFF)
    if not plain:
        what = "only updates of one batch, by one process that holds the whole model, without debug mode, are captured"
        raise ConfigError(what, where="training.cuda_graph", fix=_OFF)
    if options.batch != "tokens":
        what = "batches of equal rows have no common number of tokens"
        raise ConfigError(what, where="training.cuda_graph", fix="set loader.batch=tokens")
    if task.loss_options.sampler == "in_batch":  # type: ignore[union-attr]
        what = "negatives drawn from the batch's targets would be drawn from what fills it up, too"
        raise ConfigError(what, where="training.cuda_graph", fix="set model.loss.sampler=uniform or popularity")


class GraphedStep:
    """Forward and backward of filled-up batches; the first one is captured.

    Args:
        loss: the task's loss as a module.
        shape: of every batch.
        precision: makes the autocast of the forward, without a cache.
    """

    def __init__(
        self, loss: nn.Module, shape: StepShape, precision: Callable[[], contextlib.AbstractContextManager[Any]]
    ) -> None:
        self.loss, self.shape, self.precision = loss, shape, precision
        self.parameters = [p for p in loss.parameters() if p.requires_grad]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: SequenceBatch | None = None  # what the graph reads
        self.total: Tensor | None = None  # what it writes, as the gradients
        self.gradients: list[Tensor | None] = []

    def run(self, batch: SequenceBatch) -> LossOutput | None:
        """Loss and, in every parameter's ``grad``, the gradients of ``batch``, until the next call.

        None where it is of no common shape, as an epoch's last batch: it is to be computed as it is, with equal result.

        Raises:
            MachineError: the step cannot be captured here.
        """
        filled = self.shape.filled(batch)
        if filled is None or filled.fixed is None:
            return None
        if self.graph is None or self.batch is None:
            self._capture(filled)
        assert self.graph is not None and self.batch is not None and self.total is not None
        for held, given in zip(self.batch.tensors(), filled.tensors(), strict=True):
            held.copy_(given)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return LossOutput(self.total, filled.fixed.targets)

    def step(self, batch: SequenceBatch) -> Tensor:
        """What is captured: the summed loss, fresh gradients in every parameter's ``grad``."""
        for parameter in self.parameters:
            parameter.grad = None  # made anew inside the graph, so a replay writes and never adds
        with self.precision():
            total: Tensor = self.loss(batch).sum
        total.backward()  # type: ignore[no-untyped-call]
        return total.detach()

    def _capture(self, batch: SequenceBatch) -> None:
        """Warm up, capture, and leave the generator as it was: a resumed run captures again, amid its epoch."""
        held, device = batch.clone(), batch.items.device
        random = torch.cuda.get_rng_state(device)
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):  # libraries and kernel checks set themselves up, which none may do later
                    self.step(held)
            torch.cuda.current_stream(device).wait_stream(stream)
            # thread_local: the thread that makes batches ahead may pin memory meanwhile.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                total = self.step(held)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            what = f"the step cannot be captured ({reason})"
            raise MachineError(what, where="training.cuda_graph", fix=_OFF) from error
        torch.cuda.set_rng_state(random, device)
        self.graph, self.batch, self.total = graph, held, total
        self.gradients = [parameter.grad for parameter in self.parameters]


def _round_up(number: int, step: int) -> int:
    return int(np.ceil(number / step)) * step
