"""What a dataset is: its file, where it comes from, how it is read and filtered. configs/datasets has one YAML each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from pipelines.data.prepare import PrepareOptions
from pipelines.errors import ConfigError, DataError, nearest

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "configs" / "datasets"
_FILE_SUFFIXES = (".inter", ".csv", ".tsv", ".parquet", ".txt", ".dat", ".data", ".zip")


def data_folder() -> Path:
    """Where downloads and stores live: ``RECPOD_DATA``, else ``data`` in the working folder."""
    return Path(os.environ.get("RECPOD_DATA") or "data").expanduser()


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset: one file of interactions, its sources, and what is done to it by default."""

    name: str
    """What runs and stores call it."""
    description: str = ""
    """What it holds, in a line."""
    aliases: tuple[str, ...] = ()
    """Other names it answers to."""
    format: str = "auto"
    """A reader of pipelines.data.formats: movielens, recbole, sasrec, csv, parquet, kuairand; auto tells by name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The reader's own options, e.g. ``member`` of an archive or the names of columns."""
    file: str | None = None
    """Path of the file in a mirror and in the cache, e.g. ml-1m/ml-1m.zip."""
    local_files: tuple[str, ...] = ()
    """Paths in the cache that, where they exist, are read instead: files (format told by name), or folders in the
    same format."""
    url: str | None = None
    """The official address."""
    size: int | None = None
    """Bytes of the official file."""
    md5: str | None = None
    """MD5 of the official file, where its owner publishes one."""
    sha256: str | None = None
    """SHA-256 of the official file."""
    gdrive_id: str | None = None
    """Google Drive id of a copy of the official file; RECPOD_GDRIVE_ID where this is null."""
    recbole_example: str | None = None
    """Path of the file inside the recbole package, where it ships there."""
    path: Path | None = None
    """A file or folder on this machine that is the data; no other source is asked."""
    prepare: PrepareOptions = field(default_factory=PrepareOptions)
    """Filters and units by default."""
    note: str = ""
    """What a reader of results ought to know about the data."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Published size after the dataset's own filters: users, items, events, and least (no user has fewer events)."""


def dataset_files() -> dict[str, Path]:
    """Every dataset name and alias in configs/datasets, and the YAML behind it."""
    found: dict[str, Path] = {}
    for path in sorted(CONFIG_FOLDER.glob("*.yaml")):
        spec = _read_spec(path)
        for name in (spec.name, *spec.aliases):
            if name in found:
                raise ConfigError(f"the dataset name '{name}' is taken by {found[name].name}", where=str(path))
            found[name] = path
    return found


def load_dataset_spec(name_or_path: str | Path, cache: Path | None = None) -> DatasetSpec:
    """The dataset of that name or alias, of that YAML, or the data file at that path.

    Where one of the spec's ``local_files`` lies in ``cache`` (default: :func:`data_folder`), the returned spec reads it
    (``spec.path`` and ``spec.note`` say so) instead of the official file.

    Raises:
        ConfigError: unknown name (with the nearest), unknown key (with file, line and the nearest), wrong value.
        DataError: a path to a data file that is not there.
    """
    name = str(name_or_path)
    path = Path(name_or_path).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return _prefer_local(_read_spec(path), cache or data_folder())
    if path.suffix in _FILE_SUFFIXES or path.is_file():
        if not path.exists():
            raise DataError("no such data file", where=name, fix="Check the path")
        return DatasetSpec(name=path.name.split(".")[0], path=path.resolve(), description=f"the file {path.name}")
    if (CONFIG_FOLDER / f"{name}.yaml").is_file():
        return _prefer_local(_read_spec(CONFIG_FOLDER / f"{name}.yaml"), cache or data_folder())
    known = dataset_files()
    if name not in known:
        raise ConfigError(f"unknown dataset '{name}'", fix=nearest(name, known))
    return _prefer_local(_read_spec(known[name]), cache or data_folder())


