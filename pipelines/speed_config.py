"""What of a configuration must fit where a step is captured, compiled or fed from the device.

What model, loss and loader decide (``training.cuda_graph``, ``training.compile``, ``loader.resident``) is checked when
a recipe is read, what the machine decides before anything is fetched. Only whether the data fit is known later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from models.ranking import RankingData
from models.registry import build_model, build_ranking
from pipelines.config_files import Layered
from pipelines.data.resident import check_batches
from pipelines.errors import ConfigError
from pipelines.spread_config import written_at
from pipelines.training.compiled import check_compiler, compiled_layers
from pipelines.training.graphed import check_gpu, check_step

if TYPE_CHECKING:
    from pipelines.config import RunConfig


def check_speed(config: RunConfig, layers: Layered) -> None:
    """Refuse now what the trainer would refuse after the data have been prepared.

    Raises:
        ConfigError: names the key, with the file and line (or flag) that it comes from.
    """
    if config.engine.name != "recpod":
        return
    with written_at(layers):
        check_batches(config.loader, plain=not config.ranks)
        if config.training.compile:
            compiled_layers(_small_task(config))
        _check_captured(config, processes=1)


def check_graph(config: RunConfig, kind: str, processes: int) -> None:
    """Refuse a CUDA graph on a device of ``kind`` (``cpu`` or ``cuda``) or by several ``processes``.

    Raises:
        ConfigError: the step cannot be captured.
        MachineError: no GPU.
    """
    if config.training.cuda_graph:
        check_gpu(kind)
    _check_captured(config, processes)


def check_here(config: RunConfig, kind: str, processes: int) -> None:
    """As :func:`check_graph`, on this machine, which compiles as well.

    Raises:
        ConfigError: see :func:`check_graph`.
        MachineError: likewise, or there is no compiler.
    """
    check_graph(config, kind, processes)
    if config.training.compile:
        check_compiler()


def _check_captured(config: RunConfig, processes: int) -> None:
    training = config.training
    if training.cuda_graph:
        plain = processes == 1 and training.accumulate == 1 and not config.debug
        check_step(_small_task(config), config.loader, plain)


def _small_task(config: RunConfig) -> nn.Module:
    """The run's model for a catalogue of one item: it says what its steps are made of, and no data are needed.

    The random numbers that a run begins with stay untouched.

    Raises:
        ConfigError: there is no such model.
    """
    name, options = config.model["name"], config.model_options()
    try:
        with torch.random.fork_rng(devices=[]):
            if config.ranks:
                classes = tuple(map(str, range(options.head[-1])))
                return build_ranking(name, 1, options, RankingData("classes", classes, {}))
            return build_model(name, 1, options)
    except ValueError as error:
        raise ConfigError(str(error), where="model") from error
