"""How much memory a run takes on its device, and what batch would fit.

Three moments can be the peak of a training step: the end of the forward pass, while the loss computes; the last layer's
backward pass, with everything before it still kept; and the end of the backward pass, when the table's gradient exists
three times (the loss', the embedding's, their sum). A validation pass follows with gradients and optimiser still there.
The store stays on the host as a memory map, and batches, the popularity sampler and what is seen travel; or its events
are resident (see :mod:`pipelines.estimate.resident`) and lie beside the weights all the time.

Counted are the project's own kernels; what an operation allocates inside itself is not. Tests hold the training peak
against a count of all live tensors of real steps on a CPU (within 10%).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.config import RunConfig
from pipelines.estimate.volume import Volume
from pipelines.estimate.work import Work, loss_memory

# Of a device's memory, at least a GB: for CUDA's context or Python's libraries, and the allocator's gaps. An allowance,
# not a measurement.
SET_ASIDE, SET_ASIDE_LEAST = 0.1, 1_000_000_000
BATCH_BYTES = 8 + 8 + 8 + 4 + 8 + 4  # a token's item, time, target, rating, gap, interval
RANKED_TOGETHER = 8192  # queries whose states the evaluator gathers before it ranks them
_LANE = 255


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a training step, by what holds them, and the verdict.

    Attributes:
        weights: all parameters.
        gradients: of all parameters.
        optimizer: its moments.
        activations: kept for the backward pass of the largest batch.
        loss: while it computes.
        batch: tokens of the batch and the sampler's tables.
        peak: the largest of the moments that are told apart in the module docstring.
        resident: events that lie on the device all the time; 0 where batches come from the host.
        room: what a run may use on the device.
        limits: of each key of the loader that decides a batch: present value, and the largest up to it that fits (0:
            not even 1 does).
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    batch: int
    resident: int
    peak: int
    room: int
    limits: dict[str, tuple[int, int]]

    @property
    def fits(self) -> bool:
        """Whether the peak is within the room."""
        return self.peak <= self.room

    @property
    def verdict(self) -> str:
        """In words, with the remedy."""
        if self.fits:
            return "fits"
        if self.peak - self.resident <= self.room:
            return "does not fit: set loader.resident=off"
        if not all(largest for _, largest in self.limits.values()):
            return "does not fit with any batch: take a device with more memory, or a smaller model"
        changes = (
            f"reduce loader.{key} from {present:,} to {largest:,}"
            for key, (present, largest) in self.limits.items()
            if largest < present
        )
        return f"does not fit: {' and '.join(changes)}"


def room_of(memory: float) -> int:
    """What a run may use of a device's ``memory`` bytes."""
    return int(memory - max(SET_ASIDE * memory, SET_ASIDE_LEAST))


