"""``recpod estimate``: measure when asked, estimate, print."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from pipelines.config import RunConfig
from pipelines.errors import ConfigError
from pipelines.estimate.devices import find_device
from pipelines.estimate.forecast import forecast
from pipelines.estimate.show import print_forecast
from pipelines.estimate.throughput import read_all, write

SHORTEST = 1.0  # seconds of steps: less would be one step and its noise


def estimate_recipe(
    config: RunConfig,
    console: Console,
    *,
    gpu: str,
    gpus: int,
    price_per_hour: float | None,
    as_json: bool,
    measure_seconds: float | None,
    files: Path | None = None,
) -> int:
    """The verb; 0 also when the run does not fit: an estimate is an answer.

    Args:
        config: the recipe.
        console: where to print.
        gpu: see :func:`pipelines.estimate.devices.find_device`.
        gpus: how many.
        price_per_hour: dollars, for all of them.
        as_json: print data instead of the table.
        measure_seconds: seconds of steps to measure on this machine first; None measures nothing.
        files: folder of the throughput files; default see :mod:`pipelines.estimate.throughput`.

    Raises:
        ConfigError: see :func:`pipelines.estimate.forecast.forecast`.
    """
    if measure_seconds is not None:
        if gpu not in ("this", "cpu"):
            raise ConfigError("only this machine can be measured", where="--measure", fix="leave --gpu away")
        if measure_seconds < SHORTEST:
            raise ConfigError(f"{measure_seconds} is less than {SHORTEST:g}", where="--seconds")
        from pipelines.estimate.measure import measure

        if gpu == "cpu":
            config = config.model_copy(update={"device": "cpu"})
        path = write(find_device(gpu), measure(config, measure_seconds), files)
        if not as_json:
            console.print(f"measured: {path}")
    known = read_all([files] if files else None)
    found = forecast(config, find_device(gpu), known, gpus=gpus, price_per_hour=price_per_hour)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        print_forecast(found, console)
    return 0
