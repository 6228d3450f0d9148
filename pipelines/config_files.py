"""YAML files with ``extends``, ``--set`` overrides, and for every value the file and line it came from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import ConfigError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
KeyPath = tuple[str, ...]


@dataclass
class Layered:
    """Plain values, and where each was last written.

    Attributes:
        values: nested dicts as YAML gives them.
        origins: ``file:line`` (or the flag) by key path.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> str:
        """Where ``path`` or the nearest key above it was written."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
        return "configuration"

    def put(self, path: KeyPath, value: Any, origin: str) -> None:
        """Write ``value`` at ``path``, making the mappings above it."""
        level = self.values
        for key in path[:-1]:
            level[key] = _mapping(level.get(key))
            level = level[key]
        level[path[-1]] = value
        self.origins[path] = origin

    def over(self, below: Layered) -> Layered:
        """These values on top of ``below``; mappings merge key by key, everything else replaces."""
        return Layered(_merge(below.values, self.values), {**below.origins, **self.origins})


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: ``off`` and ``no`` are words, ``1e-3`` is a number."""


_Loader.yaml_implicit_resolvers = {
    letter: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$"),
    list("-+0123456789."),
)


def _mapping(value: Any) -> dict[str, Any]:
    """``value`` as a mapping that can take keys: a bare name (``model: ss4rec``) stands for ``{name: ss4rec}``."""
    if isinstance(value, dict):
        return value
    return {"name": value} if isinstance(value, str) else {}


def _merge(below: Any, above: Any) -> Any:
    if not isinstance(above, dict):
        return above
    below = _mapping(below)
    return {**below, **{key: _merge(below.get(key), value) for key, value in above.items()}}


def read_yaml(path: Path) -> Layered:
    """The file ``path`` on top of the file its ``extends:`` names (relative to it), if any.

    Raises:
        ConfigError: not there, not YAML, a key written twice, not a mapping, or files that extend each other in a ring.
    """
    return _read(path, ())


def _read(path: Path, above: tuple[Path, ...]) -> Layered:
    if path in above:
        ring = " -> ".join(str(p) for p in (*above, path))
        raise ConfigError(f"files extend each other in a ring: {ring}", where=str(path))
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError("not UTF-8 text", where=str(path)) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"not valid YAML: {getattr(error, 'problem', error)}", where=where) from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError("the top level is not a mapping of keys", where=f"{path}:1")
    layer = Layered(values)
    if node is not None:
        _collect_origins(node, (), path, layer.origins)
    parent = layer.values.pop("extends", None)
    if parent is None:
        return layer
    return layer.over(_read((path.parent / str(parent)).resolve(), (*above, path)))


def _collect_origins(node: yaml.Node, prefix: KeyPath, path: Path, origins: dict[KeyPath, str]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*prefix, str(key.value))
        where = f"{path}:{key.start_mark.line + 1}"
        if here in origins:
            raise ConfigError(f"key '{key.value}' stands twice, first at {origins[here]}", where=where)
        origins[here] = where
        _collect_origins(value, here, path, origins)


def parse_override(text: str) -> tuple[KeyPath, Any]:
    """``training.lr=3e-4`` as a key path and a YAML value.

    Raises:
        ConfigError: no ``=``, an empty key or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(f"'{text}' is not of the form key.path=value", where="--set")
    try:
        return path, yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of '{text}' is not valid YAML", where="--set") from error
