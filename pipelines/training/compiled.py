"""torch.compile where it can pay: layers that work on each token by itself, whose steps are many and small.

Attention, scans and the loss have kernels of their own and are left as they are.
"""

from __future__ import annotations

import shutil

from torch import nn

from models.layers.feed_forward import FeedForward
from pipelines.errors import ConfigError, MachineError

_COMPILERS = ("c++", "g++", "clang++", "gcc", "cc", "clang")


def compile_layers(task: nn.Module, backend: str = "inductor") -> int:
    """Hand the feed-forward layers of ``task`` to torch.compile, in place: names in a state_dict stay as they are.

    The number of tokens is left open, so that batches of any size share what is compiled (at the first step).

    Returns:
        How many layers there are.

    Raises:
        ConfigError: none.
        MachineError: there is no compiler.
    """
    layers = compiled_layers(task)
    if backend == "inductor":
        check_compiler()
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
    return len(layers)


def compiled_layers(task: nn.Module) -> list[FeedForward]:
    """The layers of ``task`` that are compiled.

    Raises:
        ConfigError: none.
    """
    layers = [module for module in task.modules() if isinstance(module, FeedForward)]
    if not layers:
        what = f"{type(task).__name__} has no feed-forward layer, and nothing else is compiled"
        raise ConfigError(what, where="training.compile", fix="leave training.compile out")
    return layers


def check_compiler() -> None:
    """Look for what torch would miss in the midst of the first step.

    Raises:
        MachineError: there is no compiler.
    """
    if not any(map(shutil.which, _COMPILERS)):
        what = "torch.compile needs a C++ compiler and finds none"
        raise MachineError(what, where="training.compile", fix="install g++, or leave training.compile out")
