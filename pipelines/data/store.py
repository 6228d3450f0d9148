"""The sequence store: every user's events as memory-mapped arrays; opening it reads nothing, a batch is a slice.

A store is a folder::

    offsets.npy      int64 [users + 1]   user u owns events offsets[u] .. offsets[u + 1]
    items.npy        int32 [events]      item index 1 .. num_items; 0 is padding and is never stored
    timestamps.npy   int64 [events]      seconds, never decreasing inside a user, file order kept for ties
    ratings.npy      float32 [events]    and more, one file a token feature
    actions.npy      uint8 [events]      what the user did: a class or a bit mask, named in the manifest
    user_sex.npy     int32 [users]       and more, one file a user feature: codes, 0 is unknown
    user_sex.parquet code, value         what the codes stand for
    items.parquet    item_index, item_id       users.parquet    user_index, user_id
    manifest.json    schema version, source, filters, counts, tie rule, content hash

It is built in a temporary folder beside its place and renamed, so it is whole or absent. Needs numpy alone; pyarrow
only for the original ids.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import DataError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_CORE = {"offsets": np.dtype(np.int64), "items": np.dtype(np.int32), "timestamps": np.dtype(np.int64)}
_REBUILD = "Delete the folder and prepare the data again"


@dataclass(frozen=True, eq=False)
class SequenceStore:
    """An open store. The arrays are read-only memory maps.

    Attributes:
        path: the folder.
        offsets: ``[users + 1]`` int64; user ``u`` owns events ``offsets[u]`` to ``offsets[u + 1]``; no user is empty.
        items: ``[events]`` int32, 1 .. ``num_items``.
        timestamps: ``[events]`` int64 seconds, never decreasing inside a user.
        features: further arrays ``[events]`` by name, e.g. ``ratings`` float32 or ``actions`` uint8.
        manifest: see the module docstring; ``manifest["timestamps"]`` says what the times are: ``seconds`` since the
            epoch, ``relative`` to each user's first event, or mere ``order``.
        user_features: arrays ``[users]`` int32 by name: codes below :attr:`user_feature_sizes`, 0 is unknown.
    """

    path: Path
    offsets: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    features: Mapping[str, np.ndarray]
    manifest: Mapping[str, Any]
    user_features: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> SequenceStore:
        """Open a store; costs milliseconds whatever its size.

        Raises:
            DataError: no store there, one of another schema version, or one whose arrays are not as its manifest says.
        """
        path = Path(path)
        manifest = read_manifest(path)
        version = manifest.get("schema_version")
        if version != SCHEMA_VERSION:
            raise DataError(
                f"the store has schema version {version}, this code reads {SCHEMA_VERSION}",
                where=str(path),
                fix=_REBUILD,
            )
        _check_manifest(manifest, path)
        arrays = {name: _map_array(path, name, declared) for name, declared in manifest["arrays"].items()}
        missing = [name for name, dtype in _CORE.items() if name not in arrays or arrays[name].dtype != dtype]
        if missing:
            raise DataError(f"the store lacks a usable {', '.join(missing)}", where=str(path), fix=_REBUILD)
        core = {name: arrays.pop(name) for name in _CORE}
        users = {name: _user_codes(arrays, name, len(core["offsets"]) - 1, path) for name in _declared_users(manifest)}
        return cls(path=path, **core, features=arrays, manifest=manifest, user_features=users)

    @property
    def num_users(self) -> int:
        """Users; their indices are 0 .. num_users - 1."""
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        """Items in the catalogue; their indices are 1 .. num_items."""
        return int(self.manifest["counts"]["items"])

    @property
    def num_events(self) -> int:
        """Events of all users."""
        return len(self.items)

    @property
    def user_feature_sizes(self) -> dict[str, int]:
        """How many codes each user feature has, unknown (0) among them."""
        return _declared_users(self.manifest)

    @property
    def actions(self) -> Mapping[str, Any] | None:
        """What the token feature ``actions`` means: ``kind`` (``classes``, ``bits``) and ``names``; None without it."""
        described = self.manifest.get("actions")
        return described if isinstance(described, Mapping) else None

    @property
    def num_out_of_order(self) -> int | None:
        """Events that the file held out of time order inside their user; None for a store that no file was read for."""
        number = self.manifest.get("events_out_of_time_order")
        return None if number is None else int(number)

    def item_ids(self) -> np.ndarray:
        """Original ids ``[num_items]`` (int64 or object): entry ``i`` belongs to item index ``i + 1``."""
        return self._ids("items.parquet", "item_id")

    def user_ids(self) -> np.ndarray:
        """Original ids ``[num_users]`` (int64 or object): entry ``u`` belongs to user index ``u``."""
        return self._ids("users.parquet", "user_id")

    def user_feature_values(self, name: str) -> np.ndarray:
        """Original values of a user feature; entry ``i`` belongs to code ``i + 1``."""
        return self._ids(f"user_{name}.parquet", "value")

    def _ids(self, file: str, column: str) -> np.ndarray:
        try:
            import pyarrow.parquet as parquet
        except ModuleNotFoundError as error:
            raise DataError("original ids need the package pyarrow", fix="pip install pyarrow") from error
        if not (self.path / file).is_file():
            raise DataError(f"the store lacks {file}", where=str(self.path), fix=_REBUILD)
        values: np.ndarray = parquet.read_table(self.path / file, columns=[column])[column].to_numpy()
        return values


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the store at ``path``; DataError when there is none or it is no JSON object."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError("there is no sequence store here", where=str(path), fix="Run `recpod prepare` first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{MANIFEST} is not readable ({error})", where=str(path), fix=_REBUILD) from None
    if not isinstance(manifest, dict):
        raise DataError(f"{MANIFEST} holds no keys", where=str(path), fix=_REBUILD)
    return manifest


def _check_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """DataError unless what :class:`SequenceStore` reads from the manifest is there."""
    arrays, counts = manifest.get("arrays"), manifest.get("counts")
    counted = isinstance(counts, dict) and isinstance(counts.get("items"), int)
    listed = isinstance(arrays, dict) and all(
        isinstance(a, dict) and {"dtype", "shape"} <= {*a} for a in arrays.values()
    )
    if not counted or not listed:
        raise DataError(f"{MANIFEST} lacks arrays or counts", where=str(path), fix=_REBUILD)


def _declared_users(manifest: Mapping[str, Any]) -> dict[str, int]:
    declared = manifest.get("user_features")
    return {str(name): int(size) for name, size in declared.items()} if isinstance(declared, Mapping) else {}


def _user_codes(arrays: dict[str, np.ndarray], name: str, num_users: int, path: Path) -> np.ndarray:
    """Take the codes of one user feature out of ``arrays``."""
    codes = arrays.pop(f"user_{name}", None)
    if codes is None or codes.shape != (num_users,) or codes.dtype != np.int32:
        raise DataError(f"the store lacks a usable user_{name}", where=str(path), fix=_REBUILD)
    return codes


def _map_array(path: Path, name: str, declared: Mapping[str, Any]) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{name}.npy is missing or damaged ({error})", where=str(path), fix=_REBUILD) from None
    if [str(array.dtype), list(array.shape)] != [declared["dtype"], declared["shape"]]:
        expected = f"{declared['dtype']} {declared['shape']}"
        raise DataError(
            f"{name}.npy holds {array.dtype} {list(array.shape)}, the manifest says {expected}",
            where=str(path),
            fix=_REBUILD,
        )
    return array


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes ``target`` when the block ends well and vanishes when it fails.

    A store already at ``target`` is replaced; readers that hold it open keep their (unlinked) files. Nothing is synced
    to the disk: after a power cut a short array differs from the manifest and ``open`` refuses it.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise DataError(
            f"cannot write there ({error.strerror})", where=str(target.parent), fix="Choose another folder"
        ) from None
    try:
        yield temporary
        os.chmod(temporary, 0o755)  # mkdtemp makes it private; a store may be shared
        _put_in_place(temporary, target)
    except OSError as error:
        raise DataError(
            f"the store could not be written ({error})", where=str(target), fix="Free some disk space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, target: Path) -> None:
    try:
        os.rename(temporary, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        retired = temporary.with_suffix(".old")
        os.rename(target, retired)
        os.rename(temporary, target)
        shutil.rmtree(retired, ignore_errors=True)


def write_arrays(
    folder: Path, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any], ids: Iterable[bytes]
) -> None:
    """Write ``arrays`` as ``.npy`` files and the manifest, completed with their shapes and the content hash, last.

    Args:
        folder: the folder that :func:`building` gave.
        arrays: by name; the three core arrays and the token features.
        manifest: everything else that the manifest shall say.
        ids: the original ids as bytes; they are part of the content hash, so a renumbered catalogue is another store.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data)
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    for chunk in ids:
        digest.update(chunk)
    shapes = {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in arrays.items()}
    whole = {
        "schema_version": SCHEMA_VERSION,
        **manifest,
        "arrays": shapes,
        "content_hash": digest.hexdigest(),
    }
    (folder / MANIFEST).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
