"""The keys that a part of the configuration schema takes, for the nearest valid name in an error."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel


def valid_keys(schema: Any, path: Sequence[str]) -> list[str]:
    """The keys that ``schema`` takes at ``path``."""
    if typing.get_origin(schema) in (types.UnionType, typing.Union, tuple, list):
        keys = [valid_keys(part, path) for part in typing.get_args(schema)]
        return max(keys, key=len, default=[])
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        hints = {name: info.annotation for name, info in schema.model_fields.items()}
    elif dataclasses.is_dataclass(schema):
        hints = typing.get_type_hints(schema)
        hints = {f.name: hints[f.name] for f in dataclasses.fields(schema)}
    else:
        return []
    if not path:
        return list(hints)
    rest = path[1:]
    while rest and rest[0].isdigit():  # list positions
        rest = rest[1:]
    return valid_keys(hints[path[0]], rest) if path[0] in hints else []
