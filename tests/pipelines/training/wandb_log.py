"""Reads a ``.wandb`` file back, which the package itself can only upload.

The file is a log in LevelDB's framing: after a header of seven bytes, blocks of 32 KiB hold chunks of ``crc32 (4
bytes), length (2), type (1), data``; type 1 is a whole record, 2, 3 and 4 are a record's first, middle and last
chunk. A record is the protobuf message ``wandb_internal.Record``.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as protocol

_BLOCK, _CHUNK_HEADER, _FILE_HEADER = 32 * 1024, struct.Struct("<IHB"), 7


@dataclass
class OfflineRun:
    """What one run told W&B."""

    run_id: str = ""
    name: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def read_offline_run(path: Path) -> OfflineRun:
    """The finished run in a ``.wandb`` file.

    The package's own process writes it and may still do so when ``finish`` has returned: wait for its last record.
    """
    deadline = time.monotonic() + 30
    while (run := _read(path)).exit_code is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return run


def _read(path: Path) -> OfflineRun:
    run = OfflineRun()
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.run_id, run.name, run.project = record.run.run_id, record.run.display_name, record.run.project
            run.config.update(_items(record.run.config.update))
        elif kind == "config":
            run.config.update(_items(record.config.update))
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary.update(_items(record.summary.update))
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(path: Path) -> Iterator[Any]:
    content = path.read_bytes()
    if content[:4] != b":W&B"[: len(content)]:
        raise ValueError(f"{path} is no W&B log")
    position, parts = _FILE_HEADER, []
    while position + _CHUNK_HEADER.size <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _CHUNK_HEADER.size:  # a header never straddles two blocks
            position += left
            continue
        _, length, kind = _CHUNK_HEADER.unpack_from(content, position)
        if kind == 0:  # the rest of the block is padding
            position += left
            continue
        position += _CHUNK_HEADER.size
        if position + length > len(content):  # still being written
            return
        parts.append(content[position : position + length])
        position += length
        if kind in (1, 4):
            record = protocol.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record
