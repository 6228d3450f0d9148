"""The checks of benchmarks/gpu.py: kernels, model, repeated run, resumed run. Needs torch and numpy alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.batch import SequenceBatch
from models.kernels.check import example, largest_error, value_and_gradients
from models.kernels.paths import PATHS, VARIABLE, KernelPath, missing, takes
from models.tasks import Retrieval
from pipelines.data.loader import training_batches
from pipelines.training.checkpoint import checkpoint_path
from pipelines.training.trainer import Trainer, TrainingData

# Allowed share of the largest number of the same output or gradient. bfloat16 rounds inputs, output, its gradient and
# every gradient to 8 bits, 2^-9 each; sums kept in bfloat16 would be off by several percent.
FLOAT32, BFLOAT16 = 1e-4, 2.0**-6
_ALLOWED_OF_MODEL, _ROUNDING = 2e-3, 1e-6
# Rows of one token, empty rows, one more than a chunk, sizes that are no power of two; last: the model's own shape.
CASES: dict[str, tuple[tuple[tuple[int, ...], int, int], ...]] = {
    "selective_scan": (((1, 9, 17), 20, 32), ((3, 0, 8, 20), 33, 16), ((2, 9), 1, 1), ((200, 33, 129, 200), 128, 32)),
    "diagonal_scan": (((1, 9, 17), 12, 0), ((3, 0, 8, 20), 5, 0), ((2, 9), 1, 0), ((200, 33, 129, 200), 32, 0)),
    "causal_conv": (((1, 2, 37), 40, 4), ((16, 0, 5), 5, 3), ((7,), 1, 1), ((200, 33, 129, 200), 128, 4)),
    # fewer, because each size is compiled anew: some seconds a kernel
    "mhc_streams": (((1, 9, 17), 20, 3), ((200, 33, 129, 200), 64, 4)),
    "interval_attention": (((1, 0, 9, 17), 20, 1), ((200, 33, 129, 200), 32, 2)),
}
# Of every other operation: channels of a head and heads, or width and streams.
OTHER_CASES = (((1, 9, 17), 8, 2), ((3, 0, 8, 20), 16, 1), ((7,), 4, 2), ((200, 33, 129, 200), 32, 2))
# The gradients of the streams' gates are differences of nearly equal sums: computed in float32, they move by up to a
# third when the gradient that comes in is rounded to 8 bits. That says nothing about a path.
FLOAT32_ALONE = ("mhc_streams",)
# Those of the interval tables are sums over all rows that cancel under the check's weights; PyTorch's path rounds them
# to 8 bits once a row, which is 5% of the sum where rows are long.
SHORT_ROWS_ALONE, LONG = ("interval_attention",), 100


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what was checked.
        passed: None where it cannot run here.
        error: the largest difference, relative to the largest number of the same tensor; 0 for bit-identity.
        seconds: how long it took, compiling included.
        reason: why it cannot run or has failed.
    """

    name: str
    passed: bool | None
    error: float | None = None
    seconds: float = 0.0
    reason: str = ""

    def line(self) -> str:
        """The check in a line."""
        verdict = {None: "not here", True: "ok", False: "FAILED"}[self.passed]
        error = "" if self.error is None else f", error {self.error:.1e}"
        return f"{verdict:8} {self.name}{error}, {self.seconds:.1f} s {self.reason}".rstrip()


def kernel_checks(device: str, quick: bool) -> Iterator[Check]:
    """Every path that takes tensors of ``device``, on every case, in float32 and bfloat16."""
    for op, paths in PATHS.items():
        for path in paths[:-1]:  # the last one is the reference
            if not takes(path, device):
                continue
            if reason := missing(path, device):
                yield Check(f"{op}/{path.name}", None, reason=reason)
                continue
            for lengths, width, states in CASES.get(op, OTHER_CASES)[: 2 if quick else None]:
                for dtype, allowed in ((torch.float32, FLOAT32), (torch.bfloat16, BFLOAT16)):
                    if dtype == torch.bfloat16 and not _compares_rounded(op, lengths):
                        continue
                    name = (
                        f"{op}/{path.name} {str(dtype).removeprefix('torch.')} {len(lengths)} rows, {width} x {states}"
                    )
                    yield timed(
                        name,
                        allowed,
                        lambda p=path, o=op, a=(lengths, width, states), d=dtype: kernel_error(o, p, a, d, device),
                    )


def _compares_rounded(op: str, lengths: Sequence[int]) -> bool:
    """Whether the check says something about a path when its inputs and gradients have 8 bits."""
    return op not in FLOAT32_ALONE and not (op in SHORT_ROWS_ALONE and max(lengths) >= LONG)


