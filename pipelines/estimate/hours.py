"""How long a run takes, and what that rests on: a measurement of just this, or one that had to be scaled.

**Measured**: the same device, model, batch and catalogue. Seconds are targets over the measured speed; the range is
that of the measured rounds.

**Scaled**: a step is taken as ``overhead + targets x slope``. The overhead (Python, dispatch, the optimiser's launches)
is the host's and stays as it was measured, with a batch of one token. The slope is multiplied by the roofline's ratio:
``FLOPs / peak + bytes / bandwidth`` of a target here over there, so that the share of the roofline that was reached
carries over. That is a supposition. The range is therefore spanned by the two pure ratios, of FLOPs and of bytes, with
overhead and work overlapping (fastest) and following each other (slowest). Nothing scaled is called measured.

Several GPUs are never measured here: the middle is perfect division of all but the host's part of a step, the slow end
no gain at all.

Training counts every epoch; early stopping can only shorten it, and ``earliest`` says by how much at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipelines.config import RunConfig
from pipelines.config_files import CONFIGS
from pipelines.estimate.devices import Device, find_device
from pipelines.estimate.layer_work import Formats
from pipelines.estimate.ranking_layers import RankingShape
from pipelines.estimate.ranking_work import find_ranking_work
from pipelines.estimate.schedule import schedule_of
from pipelines.estimate.throughput import Measurement, Throughput
from pipelines.estimate.volume import Volume
from pipelines.estimate.work import Work, find_work

FLOAT32_SHARE = 16  # a GPU's float32 products against its bfloat16 ones: A100's data sheet; others lose less


class Span(NamedTuple):
    """A number with the range that it may lie in; ``low`` is the fast end."""

    low: float
    middle: float
    high: float

    def times(self, factor: float) -> Span:
        """All three multiplied."""
        return Span(self.low * factor, self.middle * factor, self.high * factor)

    def plus(self, other: Span) -> Span:
        """End by end."""
        return Span(self.low + other.low, self.middle + other.middle, self.high + other.high)


def exactly(value: float) -> Span:
    """A span without width."""
    return Span(value, value, value)


@dataclass(frozen=True)
class Rates:
    """Seconds that things take on the device.

    Attributes:
        target: of training, each target's part of its step.
        overhead: what of it is the host's, whatever the device.
        encode: of a validation query through the model.
        rank: of a validation query's ranking.
        save: of a checkpoint.
        startup: before the first step.
        measured: whether all of it was measured for just this.
        rests_on: what it rests on, in words.
    """

    target: Span
    overhead: float
    encode: Span
    rank: Span
    save: float
    startup: float
    measured: bool
    rests_on: str


@dataclass(frozen=True)
class Hours:
    """Seconds of a run, all epochs.

    Attributes:
        total: everything.
        training: updates.
        validation: passes over the validation queries, with a checkpoint after each.
        closing: evaluation after training: validation, test, popularity, further protocols.
        startup: before the first step.
        earliest: everything, if no validation after the first is better.
        measured: see :class:`Rates`.
        rests_on: see :class:`Rates`.
    """

    total: Span
    training: Span
    validation: Span
    closing: Span
    startup: float
    earliest: float
    measured: bool
    rests_on: str


def find_rates(
    config: RunConfig,
    volume: Volume,
    work: Work,
    device: Device,
    files: Sequence[Throughput],
    gpus: int = 1,
    *,
    resident: bool = False,
) -> Rates | str:
    """The rates of a device: measured, else scaled from the nearest measurement, else the reason why there are none.

    Steps that were compiled or captured otherwise are no measurement of these; ``resident`` says where batches will be
    made: what was measured with them made elsewhere can be scaled.
    """
    name, formats, training = config.model["name"], work.formats, config.training
    found = [(file, entry) for file in files for entry in file.measurements if entry.model["name"] == name]
    entries = [(file, entry) for file, entry in found if entry.steps_like(config)]
    here = [(file, entry) for file, entry in entries if file.path.stem == device.key]
    for file, entry in here:
        if entry.answers(config, volume.items, (formats.narrow, formats.loss), resident=resident):
            rates = _measured(volume, device, file, entry)
            return rates if gpus == 1 else _divided(rates, gpus)
    if found and not entries:
        settings = f"training.compile={training.compile} and training.cuda_graph={training.cuda_graph}".lower()
        return f"no throughput file holds '{name}' with {settings}: measure it with `recpod estimate RECIPE --measure`"
    if not entries:
        return f"no throughput file holds '{name}': measure it with `recpod estimate RECIPE --measure`"
    if device.kind == "cuda" and device.bf16_flops is None:
        return f"{device.name} has no bfloat16 units: nothing can be scaled to it ({device.note})"
    if device.kind == "cpu" and not here:
        return "nothing was measured on this CPU: `recpod estimate RECIPE --measure` does, in about a minute"
    same_kind = [(file, entry) for file, entry in entries if file.device["kind"] == device.kind]
    candidates = here or same_kind or entries
    file, entry = min(
        candidates, key=lambda pair: (pair[1].resident != resident, abs(math.log(_work_of(pair).flops / work.flops)))
    )
    rates = _scaled(volume, work, device, file, entry)
    return rates if gpus == 1 else _divided(rates, gpus)


def _measured(volume: Volume, device: Device, file: Throughput, entry: Measurement) -> Rates:
    speeds = entry.targets_per_s
    where = "this machine" if device.kind == "cpu" else device.name
    return Rates(
        target=Span(1 / max(speeds), len(speeds) / sum(speeds), 1 / min(speeds)),
        overhead=entry.step_overhead_s * volume.batches / volume.targets,
        encode=exactly(1 / entry.encode_queries_per_s),
        rank=exactly(_seconds(entry.rank_queries_per_s)),
        save=entry.save_s,
        startup=entry.startup_s,
        measured=True,
        rests_on=f"measured on {where} ({_shown(file.path)})",
    )


def _seconds(rate: float) -> float:
    """Of a query at ``rate`` queries a second; 0: a model that ranks no catalogue takes none."""
    return 1 / rate if rate else 0.0


def _work_of(pair: tuple[Throughput, Measurement]) -> Work:
    """What the measured model costs, counted as the one that is estimated."""
    file, entry = pair
    formats = Formats(file.device["kind"], entry.narrow, entry.loss)
    if entry.ranking is not None:
        shape = RankingShape(**entry.ranking)
        return find_ranking_work(entry.options(), entry.items, shape, entry.shared_length, formats)
    step = entry.targets_per_step
    return find_work(entry.model["name"], entry.options(), entry.items, entry.shared_length, formats, step)


def _scaled(volume: Volume, work: Work, device: Device, file: Throughput, entry: Measurement) -> Rates:
    there = _work_of((file, entry))
    source = device if file.path.stem == device.key else None
    if source is None and file.device["kind"] == "cuda":
        source = find_device(file.device["name"])
    per_step = volume.targets / volume.batches
    flops = _compute_seconds(work, device, entry) / _compute_seconds(there, source, entry)
    bytes_ratio = _memory_seconds(work, device, entry, per_step) / _memory_seconds(
        there, source, entry, entry.targets_per_step
    )
    both = (_compute_seconds(work, device, entry) + _memory_seconds(work, device, entry, per_step)) / (
        _compute_seconds(there, source, entry) + _memory_seconds(there, source, entry, entry.targets_per_step)
    )
    ratio = Span(min(flops, bytes_ratio), both, max(flops, bytes_ratio))
    speeds = entry.targets_per_s
    whole = Span(1 / max(speeds), len(speeds) / sum(speeds), 1 / min(speeds))
    overhead = entry.step_overhead_s / per_step  # of a target
    before = entry.step_overhead_s / entry.targets_per_step
    slope = Span(*(max(part - before, 0.1 * part) * by for part, by in zip(whole, ratio, strict=True)))
    length = volume.query_tokens / max(volume.queries, 1) / entry.query_tokens
    table = volume.items * work.hidden / (entry.items * there.hidden)
    moving = _memory_seconds(work, device, entry, per_step) / _memory_seconds(work, source, entry, per_step)
    return Rates(
        target=Span(max(overhead, slope.low), overhead + slope.middle, overhead + slope.high),
        overhead=overhead,
        encode=ratio.times(length / entry.encode_queries_per_s),
        rank=exactly(table * moving * _seconds(entry.rank_queries_per_s)),
        save=entry.save_s * work.parameters / there.parameters,
        startup=entry.startup_s,
        measured=False,
        rests_on=f"scaled from {_shown(file.path)} ({entry.recipe}) by the roofline ratio: not measured",
    )


def _compute_seconds(work: Work, device: Device | None, entry: Measurement) -> float:
    """FLOPs of a target over the peak: a GPU's data sheet, or what the measured CPU shows (None or a CPU)."""
    if device is None or device.kind == "cpu":
        speeds = entry.speeds
        loss = speeds["loss_flop_per_s" if work.formats.loss == 2 else "float32_flop_per_s"]
        return work.layer_flops / speeds["float32_flop_per_s"] + work.loss_flops / loss
    assert device.bf16_flops is not None
    layers, loss = (work.formats.narrow == 2, work.formats.loss == 2)
    slow = device.bf16_flops / FLOAT32_SHARE
    return work.layer_flops / (device.bf16_flops if layers else slow) + work.loss_flops / (
        device.bf16_flops if loss else slow
    )