class MemoryModel:
    """The peak as a function of the loader's batch size.

    Args:
        config: the run.
        volume: its data.
        work: its model on the device.
        gpus: devices that share a global batch.
        resident: bytes of events on each of them.
    """

    def __init__(self, config: RunConfig, volume: Volume, work: Work, gpus: int = 1, resident: int = 0) -> None:
        self.config, self.volume, self.work, self.gpus, self.resident = config, volume, work, gpus, resident
        self.weights = 4 * work.parameters
        self.optimizer = 2 * self.weights

    def share(self, value: int) -> tuple[int, int]:
        """Rows and tokens of the largest batch on one device when the loader's key is ``value``.

        Rows are dealt longest first, back and forth: no device gets more than its part and one window.
        """
        volume, longest = self.volume, self.volume.longest
        if self.config.loader.batch == "rows":
            # The same longest windows as now, or, for more of them, full ones.
            rows = min(value, volume.windows)
            present = min(self.config.loader.rows_per_batch, volume.windows)
            tokens = min(rows * longest, volume.largest_batch + max(0, rows - present) * longest)
        else:
            tokens = min(volume.tokens, value + longest - 1)
            rows = math.ceil(tokens / volume.window_length)
        if self.gpus == 1:
            return rows, tokens
        return math.ceil(rows / self.gpus), min(tokens, math.ceil(tokens / self.gpus) + longest)

    def activations(self, rows: int, tokens: int) -> int:
        """Bytes kept for the backward pass."""
        layers = self.work.layers
        pairs = tokens * self.volume.longest  # no token shares its row with more
        return math.ceil(
            layers.saved * tokens + layers.saved_row * rows + layers.saved_pair * pairs + layers.saved_fixed
        )

    def batch(self, rows: int, tokens: int) -> int:
        """Bytes of a batch and of the tables that lie beside it."""
        return BATCH_BYTES * tokens + 24 * rows + 12 * self.volume.items

    def computing(self, tokens: int) -> int:
        """Bytes that the loss takes while it computes."""
        return loss_memory(self.work, tokens).computing

    def lasting(self, rows: int, tokens: int) -> int:
        """Bytes that are there all through an update on a batch."""
        buckets = self.weights if self.gpus > 1 else 0  # DistributedDataParallel's own copy of all gradients
        earlier = self.weights if self.config.training.accumulate > 1 else 0  # gradients of the batches before
        return self.weights + self.optimizer + self.resident + self.batch(rows, tokens) + buckets + earlier

    def training_peak(self, rows: int, tokens: int) -> int:
        """Bytes at the peak of an update on a batch."""
        layers, table = self.work.layers, 4 * (self.work.items + 1) * self.work.hidden
        loss = loss_memory(self.work, tokens)
        kept = self.activations(rows, tokens)
        copies = math.ceil(layers.item_tables * table)  # of the item table as the loss reads it
        forward = kept + 4 * self.work.hidden * tokens + loss.computing + copies
        grown = layers.backward * tokens + layers.backward_row * rows + layers.backward_fixed
        if layers.working is not None:
            grown = max(grown, layers.working.backward(tokens, self.volume.longest))
        # the gradient of the states is used up when the last layer's own are there
        backward = kept + loss.left - 4 * self.work.hidden * tokens + math.ceil(grown)
        end = self.weights + 2 * table + copies  # the gradient passes through what made the copy
        return self.lasting(rows, tokens) + max(forward, backward, end)

    def evaluation_peak(self, tokens_per_batch: int) -> int:
        """Bytes at the peak of a validation pass; its queries are not dealt to devices in this count."""
        volume, cuda = self.volume, self.work.formats.device == "cuda"
        tokens = min(volume.query_tokens, tokens_per_batch + volume.longest)
        layers = self.work.layers
        encode = layers.encode * tokens
        if layers.working is not None:
            encode = max(encode, layers.working.encode(tokens, self.config.loader.max_length))
        together = min(volume.queries, RANKED_TOGETHER + tokens)
        queries, items = (4096, 64 * _LANE) if cuda else (1024, 16 * _LANE)
        cells = min(queries, together) * min(items, volume.items)
        states = together * (4 + 8) * self.work.hidden  # and their norms in float64
        seen = together * volume.seen / max(volume.queries, 1) * (4 + 8)
        vectors = min(items, volume.items) * (4 + 8) * self.work.hidden
        rank = states + cells * (4 + 1 + 1) + seen + vectors
        working = max(encode + BATCH_BYTES * tokens, rank)
        return math.ceil(2 * self.weights + self.optimizer + self.resident + 12 * volume.items + working)

    def limits(self, room: int) -> dict[str, tuple[int, int]]:
        """Each key of the loader that decides a batch: its value, and the largest up to it whose peaks are in ``room``.

        ``tokens_per_batch`` is the size of evaluation's batches even where training goes by rows.
        """
        loader = self.config.loader
        rows, tokens = loader.rows_per_batch, loader.tokens_per_batch
        if loader.batch == "rows":
            return {
                "rows_per_batch": (rows, _largest(rows, lambda n: self.training_peak(*self.share(n)) <= room)),
                "tokens_per_batch": (tokens, _largest(tokens, lambda n: self.evaluation_peak(n) <= room)),
            }
        both = _largest(tokens, lambda n: max(self.training_peak(*self.share(n)), self.evaluation_peak(n)) <= room)
        return {"tokens_per_batch": (tokens, both)}

    def judge(self, room: int) -> Memory:
        """The parts, the peak and the verdict for a device that gives ``room`` bytes to the run."""
        loader = self.config.loader
        rows, tokens = self.share(loader.rows_per_batch if loader.batch == "rows" else loader.tokens_per_batch)
        return Memory(
            weights=self.weights,
            gradients=self.weights,
            optimizer=self.optimizer,
            activations=self.activations(rows, tokens),
            loss=self.computing(tokens),
            batch=self.batch(rows, tokens),
            resident=self.resident,
            peak=max(self.training_peak(rows, tokens), self.evaluation_peak(loader.tokens_per_batch)),
            room=room,
            limits=self.limits(room),
        )


def _largest(top: int, fits: Callable[[int], bool]) -> int:
    """The largest number of 1 .. ``top`` that fits, 0 for none; what fits, fits with less."""
    low, high = 0, top
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
