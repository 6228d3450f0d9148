"""Between a model whose blocks are spread and the same model whole: names, parts, and the weights of either.

A checkpoint holds whole weights and whole optimiser state, as one process would write them. So any number of processes
goes on from it, spread otherwise or not at all, and one alone evaluates it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Which dimension of a block's parameter is dealt; the others are the same in all processes.
_DEALT = {
    "project_in.weight": 0,
    "project_in.bias": 0,
    "project_out.weight": 1,
    "attention_norm.weight": 0,
    "attention_norm.bias": 0,
}
_BLOCK = re.compile(r"^blocks\.0\.blocks\.(\d+)\.(.*)$")


def whole_name(name: str) -> str:
    """What the whole model calls the parameter ``name`` of the spread one."""
    match = _BLOCK.match(name)
    return name if match is None else f"blocks.{match[1]}.{match[2].replace('.linear.', '.')}"


def dealt_dimension(name: str) -> int | None:
    """The dimension of which a process has its part, by the whole model's name; None for what all have."""
    match = re.match(r"^blocks\.\d+\.(.*)$", name)
    return None if match is None else _DEALT.get(match[1])


class WholeWeights:
    """The weights and optimiser state of ``spread`` as those of ``whole``, and back.

    Args:
        whole: the model, whole.
        spread: the same with its blocks spread; what is no block's, both share.
        group: the processes of a block.
    """

    def __init__(self, whole: nn.Module, spread: nn.Module, group: dist.ProcessGroup) -> None:
        self.group = group
        wholes = dict(whole.named_parameters())
        named = {whole_name(name): parameter for name, parameter in spread.named_parameters()}
        if list(named) != list(wholes):  # the optimiser numbers them in this order
            raise AssertionError(f"spread and whole model differ in {set(named) ^ set(wholes) or 'the order of names'}")
        self.pairs = [(parameter, wholes[name], dealt_dimension(name)) for name, parameter in named.items()]
        self.dealt = {parameter: dimension for parameter, _, dimension in self.pairs if dimension is not None}

    @torch.no_grad()
    def collect(self) -> None:
        """Put the spread weights into the whole model. Collective."""
        for parameter, whole, dimension in self.pairs:
            if dimension is not None:
                whole.copy_(self._joined(parameter, dimension))
            elif whole is not parameter:  # a bias that is added after the sum: a copy of its own
                whole.copy_(parameter)

    @torch.no_grad()
    def deal(self) -> None:
        """Put the whole model's weights into the spread one."""
        for parameter, whole, dimension in self.pairs:
            if whole is not parameter:
                parameter.copy_(whole if dimension is None else self._own(whole, dimension))

    def collect_state(self, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
        """The optimiser's state with whole moments, by its numbering. Collective."""
        return {
            number: {key: self._moment(value, parameter, self._joined) for key, value in state.items()}
            for number, parameter in enumerate(_parameters(optimizer))
            if (state := optimizer.state.get(parameter))
        }

    def deal_state(self, optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]]) -> dict[int, Any]:
        """This process' part of a whole optimiser ``state``."""
        parameters = list(_parameters(optimizer))
        return {
            number: {key: self._moment(value, parameters[number], self._own) for key, value in moments.items()}
            for number, moments in state.items()
        }

    def _moment(self, value: Any, parameter: Tensor, change: Any) -> Any:
        dimension = self.dealt.get(parameter)  # type: ignore[call-overload]
        moments = isinstance(value, Tensor) and value.ndim == parameter.ndim  # not Adam's number of steps
        return change(value, dimension) if moments and dimension is not None else value

    def _joined(self, own: Tensor, dimension: int) -> Tensor:
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(self.group.size())]
        dist.all_gather(parts, own.contiguous(), group=self.group)
        return torch.cat(parts, dimension)

    def _own(self, whole: Tensor, dimension: int) -> Tensor:
        return whole.chunk(self.group.size(), dimension)[self.group.rank()].clone()


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    """In the order in which a state dict numbers them."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
