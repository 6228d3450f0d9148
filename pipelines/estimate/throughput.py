"""Throughput files: what was measured on a device, one JSON file a device, one entry a recipe's model and batch.

They lie in configs/throughput, and, where that cannot be written (inside an image), in ``throughput`` of the data
folder. An entry holds every round's raw speed and the machine, versions and commit that it was measured with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from models.registry import OPTIONS
from pipelines.config import RunConfig
from pipelines.config_files import CONFIGS
from pipelines.data.datasets import data_folder
from pipelines.data.loader import LoaderOptions
from pipelines.errors import DataError
from pipelines.estimate.devices import Device
from pipelines.run_folder import write_json

SHIPPED = CONFIGS / "throughput"
AGAIN = "delete the file and measure again: recpod estimate RECIPE --measure"
CAME_LATER = {"ranking", "compile", "cuda_graph", "resident"}  # an older file's steps were plain, from the host
SAME_CATALOGUE = 0.02  # a catalogue that differs by less costs the same


@dataclass(frozen=True)
class Measurement:
    """What was measured for one model and batch on one device.

    Attributes:
        recipe: its name.
        dataset: its name.
        items: in the catalogue.
        model: the resolved options with the model's name.
        loader: the resolved loader options.
        accumulate: batches of an update.
        narrow: bytes of a number in the layers' products.
        loss: bytes of a number in the loss' products.
        shared_length: of the windows, see :class:`pipelines.estimate.volume.Volume`.
        targets_per_s: training speed of each round.
        targets_per_step: on average.
        step_overhead_s: seconds of an update on a batch of one token: what a step costs the host whatever it holds.
        query_tokens: tokens of a validation query's history, on average.
        encode_queries_per_s: validation queries through the model.
        rank_queries_per_s: validation queries ranked, given their states; 0 for a model that ranks no catalogue.
        save_s: seconds to write a checkpoint.
        startup_s: seconds from the process' start to the first step, the data being prepared.
        speeds: for a CPU, what it shows elsewhere: FLOP/s of products in float32 and in the loss' format, bytes/s.
        measured_on: machine, versions, commit, load and day.
        ranking: of a ranking model, the fields of :class:`pipelines.estimate.ranking_layers.RankingShape`.
        compile: with ``training.compile``.
        cuda_graph: with ``training.cuda_graph``.
        resident: batches were made on the device, whatever ``loader.resident`` said.
    """

    recipe: str
    dataset: str
    items: int
    model: dict[str, Any]
    loader: dict[str, Any]
    accumulate: int
    narrow: int
    loss: int
    shared_length: float
    targets_per_s: tuple[float, ...]
    targets_per_step: float
    step_overhead_s: float
    query_tokens: float
    encode_queries_per_s: float
    rank_queries_per_s: float
    save_s: float
    startup_s: float
    speeds: dict[str, float]
    measured_on: dict[str, Any]
    ranking: dict[str, Any] | None = None
    compile: bool = False
    cuda_graph: bool = False
    resident: bool = False

    def options(self) -> Any:
        """The model's options as its dataclass; what has become an option since has its default.

        Raises:
            DataError: an option of it exists no more.
        """
        kind: Any = OPTIONS[self.model["name"]]
        try:
            return TypeAdapter(kind).validate_python({key: self.model[key] for key in self.model if key != "name"})
        except ValidationError as error:
            what = f"the measurement of '{self.recipe}' is of another version of {self.model['name']}"
            raise DataError(what, where="throughput", fix=AGAIN) from error

    def batches(self) -> LoaderOptions:
        """The loader's options, but for where batches were to be made: what that came to is in ``resident``."""
        return replace(LoaderOptions(**self.loader), resident="auto")

    def steps_like(self, config: RunConfig) -> bool:
        """Whether its steps were compiled and captured as those of ``config``: else they cost something else."""
        return (self.compile, self.cuda_graph) == (config.training.compile, config.training.cuda_graph)

    def answers(self, config: RunConfig, items: int, formats: tuple[int, int], *, resident: bool = False) -> bool:
        """Whether it was measured for just this model, batch, catalogue, number formats and kind of step.

        Args:
            config: the run.
            items: in its catalogue.
            formats: bytes of a number in the layers' and in the loss' products.
            resident: whether its batches will be made on the device.
        """
        return (
            self.options() == config.model_options()
            and self.batches() == replace(config.loader, resident="auto")
            and self.steps_like(config)
            and self.resident == resident
            and self.accumulate == config.training.accumulate
            and (self.narrow, self.loss) == formats
            and abs(self.items - items) <= SAME_CATALOGUE * items
        )


@dataclass(frozen=True)
class Throughput:
    """A throughput file.

    Attributes:
        path: the file.
        device: name, kind and cores of the device.
        measurements: its entries.
    """

    path: Path
    device: dict[str, Any]
    measurements: tuple[Measurement, ...]


def folders() -> list[Path]:
    """Where throughput files lie: one's own first."""
    return [data_folder() / "throughput", SHIPPED]


def read_all(places: list[Path] | None = None) -> list[Throughput]:
    """Every throughput file.

    Raises:
        DataError: one of them cannot be read; it is named.
    """
    return [read(path) for place in (places or folders()) for path in sorted(place.glob("*.json"))]


def read(path: Path) -> Throughput:
    """One throughput file.

    Raises:
        DataError: it is not one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = tuple(_entry(values) for values in content["measurements"])
        return Throughput(path, dict(content["device"]), entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"not a throughput file ({error})", where=str(path), fix=AGAIN) from error


def _entry(values: Mapping[str, Any]) -> Measurement:
    known = {field.name for field in fields(Measurement)}
    if unlike := (known ^ set(values)) - CAME_LATER:
        raise ValueError(f"keys {sorted(unlike)}")
    return Measurement(**{**values, "targets_per_s": tuple(values["targets_per_s"])})


def write(device: Device, measurement: Measurement, folder: Path | None = None) -> Path:
    """Put a measurement into its device's file; an older one for the same recipe, model and batch is replaced."""
    if folder is None:
        writable = SHIPPED.is_dir() and os.access(SHIPPED, os.W_OK)
        folder = SHIPPED if writable else folders()[0]
    path = folder / f"{device.key}.json"
    before = read(path).measurements if path.exists() else ()
    kept = [entry for entry in before if _subject(entry) != _subject(measurement)]
    entries = sorted([*kept, measurement], key=lambda entry: (entry.recipe, json.dumps(entry.model, sort_keys=True)))
    content = {
        "device": {"name": device.name, "kind": device.kind, "cores": device.cores},
        "measurements": [asdict(entry) for entry in entries],
    }
    write_json(path, content)
    return path


def _subject(entry: Measurement) -> tuple[Any, ...]:
    """What an entry is of; options that came after it was measured have their defaults."""
    try:
        made_of: Any = entry.options(), entry.batches()
    except (DataError, TypeError):  # an option of it is gone: nobody can ask for it, nor measure it again
        made_of = entry.model, entry.loader
    kind = entry.narrow, entry.loss, entry.compile, entry.cuda_graph, entry.resident
    return entry.recipe, entry.dataset, entry.model["name"], made_of, entry.accumulate, kind
