"""A gin file as typed objects, and for every field the file and line that it was bound in.

gin-config's own parser reads the text: scopes, blocks, macros, references, ``include``. What it means is decided here
by gin's rules, so that a mistake names its line: a later binding replaces an earlier one, a scope sees what is bound
above it, ``@scope/Class()`` is the object that this scope makes. Nothing is imported and nothing is run.
"""

from __future__ import annotations

import dataclasses
import tokenize
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pipelines.compat.hstu.gin_classes import CLASSES
from pipelines.errors import ConfigError, nearest

T = TypeVar("T")
_MACROS = ("macro", "gin.macro")


@dataclass(frozen=True)
class _Reference:
    """``@scope/Class()``."""

    scope: str
    kind: str
    called: bool


@dataclass(frozen=True)
class _Macro:
    """``%name``."""

    name: str


@dataclass(frozen=True)
class _Binding:
    value: Any
    where: str


@dataclass
class GinFile:
    """What a file says.

    Attributes:
        path: the file.
        bindings: by scope, class and field.
        macros: by name.
        objects: what has been made, by scope and class.
    """

    path: Path
    bindings: dict[tuple[str, str, str], _Binding] = field(default_factory=dict)
    macros: dict[str, _Binding] = field(default_factory=dict)
    objects: dict[tuple[str, str], Any] = field(default_factory=dict)
    origins: dict[tuple[int, str], str] = field(default_factory=dict)

    def bound(self, kind: type[Any]) -> bool:
        """Whether the file binds a field of ``kind`` outside all scopes."""
        return any(scope == "" and name == kind.__name__ for scope, name, _ in self.bindings)

    def get(self, kind: type[T]) -> T:
        """The object of the class ``kind``, made outside all scopes.

        Raises:
            ConfigError: a required field is missing, or a value is of another type; with file, line and field.
        """
        made: T = self._make("", kind.__name__, str(self.path), ())
        return made

    def origin(self, made: Any, name: str) -> str:
        """``file:line: Class.field`` of a field of ``made``; the file where the field has its default."""
        return self.origins.get((id(made), name), f"{self.path}: {type(made).__name__}.{name}")

    def given(self, made: Any, name: str) -> bool:
        """Whether the file binds the field."""
        return (id(made), name) in self.origins

    def unused(self) -> list[str]:
        """A line for each scoped object that the file describes and nothing refers to."""
        lines: dict[tuple[str, str], str] = {}
        for (scope, kind, _), binding in self.bindings.items():
            if scope and not any(made[1] == kind and _within(scope, made[0]) for made in self.objects):
                lines.setdefault((scope, kind), f"{binding.where}: {scope}/{kind} is not used: nothing refers to it")
        return list(lines.values())

    def _make(self, scope: str, kind: str, where: str, above: tuple[str, ...]) -> Any:
        """The object that ``scope`` makes of the class; one and the same each time."""
        name = f"{scope}/{kind}".lstrip("/")
        if name in above:
            raise ConfigError(f"{' -> '.join((*above, name))} refer to each other in a ring", where=where)
        if (scope, kind) in self.objects:
            return self.objects[scope, kind]
        parts = scope.split("/") if scope else []
        levels = ["/".join(parts[:end]) for end in range(len(parts) + 1)]
        found = {f: self.bindings[s, k, f] for s in levels for (at, k, f) in self.bindings if at == s and k == kind}
        hints = typing.get_type_hints(CLASSES[kind])
        values: dict[str, Any] = {}
        for entry in dataclasses.fields(CLASSES[kind]):
            if (binding := found.get(entry.name)) is None:
                if entry.default is dataclasses.MISSING:
                    first = next(iter(found.values()), None)
                    raise ConfigError(f"{name}.{entry.name} is missing", where=first.where if first else where)
                continue
            at = f"{binding.where}: {name}.{entry.name}"
            value = self._value(binding.value, scope, binding.where, (*above, name))
            values[entry.name] = _checked(value, entry, hints[entry.name], at)
        made = CLASSES[kind](**values)
        self.objects[scope, kind] = made
        for entry_name in values:
            self.origins[id(made), entry_name] = f"{found[entry_name].where}: {name}.{entry_name}"
        return made

    def _value(self, value: Any, scope: str, where: str, above: tuple[str, ...]) -> Any:
        """``value`` with macros and references replaced by what they stand for."""
        if isinstance(value, _Macro):
            if value.name in above:
                raise ConfigError(f"%{value.name} stands for itself", where=where)
            if value.name not in self.macros:
                raise ConfigError(f"unknown macro '%{value.name}'", where=where, fix=nearest(value.name, self.macros))
            macro = self.macros[value.name]
            return self._value(macro.value, scope, macro.where, (*above, value.name))
        if isinstance(value, _Reference):
            _known(value.kind, where)
            if not value.called:
                what = f"@{value.scope}/{value.kind}".replace("@/", "@")
                raise ConfigError(f"{what} is a class, not an object", where=where, fix=f"write {what}()")
            return self._make(value.scope or scope, value.kind, where, above)
        if isinstance(value, dict):
            return {key: self._value(entry, scope, where, above) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._value(entry, scope, where, above) for entry in value)
        return value