def _memory_seconds(work: Work, device: Device | None, entry: Measurement, targets_a_step: float) -> float:
    """Bytes of a target over the bandwidth, likewise."""
    on_cpu = device is None or device.bandwidth is None
    bandwidth = entry.speeds["bytes_per_s"] if on_cpu else device.bandwidth  # type: ignore[union-attr]
    return work.moved(targets_a_step) / bandwidth  # type: ignore[operator]


def _divided(rates: Rates, gpus: int) -> Rates:
    host = rates.overhead  # every step still costs it, on every device
    shared = max(rates.target.middle - host, 0.0) / gpus
    target = Span(max(host, rates.target.low / gpus), host + shared, max(rates.target.high, host + shared))
    encode = Span(rates.encode.low / gpus, rates.encode.middle / gpus, rates.encode.high)
    rank = Span(rates.rank.low / gpus, rates.rank.middle / gpus, rates.rank.high)
    what = f"{rates.rests_on}; {gpus} GPUs taken as {gpus} times as fast at best: not measured"
    return Rates(target, host, encode, rank, rates.save, rates.startup, False, what)


def find_hours(config: RunConfig, volume: Volume, rates: Rates) -> Hours:
    """Everything that a run does with the clock running, from its process' start to its last evaluation."""
    training, evaluation, schedule = config.training, config.evaluation, schedule_of(config, volume)
    passes, query = schedule.passes, rates.encode.plus(rates.rank)
    one, validation = query.times(volume.queries), query.times(schedule.queries).plus(exactly(rates.save))
    others = len(evaluation.also) + evaluation.shuffle_ties + evaluation.shuffle_order
    closing = one.times(2 + others).plus(rates.rank.times(volume.queries * (1 + others)))  # the model's, popularity's
    epoch = rates.target.times(volume.targets)
    start = exactly(rates.startup)
    total = start.plus(epoch.times(schedule.epochs)).plus(validation.times(passes)).plus(closing)
    least = min(training.patience + 1, passes) if training.patience else passes
    epochs = min(least * schedule.between, schedule.epochs)
    earliest = start.plus(epoch.times(epochs)).plus(validation.times(least)).plus(closing)
    return Hours(
        total=total,
        training=epoch.times(schedule.epochs),
        validation=validation.times(passes),
        closing=closing,
        startup=rates.startup,
        earliest=earliest.middle,
        measured=rates.measured,
        rests_on=rates.rests_on,
    )


def _shown(path: Path) -> str:
    return f"configs/{path.relative_to(CONFIGS)}" if path.is_relative_to(CONFIGS) else str(path)
