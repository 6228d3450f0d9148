"""Which module made the first NaN or infinity: extremes of every module's tensors, forward and backward, in order.

Nothing is read back inside the step: every hook leaves two scalars on the device; one transfer at the end reads all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Where = Literal["input", "output", "gradient of output", "gradient of input", "gradient of parameter"]


@dataclass(frozen=True)
class Origin:
    """Where the first value that is not finite came from.

    Attributes:
        module: its dotted name in the model; empty for the model itself.
        kind: its class.
        where: which of its tensors was the first.
        why: what is known about it, half a sentence.
    """

    module: str
    kind: str
    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.kind} '{self.module}' ({self.where}; {self.why})"


@dataclass(frozen=True)
class Seen:
    """One tensor that passed by. ``low`` and ``high`` are on the host once :meth:`Trace.read` has run."""

    module: str
    where: Where
    tensor: int  # equal for hooks of one tensor of the autograd graph; -1 in the forward
    low: float
    high: float
    zeros: float | None

    @property
    def finite(self) -> bool:
        """Neither NaN nor infinite; an input may hold minus infinity, as attention masks do."""
        return math.isfinite(self.high) and (math.isfinite(self.low) or (self.where == "input" and self.low < 0))


@dataclass
class Trace:
    """Hooks on every module and parameter of ``model``; records between :meth:`start` and :meth:`read`.

    Attributes:
        model: watched from now until :meth:`detach`.
    """

    model: nn.Module
    _handles: list[Any] = field(default_factory=list)
    _names: list[tuple[str, Where, int, bool]] = field(default_factory=list)
    _scalars: list[Tensor] = field(default_factory=list)
    _nodes: dict[tuple[int, int], tuple[int, Any]] = field(
        default_factory=dict
    )  # the nodes kept, so that ids stay unique
    _recording: bool = False
    _count_zeros: bool = False

    def __post_init__(self) -> None:
        for name, module in self.model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after(name), with_kwargs=True))
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                self._handles.append(on_gradient(parameter, self._gradient(name, "gradient of parameter")))

    def start(self, *, count_zeros: bool) -> None:
        """Forget the last step and record the next; ``count_zeros`` costs another pass over every output."""
        self._names.clear()
        self._scalars.clear()
        self._nodes.clear()
        self._recording, self._count_zeros = True, count_zeros

    def resume(self) -> None:
        """Go on recording: another batch of the same step."""
        self._recording = True

    def read(self) -> list[Seen]:
        """Everything recorded, in order of execution; stops recording."""
        self._recording = False
        self._nodes.clear()
        if not self._scalars:
            return []
        numbers = iter(torch.stack([scalar.to(self._scalars[0].device) for scalar in self._scalars]).tolist())
        return [
            Seen(name, where, tensor, next(numbers), next(numbers), next(numbers) if zeros else None)
            for name, where, tensor, zeros in self._names
        ]

    def detach(self) -> None:
        """Take all hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._recording:
                for tensor in float_tensors((args, kwargs)):
                    self._record(name, "input", -1, tensor)
                    if tensor.requires_grad:
                        on_gradient(tensor, self._gradient(name, "gradient of input", self._number(tensor)))

        return hook

    def _after(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._recording:
                for tensor in float_tensors(output):
                    self._record(name, "output", -1, tensor, zeros=self._count_zeros)
                    if tensor.requires_grad:
                        on_gradient(tensor, self._gradient(name, "gradient of output", self._number(tensor)))

        return hook

    def _gradient(self, name: str, where: Where, number: int = -1) -> Any:
        def hook(gradient: Tensor) -> None:
            if self._recording:
                self._record(name, where, number, gradient)

        return hook

    def _number(self, tensor: Tensor) -> int:
        node = tensor.grad_fn if tensor.grad_fn is not None else tensor
        return self._nodes.setdefault((id(node), tensor.output_nr), (len(self._nodes), node))[0]

    def _record(self, name: str, where: Where, number: int, tensor: Tensor, zeros: bool = False) -> None:
        values = tensor.detach()
        if values.layout != torch.strided:  # a sparse gradient of an embedding
            values = values.coalesce().values()
        if values.is_complex():
            values = torch.view_as_real(values)
        if values.numel() == 0:
            return
        low, high = values.aminmax()  # one pass, and NaN and infinity both show
        self._names.append((name, where, number, zeros))
        self._scalars += [low.float(), high.float()]
        if zeros:
            self._scalars.append((values == 0).float().mean())


def on_gradient(tensor: Tensor, hook: Callable[[Tensor], None]) -> Any:
    """Call ``hook`` with the gradient of ``tensor`` in every backward; returns the handle that takes it off."""
    return tensor.register_hook(hook)  # type: ignore[no-untyped-call]


def float_tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point and complex tensors in a nest of tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, Mapping):
        yield from float_tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from float_tensors(entry)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from float_tensors([getattr(value, entry.name) for entry in dataclasses.fields(value)])


def find_origin(seen: list[Seen], model: nn.Module) -> Origin | None:
    """The module that made the first value that is not finite, or None when every value was."""
    first = next((index for index, entry in enumerate(seen) if not entry.finite), None)
    if first is None:
        return None
    entry = seen[first]
    modules = dict(model.named_modules())
    if entry.where == "output":
        return _origin(
            modules, entry.module, "output", _broken_parameter(modules[entry.module]) or "its inputs were finite"
        )
    if entry.where == "input":
        # A caller that is not finite on entry was recorded before; so the caller made it on the way to this module.
        caller, _, child = entry.module.rpartition(".")
        if not entry.module:
            return _origin(modules, "", "input", "it was in the batch")
        why = _broken_parameter(modules[caller]) or "made by its own code or in the batch"
        return _origin(modules, caller, f"what it gives to '{child}'", why)
    return _gradient_origin(seen, first, modules)


def _broken_parameter(module: nn.Module) -> str | None:
    """Half a sentence about the first parameter of ``module`` that is not finite."""
    broken = next((name for name, tensor in module.named_parameters() if not tensor.isfinite().all()), None)
    return None if broken is None else f"its parameter {broken} is not finite"


def _gradient_origin(seen: list[Seen], first: int, modules: Mapping[str, nn.Module]) -> Origin:
    """The innermost module whose output's gradient was finite and whose input's or parameter's gradient was not."""
    entry = seen[first]
    healthy = {one.module for one in seen[:first] if one.where == "gradient of output"}
    if entry.where == "gradient of parameter":
        owner = entry.module.rpartition(".")[0]
        return _origin(
            modules, owner, f"gradient of parameter {entry.module.rpartition('.')[2]}", "first in the backward"
        )
    takers = [
        one.module
        for one in seen[first:]
        if one.tensor == entry.tensor and one.where == "gradient of input" and one.module in healthy
    ]
    innermost = [name for name in takers if not any(other.startswith(f"{name}.") for other in takers)]
    if innermost:
        also = f", as did {', '.join(innermost[1:])}" if innermost[1:] else ""
        why = (
            f"the gradient of its output was finite; it read the tensor{also}"
            if also
            else "the gradient of its output was finite"
        )
        return _origin(modules, innermost[0], "gradient of input", why)
    return _origin(modules, entry.module, entry.where, "made by what came after it, outside any module")


def _origin(modules: Mapping[str, nn.Module], name: str, where: str, why: str) -> Origin:
    return Origin(name, type(modules[name]).__name__, where, why)
