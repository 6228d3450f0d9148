"""A gin file on its way into a recipe: values under this project's keys, each with the line that it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from pipelines.compat.hstu.fates import FATES
from pipelines.compat.hstu.gin_classes import AttnBalancedBenchmarkArgs, MixedPrecisionArgs
from pipelines.compat.hstu.gin_reader import GinFile
from pipelines.config_files import Layered
from pipelines.errors import ConfigError


@dataclass
class Translation:
    """What has been translated so far.

    Attributes:
        file: the gin file.
        processes: that will train together.
        layers: the recipe.
        notes: lines that a reader of the numbers ought to know.
        resume: the checkpoint to begin with, and who says so.
    """

    file: GinFile
    processes: int = 1
    layers: Layered = field(default_factory=Layered)
    notes: list[str] = field(default_factory=list)
    resume: tuple[str, str] | None = None

    def put(self, key: str, value: Any, made: Any, name: str) -> None:
        """Write ``value`` at ``key``; it comes from the field ``name`` of ``made``."""
        self.layers.put(tuple(key.split(".")), value, self.file.origin(made, name))

    def put_all(self, made: Any, keys: dict[str, str]) -> None:
        """Write fields of ``made`` as they are; ``keys`` by field."""
        for name, key in keys.items():
            self.put(key, getattr(made, name), made, name)

    def set(self, **values: Any) -> None:
        """What no field says, by key with ``__`` for a dot."""
        for key, value in values.items():
            self.layers.put(tuple(key.split("__")), value, str(self.file.path))

    def refuse(self, made: Any, name: str, why: str, fix: str | None = None) -> NoReturn:
        """End here: the value of a field cannot be honoured.

        Raises:
            ConfigError: with file, line and field.
        """
        what = f"{getattr(made, name)!r} cannot be honoured: {why}"
        raise ConfigError(what, where=self.file.origin(made, name), fix=fix)

    def refuse_unless(self, made: Any, name: str, *allowed: Any) -> None:
        """As :meth:`refuse`, with the table's reason, unless the value is one of ``allowed``."""
        if getattr(made, name) not in allowed:
            self.refuse(made, name, FATES[f"{type(made).__name__}.{name}"].text)

    def note(self, made: Any, name: str, text: str) -> None:
        """A line about a field."""
        self.notes.append(f"{self.file.origin(made, name)}: {text}")

    def refuse_classes(self) -> None:
        """Refuse classes none of whose fields can be honoured.

        Raises:
            ConfigError: one of them is bound.
        """
        for kind in (MixedPrecisionArgs, AttnBalancedBenchmarkArgs):
            for (_, name, entry), binding in self.file.bindings.items():
                if name == kind.__name__:
                    reason = FATES[f"{name}.{entry}"].text
                    raise ConfigError(f"{name}.{entry} cannot be honoured: {reason}", where=binding.where)

    def name_what_is_not_used(self) -> None:
        """A line for every bound field that changes no number, and for what nothing refers to."""
        seen: dict[str, list[str]] = {}
        for (_, kind), made in self.file.objects.items():
            for name in vars(made):
                if self.file.given(made, name) and FATES[f"{kind}.{name}"].kind == "same":
                    seen.setdefault(f"{kind}.{name}", []).append(self.file.origin(made, name).partition(": ")[0])
        for name, places in seen.items():
            where = places[0] + (f" and {len(places) - 1} more" if len(places) > 1 else "")
            self.notes.append(f"{where}: {name} is not used: {FATES[name].text}")
        self.notes += self.file.unused()
        for (scope, kind, entry), binding in self.file.bindings.items():
            if not scope and not any(made[1] == kind for made in self.file.objects):
                self.notes.append(f"{binding.where}: {kind}.{entry} is not used: this command reads no {kind}")