def kernel_error(
    op: str, path: KernelPath, case: tuple[Sequence[int], int, int], dtype: torch.dtype, device: str
) -> float:
    """The largest difference of ``path`` from the reference in float64, over the output and every gradient."""
    inputs = [v.to(dtype) if v.is_floating_point() else v for v in example(op, *case)]
    expected = value_and_gradients(op, PATHS[op][-1], [v.double() if v.is_floating_point() else v for v in inputs])
    found = value_and_gradients(op, path, [v.to(device) for v in inputs])
    return largest_error([v.double() for v in found], expected)


def timed(name: str, allowed: float, error_of: Callable[[], float]) -> Check:
    """Run one comparison. Compilers and drivers raise what they like: that is a failed check with its reason."""
    begin = time.perf_counter()
    try:
        error = error_of()
    except Exception as failure:
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
        return Check(name, False, seconds=time.perf_counter() - begin, reason=reason)
    passed = error <= allowed
    return Check(name, passed, error, time.perf_counter() - begin, "" if passed else f"allowed {allowed:.0e}")


def model_check(build: Callable[[], Retrieval], data: TrainingData, device: torch.device) -> Check:
    """Loss and gradients of the whole model on ``device`` against the reference kernels on the CPU in float64."""
    batch = next(training_batches(data.store, data.windows, data.loader, seed=data.seed, epoch=0))

    def error() -> float:
        found = loss_and_gradients(build(), batch, device, None)
        expected = loss_and_gradients(build().double(), batch, torch.device("cpu"), "reference")
        # A gradient that is zero but for rounding, as that of a key's bias, is held to the largest of all.
        least = _ROUNDING * max(float(v.abs().max()) for v in expected)
        real = [float(v.abs().max()) > least for v in expected]
        zeros = [float(v.abs().max()) / least for v, kept in zip(found, real, strict=True) if not kept]
        pairs = [(v.cpu().double(), e) for v, e, kept in zip(found, expected, real, strict=True) if kept]
        error = largest_error([v for v, _ in pairs], [e for _, e in pairs])
        return max(error, *(_ALLOWED_OF_MODEL * zero for zero in zeros), 0.0)

    return timed(f"model, loss and gradients of {batch.num_tokens} tokens", _ALLOWED_OF_MODEL, error)


def loss_and_gradients(task: Retrieval, batch: SequenceBatch, device: torch.device, path: str | None) -> list[Tensor]:
    """The loss, then the gradient of every parameter; dropout off, the loss' products in float32 or wider."""
    before = os.environ.pop(VARIABLE, None)
    if path is not None:
        os.environ[VARIABLE] = path
    try:
        task = task.to(device).eval()
        task.loss_options = replace(task.loss_options, precision="float32")
        total = task.loss(batch.to(device)).sum
        return [total.detach(), *torch.autograd.grad(total, list(task.parameters()))]
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def steps(trainer: Trainer, count: int) -> None:
    """``count`` updates from where the trainer stands."""
    data = trainer.data
    batches = training_batches(
        data.store, data.windows, data.loader, seed=data.seed, epoch=0, first=trainer.state.batch
    )
    trainer.task.train()
    for _, batch in zip(range(count), batches, strict=False):
        trainer.update([batch])


def repeat_check(build: Callable[[str], Trainer]) -> Check:
    """Two runs of four deterministic steps have equal weights, bit by bit."""

    def error() -> float:
        one, other = build("repeat-1"), build("repeat-2")
        for trainer in (one, other):
            torch.manual_seed(5)
            steps(trainer, 4)
        return unequal(one, other)

    return timed("repeated run, deterministic", 0.0, error)


def resume_check(build: Callable[[str], Trainer]) -> Check:
    """Four deterministic steps equal two steps, a checkpoint, and two more steps of another trainer."""

    def error() -> float:
        whole, first, second = build("whole"), build("resumed"), build("resumed")
        torch.manual_seed(5)
        steps(whole, 4)
        torch.manual_seed(5)
        steps(first, 2)
        first.save()
        torch.manual_seed(6)
        second.restore(checkpoint_path(first.checkpoints, first.state.step))
        steps(second, 2)
        return unequal(whole, second)

    return timed("resumed run, deterministic", 0.0, error)


def unequal(one: Trainer, other: Trainer) -> float:
    """0 when the weights of two trainers are equal bit by bit, else their largest difference."""
    pairs = zip(one.task.state_dict().values(), other.task.state_dict().values(), strict=True)
    return max(0.0 if torch.equal(a, b) else float((a - b).abs().max()) for a, b in pairs)
