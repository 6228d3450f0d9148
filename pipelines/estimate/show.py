"""The estimate as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from pipelines.estimate.forecast import Forecast
from pipelines.estimate.hours import Hours, Span

_GB = 1e9


def print_forecast(found: Forecast, console: Console) -> None:
    """Everything, a line each, and what it rests on."""
    many = f"{found.gpus} x " if found.gpus > 1 else ""
    console.print(f"[bold]{found.config.name}[/] on {many}{found.device.name}: an estimate, nothing was run")
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(2):
        table.add_column(overflow="fold")
    for name, text in (*_volume_lines(found), *_memory_lines(found), *_time_lines(found)):
        table.add_row(name, text)
    console.print(table)


def _volume_lines(found: Forecast) -> Iterator[tuple[str, str]]:
    volume, work, schedule = found.volume, found.work, found.schedule
    about = "" if volume.exact else "about "
    supposed = "" if volume.exact else "; lengths of histories supposed, `recpod prepare` counts them"
    yield "data", f"{volume.users:,} users, {volume.items:,} items, {volume.events:,} events"
    yield "", f"from {volume.source}{supposed}"
    yield "steps", f"{about}{schedule.steps_per_epoch:,} an epoch, {schedule.steps:,} in {schedule.epochs:g} epochs"
    tokens = "as many tokens" if volume.ranking is None else f"of {volume.tokens:,} events"
    yield "targets", f"{volume.targets:,} an epoch ({tokens}), {schedule.targets(volume):,} in all"
    yield "parameters", f"{work.parameters:,}"
    layers, loss = work.layer_flops, work.loss_flops
    yield "FLOPs a target", f"{work.flops:.3g} (layers {layers:.3g}, loss {loss:.3g}), {_total_flops(found):.3g} in all"


def _total_flops(found: Forecast) -> float:
    return found.work.flops * found.schedule.targets(found.volume)


def _memory_lines(found: Forecast) -> Iterator[tuple[str, str]]:
    memory = found.memory
    parts = ("weights", "gradients", "optimizer", "activations", "loss", "batch")
    events = f", events {_bytes(memory.resident)}" if memory.resident else ""
    yield "memory", ", ".join(f"{part} {_bytes(getattr(memory, part))}" for part in parts) + events
    colour = "green" if memory.fits else "red"
    yield "", f"peak {_bytes(memory.peak)} of {_bytes(memory.room)} usable: [{colour}]{memory.verdict}[/]"


def _time_lines(found: Forecast) -> Iterator[tuple[str, str]]:
    hours = found.hours
    if isinstance(hours, str):
        yield "hours", f"not known: {hours}"
        return
    yield "hours", f"{_range(hours.total)} for all {found.schedule.epochs:g} epochs{_early(found, hours)}"
    yield from _cap(found, hours)
    parts = (("start", hours.startup), ("training", hours.training.middle), ("validation", hours.validation.middle))
    yield "", ", ".join(f"{name} {_time(s)}" for name, s in (*parts, ("last evaluation", hours.closing.middle)))
    dollars = [found.dollars(seconds) for seconds in hours.total]
    if dollars[0] is None:
        yield "dollars", found.price.source
    else:
        low, middle, high = (f"{value:,.2f}" for value in dollars if value is not None)
        text = f"{middle} ({low} to {high}) at {found.price.per_hour:g} an hour ({found.price.source})"
        yield "dollars", text
    yield "rests on", hours.rests_on if hours.measured else f"[yellow]{hours.rests_on}[/]"
    if not hours.measured:
        yield "", "measure on the device itself: recpod estimate RECIPE --measure"


def _cap(found: Forecast, hours: Hours) -> Iterator[tuple[str, str]]:
    """What a budget of the recipe makes of it."""
    guards = found.config.guards
    by_cost = guards.max_cost / found.price.per_hour if guards.max_cost and found.price.per_hour else None
    for name, cap in (("max_hours", guards.max_hours), ("max_cost", by_cost)):
        if cap is not None and hours.total.middle > cap * 3600:
            yield "", f"guards.{name} ends it after {_time(cap * 3600)}"


def _early(found: Forecast, hours: Hours) -> str:
    training = found.config.training
    if not training.patience or hours.earliest >= hours.total.middle:
        return ""
    return f"; early stopping (patience {training.patience}) may end it from {_time(hours.earliest)} on"


def _range(span: Span) -> str:
    return f"{_time(span.middle)} ({_time(span.low)} to {_time(span.high)})"


def _time(seconds: float) -> str:
    """Hours from six minutes on, else seconds."""
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.1f} s"


def _bytes(size: float) -> str:
    return f"{size / _GB:.2f} GB" if size >= 0.1 * _GB else f"{size / 1e6:.1f} MB"