def read_gin(path: Path) -> GinFile:
    """Read the file and what it includes.

    Raises:
        ConfigError: a file that is not there or no gin, an unknown class or field (with the nearest), with its line.
        MachineError: gin-config is not installed.
    """
    file = GinFile(path)
    for scope, selector, name, value, where in _bindings(path, ()):
        if not name:
            file.macros[f"{scope}/{selector}".lstrip("/")] = _Binding(value, where)
        elif selector in _MACROS and name == "value":
            file.macros[scope] = _Binding(value, where)
        else:
            kind = selector.rpartition(".")[2]
            fields = [entry.name for entry in dataclasses.fields(_known(kind, where))]
            if name not in fields:
                raise ConfigError(f"{kind} has no field '{name}'", where=where, fix=nearest(name, fields))
            file.bindings[scope, kind, name] = _Binding(value, where)
    return file


def _known(kind: str, where: str) -> type[Any]:
    if kind not in CLASSES:
        raise ConfigError(f"unknown class '{kind}'", where=where, fix=nearest(kind, CLASSES))
    return CLASSES[kind]


def _within(scope: str, deeper: str) -> bool:
    return deeper == scope or deeper.startswith(f"{scope}/")


def _bindings(path: Path, above: tuple[Path, ...]) -> Iterator[tuple[str, str, str, Any, str]]:
    """Scope, class, field, value and ``file:line`` of every binding, those of included files where they stand."""
    from pipelines.compat.hstu.gin_parser import BindingStatement, ImportStatement, IncludeStatement, open_parser

    if path in above:
        raise ConfigError(f"files include each other in a ring: {' -> '.join(map(str, (*above, path)))}")
    try:
        with open(path, encoding="utf-8-sig") as stream:  # Windows editors put a mark in front
            for statement in open_parser(stream, _Reference, _Macro):
                where = f"{path}:{statement.location.line_num}"
                if isinstance(statement, BindingStatement):
                    yield statement.scope, statement.selector, statement.arg_name, statement.value, where
                elif isinstance(statement, IncludeStatement):
                    yield from _bindings(_included(statement.filename, path, where), (*above, path))
                elif isinstance(statement, ImportStatement):
                    what = f"modules are not imported ('{statement.module}'): every class of the scripts is known"
                    raise ConfigError(what, where=where, fix="take the line out")
                else:
                    _known(statement.selector.rpartition(".")[2], where)
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8 text", where=str(path)) from error
    except (SyntaxError, tokenize.TokenError, ValueError) as error:
        _explain(error, path)


def _explain(error: SyntaxError | tokenize.TokenError | ValueError, path: Path) -> NoReturn:
    """What gin's parser complains of, as one line."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    if isinstance(error, tokenize.TokenError):
        line = error.args[1][0]
    lines = str(error.msg if isinstance(error, SyntaxError) else error.args[0]).strip().splitlines()
    text = next((line for line in lines if "Failed to parse" in line), lines[0])  # below what Python says of it
    raise ConfigError(f"not valid gin: {text.strip()}", where=f"{path}:{line}" if line else str(path)) from error


def _included(name: str, by: Path, where: str) -> Path:
    """The file that ``include`` names: from the working folder, as gin has it, else beside the file that includes it.

    Raises:
        ConfigError: it is in neither.
    """
    for candidate in (Path(name), by.parent / name):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"there is no '{name}' to include", where=where, fix=f"looked in . and in {by.parent}")


def _checked(value: Any, entry: dataclasses.Field[Any], hint: Any, where: str) -> Any:
    """``value`` as the field takes it.

    Raises:
        ConfigError: it is of another type, or none of the field's values.
    """
    if entry.metadata.get("digits") and isinstance(value, str) and value.isdigit():
        return int(value)
    fitted = _fitted(value, hint)
    if fitted is _NOT:
        shown = type(value).__name__ if dataclasses.is_dataclass(value) else repr(value)
        raise ConfigError(f"{shown} is not {_described(hint)}", where=where)
    choices = entry.metadata.get("one_of")
    if choices and fitted is not None:
        if fitted.lower() not in choices:
            raise ConfigError(f"'{fitted}' is not one of {', '.join(choices)}", where=where)
        return fitted.lower()
    return fitted


_NOT: Any = object()
_WORDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "True or False", "NoneType": "None"}


def _fitted(value: Any, hint: Any) -> Any:
    """``value`` as ``hint`` has it, or ``_NOT``; a whole number is a number, a list may stand for a tuple."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return next((found for part in parts if (found := _fitted(value, part)) is not _NOT), _NOT)
    if origin in (list, tuple):
        found = [_fitted(entry, parts[0]) for entry in value] if isinstance(value, (list, tuple)) else [_NOT]
        return _NOT if any(entry is _NOT for entry in found) else origin(found)
    if origin is dict:
        pairs = value.items() if isinstance(value, dict) else [(_NOT, _NOT)]
        made = {_fitted(key, parts[0]): _fitted(entry, parts[1]) for key, entry in pairs}
        return _NOT if _NOT in made or _NOT in made.values() else made
    if hint is float and type(value) is int:
        return float(value)
    if hint in (int, float, str, bool):
        return value if type(value) is hint else _NOT
    return value if isinstance(value, hint) else _NOT


def _described(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_described(part) for part in parts)
    if origin in (list, tuple):
        return f"a {origin.__name__} of {_described(parts[0]).removeprefix('a ')}s"
    if origin is dict:
        return f"a mapping from names to {_described(parts[1])}"
    return _WORDS.get(hint.__name__, f"a {hint.__name__}")
