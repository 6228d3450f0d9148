"""The estimate of a run on a device: everything that ``recpod estimate`` says, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.config import RunConfig
from pipelines.errors import ConfigError
from pipelines.estimate.devices import Device
from pipelines.estimate.hours import Hours, find_hours, find_rates
from pipelines.estimate.memory import Memory, MemoryModel
from pipelines.estimate.ranking_memory import RankingMemoryModel
from pipelines.estimate.ranking_work import RankingWork, find_ranking_work
from pipelines.estimate.resident import resident_bytes
from pipelines.estimate.schedule import Schedule, schedule_of
from pipelines.estimate.throughput import Throughput
from pipelines.estimate.volume import Volume, find_volume
from pipelines.estimate.work import Work, find_work, formats_of
from pipelines.speed_config import check_graph


@dataclass(frozen=True)
class Price:
    """What an hour costs.

    Attributes:
        per_hour: dollars, of all devices together; None when not known.
        source: who says so.
    """

    per_hour: float | None
    source: str


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes:
        config: the run.
        device: what it runs on.
        gpus: how many of them.
        volume: what there is to go through.
        work: what a token costs.
        memory: on one device.
        hours: how long, or why that is not known.
        price: of an hour.
    """

    config: RunConfig
    device: Device
    gpus: int
    volume: Volume
    work: Work
    memory: Memory
    hours: Hours | str
    price: Price

    @property
    def schedule(self) -> Schedule:
        """Updates and validations, as the trainer counts them."""
        return schedule_of(self.config, self.volume)

    def dollars(self, seconds: float) -> float | None:
        """What ``seconds`` cost."""
        return None if self.price.per_hour is None else seconds / 3600 * self.price.per_hour

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        schedule = self.schedule
        found: dict[str, Any] = {
            "recipe": self.config.recipe or self.config.name,
            "device": self.device.name,
            "gpus": self.gpus,
            "data": asdict(self.volume),
            "epochs": schedule.epochs,
            "steps_per_epoch": schedule.steps_per_epoch,
            "steps": schedule.steps,
            "targets": schedule.targets(self.volume),
            "parameters": self.work.parameters,
            "flops_per_target": self.work.flops,
            "flops": self.work.flops * schedule.targets(self.volume),
            "memory": {**asdict(self.memory), "fits": self.memory.fits, "verdict": self.memory.verdict},
            "price": asdict(self.price),
        }
        if isinstance(self.hours, str):
            return {**found, "hours": None, "dollars": None, "reason": self.hours}
        total = self.hours.total._asdict()
        return {
            **found,
            "hours": {key: seconds / 3600 for key, seconds in total.items()},
            "earliest_hours": self.hours.earliest / 3600,
            "dollars": {key: self.dollars(seconds) for key, seconds in total.items()},
            "seconds": {
                "startup": self.hours.startup,
                "training": self.hours.training.middle,
                "validation": self.hours.validation.middle,
                "closing": self.hours.closing.middle,
            },
            "measured": self.hours.measured,
            "rests_on": self.hours.rests_on,
        }


def forecast(
    config: RunConfig,
    device: Device,
    files: Sequence[Throughput],
    *,
    gpus: int = 1,
    price_per_hour: float | None = None,
) -> Forecast:
    """Estimate a run.

    Args:
        config: the run.
        device: what it is to run on.
        files: throughput files.
        gpus: how many devices share its batches.
        price_per_hour: dollars an hour for all of them; default the recipe's, else what the device typically costs.

    Raises:
        ConfigError: the data's size is not known, or the number of GPUs makes no sense.
        MachineError: a CUDA graph is asked for, of a CPU.
    """
    if gpus < 1 or (gpus > 1 and device.kind == "cpu"):
        raise ConfigError(f"{gpus} of {device.name}", where="--gpus", fix="give 1 or more, of a GPU")
    volume = find_volume(config)
    check_graph(config, device.kind, gpus)
    work = work_of(config, volume, device.kind)
    resident = resident_bytes(config, volume, work, device.room)
    rates = find_rates(config, volume, work, device, files, gpus, resident=resident > 0)
    return Forecast(
        config=config,
        device=device,
        gpus=gpus,
        volume=volume,
        work=work,
        memory=memory_of(config, volume, work, gpus, resident).judge(device.room),
        hours=rates if isinstance(rates, str) else find_hours(config, volume, rates),
        price=find_price(config, device, gpus, price_per_hour),
    )


def work_of(config: RunConfig, volume: Volume, kind: str) -> Work:
    """What the run's model costs on a ``cpu`` or ``cuda`` device."""
    options, formats = config.model_options(), formats_of(config, kind)
    if volume.ranking is not None:
        return find_ranking_work(options, volume.items, volume.ranking, volume.shared_length, formats)
    step = volume.targets / volume.batches
    return find_work(config.model["name"], options, volume.items, volume.shared_length, formats, step)


def memory_of(config: RunConfig, volume: Volume, work: Work, gpus: int = 1, resident: int = 0) -> MemoryModel:
    """The peak as a function of the loader's batch size, with so many bytes of events on each device."""
    if isinstance(work, RankingWork):
        return RankingMemoryModel(config, volume, work, gpus)
    return MemoryModel(config, volume, work, gpus, resident)


def find_price(config: RunConfig, device: Device, gpus: int, given: float | None) -> Price:
    """The price of an hour: given, else the recipe's, else typical for the device, else not known."""
    if given is not None:
        if given <= 0:
            raise ConfigError(f"{given} is not positive", where="--price-per-hour")
        return Price(given, "given")
    if config.guards.price_per_hour is not None:
        return Price(config.guards.price_per_hour, "guards.price_per_hour")
    if device.price is not None:
        return Price(device.price * gpus, "typical, docker/gpu-matrix.json; prices move")
    return Price(None, "not known: give --price-per-hour")