def _prefer_local(spec: DatasetSpec, cache: Path) -> DatasetSpec:
    for candidate in spec.local_files:
        if (cache / candidate).is_file():
            note = f"read from the local file {candidate} instead of the official one. {spec.note}".strip()
            return replace(spec, path=(cache / candidate).resolve(), format="auto", options={}, note=note)
        if (cache / candidate).is_dir():
            note = f"read from the local folder {candidate} instead of the official file. {spec.note}".strip()
            return replace(spec, path=(cache / candidate).resolve(), note=note)
    return spec


def _read_spec(path: Path) -> DatasetSpec:
    try:
        text = path.read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        values = loader.construct_document(node) if node is not None else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"is not a readable YAML file ({' '.join(str(error).split())})", where=str(path)) from None
    if not isinstance(node, yaml.MappingNode) or not isinstance(values, dict):
        raise ConfigError("holds no keys", where=str(path))
    _check_keys(node, _names(DatasetSpec), path)
    for key, value in values.items():
        kind = _KINDS.get(key, str)
        if value is not None and not isinstance(value, kind):
            raise ConfigError(f"{key} is not a {kind.__name__}", where=_line(node, key, path))
    given = {key: value for key, value in values.items() if value is not None}
    if "name" not in given:
        raise ConfigError("has no name", where=str(path))
    for key in ("aliases", "local_files"):
        given[key] = tuple(given.get(key, ()))
    if "path" in given:
        given["path"] = Path(given["path"]).expanduser()
    if "prepare" in given:
        given["prepare"] = _prepare_options(node, given["prepare"], path)
    _check_counts(node, given.get("counts"), path)
    return DatasetSpec(**given)


_KINDS = {"aliases": list, "local_files": list, "options": dict, "prepare": dict, "size": int, "counts": dict}
_COUNTS = {"users", "items", "events", "least"}


def _check_counts(node: yaml.MappingNode, counts: Mapping[str, Any] | None, path: Path) -> None:
    """All four or none: an estimate made of half of them would be a guess."""
    if counts is None:
        return
    if set(counts) != _COUNTS or not all(type(value) is int and value > 0 for value in counts.values()):
        where, names = _line(node, "counts", path), ", ".join(sorted(_COUNTS))
        raise ConfigError(f"counts are whole numbers of {names}", where=where)


_PREPARE_TYPES: dict[str, tuple[type, ...]] = {
    "min_user_events": (int,),
    "min_item_events": (int,),
    "min_rating": (int, float, type(None)),
    "oldest_share": (int, float),
    "features": (list,),
    "rating_levels": (list,),
    "action_bits": (list,),
    "user_features": (list,),
}


def _prepare_options(node: yaml.MappingNode, values: Mapping[str, Any], path: Path) -> PrepareOptions:
    _check_keys(next(value for key, value in node.value if key.value == "prepare"), _names(PrepareOptions), path)
    where = _line(node, "prepare", path)
    for key, value in values.items():
        if not isinstance(value, _PREPARE_TYPES.get(key, (str,))) or isinstance(value, bool):
            raise ConfigError(f"prepare.{key} cannot be {value!r}", where=where)
    try:
        return PrepareOptions(**values)
    except ConfigError as error:
        raise ConfigError(error.what, where=where, fix=error.fix) from None


def _names(of: type) -> set[str]:
    return {f.name for f in fields(of)}


def _check_keys(node: yaml.MappingNode, valid: set[str], path: Path) -> None:
    for key, _ in node.value:
        if key.value not in valid:
            where = f"{path}:{key.start_mark.line + 1}"
            raise ConfigError(f"unknown key '{key.value}'", where=where, fix=nearest(str(key.value), valid))


def _line(node: yaml.MappingNode, name: str, path: Path) -> str:
    line = next(key.start_mark.line + 1 for key, _ in node.value if key.value == name)
    return f"{path}:{line}"
