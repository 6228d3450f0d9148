"""From a dataset's name to its sequence store: fetch, read, prepare; each run again only when its inputs change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.data.datasets import DatasetSpec, data_folder
from pipelines.data.fetch import Fetched, fetch
from pipelines.data.formats import READER_VERSION, read_interactions, read_users
from pipelines.data.prepare import PREPARE_VERSION, PrepareOptions, prepare
from pipelines.data.store import SCHEMA_VERSION, SequenceStore, read_manifest
from pipelines.data.user_features import USER_ID
from pipelines.errors import DataError


def dataset_store(
    spec: DatasetSpec, cache: Path | None = None, options: PrepareOptions | None = None, *, progress: bool = True
) -> SequenceStore:
    """The store of ``spec``, built if it is not there yet or its inputs have changed.

    Args:
        spec: the dataset.
        cache: where downloads and stores live; default :func:`data_folder`. Stores go to ``cache/stores/NAME-HASH``.
        options: filters and units; default those of the spec.
        progress: show download progress on stderr.

    Raises:
        FetchError: no source has the file.
        DataError: the file is malformed, or nothing is left of it.
    """
    cache = cache or data_folder()
    fetched = fetch(spec, cache, progress=progress)
    return store_of(spec, fetched, cache, options or spec.prepare)


def store_of(spec: DatasetSpec, fetched: Fetched, cache: Path, options: PrepareOptions) -> SequenceStore:
    """As :func:`dataset_store`, for a file that is already here."""
    reader: dict[str, Any] = {"format": spec.format, "options": dict(spec.options)}
    if options.features:
        reader["options"]["features"] = list(options.features)
    key = input_key(fetched.sha256, reader, options)
    folder = cache / "stores" / f"{spec.name}-{key[:8]}"
    try:
        known = read_manifest(folder).get("source")
        if isinstance(known, dict) and known.get("key") == key:
            return SequenceStore.open(folder)
    except DataError:
        pass  # absent, damaged or of another version: built anew below
    told = [name for name in options.user_features if name != USER_ID]
    users = read_users(fetched.path, told, spec.format, **spec.options) if told else None
    source = {
        "name": spec.name,
        "files": [{"name": fetched.path.name, "sha256": fetched.sha256}],
        "from": fetched.source_name,
        "verified": fetched.verified,
        "note": "; ".join(part for part in (fetched.note, spec.note) if part),
        "reader": reader,
        "key": key,
    }
    return prepare(
        read_interactions(fetched.path, spec.format, **reader["options"]),  # held by prepare alone, which lets it go
        folder,
        source=source,
        options=options,
        users=users,
    )


def input_key(sha256: str, reader: Mapping[str, Any], options: PrepareOptions) -> str:
    """SHA-256 over all that a store depends on: the raw file, how it is read and filtered, the code's versions."""
    inputs = {
        "file": sha256,
        "reader": dict(reader),
        "options": options.described(),
        "versions": [SCHEMA_VERSION, READER_VERSION, PREPARE_VERSION],
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()
