"""gin-config's parser of gin files, without the rest of gin: nothing is registered, imported or run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TextIO

from pipelines.errors import MachineError

try:
    from gin.config_parser import BindingStatement, ConfigParser, ImportStatement, IncludeStatement, ParserDelegate
except ModuleNotFoundError as error:
    raise MachineError(
        "gin files are read by the package gin-config, which is not installed",
        where="--gin-config-file",
        fix="entrypoints/setup.sh --hstu",
    ) from error

__all__ = ["BindingStatement", "ImportStatement", "IncludeStatement", "open_parser"]


class _Delegate(ParserDelegate):  # type: ignore[misc]
    def __init__(self, reference: Callable[[str, str, bool], Any], macro: Callable[[str], Any]) -> None:
        self.reference, self.named = reference, macro

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
        scope, _, name = scoped_configurable_name.rpartition("/")
        return self.reference(scope, name.rpartition(".")[2], evaluate)

    def macro(self, macro_name: str) -> Any:
        return self.named(macro_name)


def open_parser(
    stream: TextIO, reference: Callable[[str, str, bool], Any], macro: Callable[[str], Any]
) -> Iterable[Any]:
    """The statements of ``stream`` in their order; ``reference`` and ``macro`` make what stands for ``@`` and ``%``."""
    parser: Iterable[Any] = ConfigParser(stream, _Delegate(reference, macro))
    return parser
