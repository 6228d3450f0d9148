"""Bring a dataset's file onto this machine, from the nearest source that has it.

Asked in order: the local cache, ``RECPOD_MIRROR`` (a folder, or an address, with its SHA256SUMS), the recbole package
(ML-100K ships in it), the official address, Google Drive. A folder mirror is read in place.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlparse

import requests

from pipelines.data.datasets import DatasetSpec, data_folder
from pipelines.data.download import Expected, check, connection_problem, digests, download, finish
from pipelines.errors import FetchError

_QUICK_S = 3.0


@dataclass(frozen=True)
class Fetched:
    """A file that is here.

    Attributes:
        path: where.
        source_name: ``local cache``, ``mirror``, ``recbole package``, ``official address`` or ``Google Drive``.
        sha256: of the whole file.
        verified: whether it agreed with a checksum published by its source.
        note: what it was held against, and which earlier source failed; for the manifest.
    """

    path: Path
    source_name: str
    sha256: str
    verified: bool
    note: str


class _Absent(Exception):
    """This source does not have the file: the next one is asked."""


def fetch(spec: DatasetSpec, cache: Path | None = None, *, progress: bool = True) -> Fetched:
    """The file of ``spec``, from the first source that has it sound.

    Args:
        spec: the dataset.
        cache: where downloads go and are looked for; default :func:`data_folder`.
        progress: show a bar on stderr.

    Raises:
        FetchError: one line with every source asked and why it did not do.
    """
    cache = cache or data_folder()
    reasons: list[str] = []
    broken: list[str] = []
    for name, bring in _sources(spec, cache, progress):
        try:
            path, sha256, verified, note = bring()
        except _Absent as absent:
            reasons.append(f"{name}: {absent}")
        except FetchError as error:
            reasons.append(f"{name}: {error.what}")
            broken.append(reasons[-1])
        else:
            return Fetched(path, name, sha256, verified, "; ".join([note, *(f"failed before: {b}" for b in broken)]))
    name = _file_name(spec)
    raise FetchError(
        f"dataset '{spec.name}' could not be fetched ({'; '.join(reasons)})",
        fix=f"Put the file at {cache / name} or set RECPOD_MIRROR to a folder that holds {name}",
    )


_Brought = tuple[Path, str, bool, str]


def _sources(spec: DatasetSpec, cache: Path, progress: bool) -> list[tuple[str, Callable[[], _Brought]]]:
    if spec.path is not None:
        return [("local file", lambda: _given_path(spec))]
    return [
        ("local cache", lambda: _local(spec, cache)),
        ("mirror", lambda: _mirror(spec, cache, progress)),
        ("recbole package", lambda: _recbole(spec)),
        ("official address", lambda: _official(spec, cache, progress)),
        ("Google Drive", lambda: _drive(spec, cache, progress)),
    ]


def _file_name(spec: DatasetSpec) -> str:
    return spec.file or (spec.url or spec.recbole_example or f"{spec.name}/data").rsplit("/", 1)[-1]


def _expected(spec: DatasetSpec) -> Expected:
    return Expected(sha256=spec.sha256, md5=spec.md5, size=spec.size)


def _given_path(spec: DatasetSpec) -> _Brought:
    assert spec.path is not None
    if spec.path.is_dir():
        return spec.path, folder_digest(spec.path), False, "unverified: a folder of the user's own"
    if not spec.path.is_file():
        raise FetchError(f"no file at {spec.path}")
    return spec.path, digests(spec.path)[0], False, "unverified: a file of the user's own"


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files of a folder.

    Raises:
        FetchError: it holds none.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise FetchError(f"the folder {folder} holds no files")
    lines = "".join(f"{digests(path)[0]}  {path.relative_to(folder).as_posix()}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _local(spec: DatasetSpec, cache: Path) -> _Brought:
    name = _file_name(spec)
    candidates = dict.fromkeys((cache / name, cache / Path(name).name))
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise _Absent(f"no {name} in {cache}")
    record = _record_of(path)
    if known := _read_record(record):
        sha256 = check(path, Expected(sha256=known["sha256"]))  # damaged since it came: the next source replaces it
        return path, sha256, known["verified"], f"{known['note']}, downloaded earlier from {known['source']}"
    expected = _expected(spec)
    if not expected.verifiable:
        return path, check(path, Expected()), False, "unverified: no published checksum"
    try:
        return path, check(path, expected), True, "agrees with the published checksum"
    except FetchError as error:
        return path, digests(path)[0], False, f"unverified: not the official file ({error.what})"


def _mirror(spec: DatasetSpec, cache: Path, progress: bool) -> _Brought:
    mirror = os.environ.get("RECPOD_MIRROR")
    if not mirror:
        raise _Absent("RECPOD_MIRROR is not set")
    if spec.file is None:
        raise _Absent("no path in a mirror is known")
    if urlparse(mirror).scheme in ("http", "https"):
        return _mirror_address(spec, spec.file, mirror.rstrip("/"), cache, progress)
    folder = Path(mirror.removeprefix("file://")).expanduser()
    if not folder.is_dir():
        raise FetchError("RECPOD_MIRROR is not a folder")
    path = folder / spec.file
    if not path.is_file():
        raise _Absent(f"it holds no {spec.file}")
    sums = folder / "SHA256SUMS"
    wanted = parse_sums(sums.read_text(encoding="utf-8")).get(spec.file) if sums.is_file() else None
    sha256 = check(path, Expected(sha256=wanted))
    return path, sha256, wanted is not None, _sums_note(wanted) + _against_official(spec, path)


def _mirror_address(spec: DatasetSpec, file: str, mirror: str, cache: Path, progress: bool) -> _Brought:
    try:
        answer = requests.get(f"{mirror}/SHA256SUMS", timeout=(_QUICK_S, 30))
    except requests.RequestException as error:
        raise FetchError(connection_problem(error)) from None
    wanted = None
    if answer.status_code == 200 and "html" not in answer.headers.get("Content-Type", ""):
        sums = parse_sums(answer.text)
        if file not in sums:
            raise _Absent(f"its SHA256SUMS does not list {file}")
        wanted = sums[file]
    target = cache / file
    sha256 = download(f"{mirror}/{quote(file)}", target, Expected(sha256=wanted), progress=progress)
    note = _sums_note(wanted) + _against_official(spec, target)
    return _recorded(target, sha256, wanted is not None, note, "mirror")


def _sums_note(wanted: str | None) -> str:
    return "agrees with the mirror's SHA256SUMS" if wanted else "unverified: the mirror has no SHA256SUMS entry for it"


def _against_official(spec: DatasetSpec, path: Path) -> str:
    """A mirror may hold its own edition of a file, under its own checksum; results must say so."""
    if not _expected(spec).verifiable:
        return ""
    sha256, md5 = digests(path)
    same = (spec.sha256 in (None, sha256)) and (spec.md5 in (None, md5))
    return " and with the official checksum" if same else ", differs from the official file"


def parse_sums(text: str) -> dict[str, str]:
    """Path -> SHA-256 of lines ``<sha256>  ./path`` as sha256sum writes them."""
    sums: dict[str, str] = {}
    for line in text.splitlines():
        digest, _, name = line.strip().partition(" ")
        if len(digest) == 64 and name:
            sums[name.strip().removeprefix("*").removeprefix("./")] = digest.lower()
    return sums


def _recbole(spec: DatasetSpec) -> _Brought:
    """Found through the package's metadata: importing recbole costs seconds and needs patches on newer numpy."""
    if spec.recbole_example is None:
        raise _Absent("it does not ship this dataset")
    try:
        package = metadata.distribution("recbole")
    except metadata.PackageNotFoundError:
        raise _Absent("recbole is not installed") from None
    path = Path(str(package.locate_file(spec.recbole_example)))
    if not path.is_file():
        raise _Absent(f"recbole {package.version} holds no {spec.recbole_example}")
    entry = next((f for f in package.files or () if str(f) == spec.recbole_example), None)
    if entry is None or entry.hash is None or entry.hash.mode != "sha256":
        return path, digests(path)[0], False, f"unverified: from recbole {package.version}"
    padded = entry.hash.value + "=" * (-len(entry.hash.value) % 4)
    wanted = base64.urlsafe_b64decode(padded).hex()
    return path, check(path, Expected(sha256=wanted)), True, f"agrees with the file list of recbole {package.version}"


def _official(spec: DatasetSpec, cache: Path, progress: bool) -> _Brought:
    if spec.url is None:
        raise _Absent("none is known")
    target, expected = cache / _file_name(spec), _expected(spec)
    sha256 = download(spec.url, target, expected, progress=progress)
    return _recorded(target, sha256, expected.verifiable, _checksum_note(expected), "official address")


def _checksum_note(expected: Expected) -> str:
    return "agrees with the published checksum" if expected.verifiable else "unverified: no published checksum"


def _drive_id(spec: DatasetSpec) -> str | None:
    return spec.gdrive_id or os.environ.get("RECPOD_GDRIVE_ID") or None


def _drive(spec: DatasetSpec, cache: Path, progress: bool) -> _Brought:
    drive_id = _drive_id(spec)
    if not drive_id:
        raise _Absent("no id given (gdrive_id, RECPOD_GDRIVE_ID)")
    try:
        import gdown
    except ModuleNotFoundError:
        raise _Absent("the package gdown is not installed (pip install gdown)") from None
    target, expected = cache / _file_name(spec), _expected(spec)
    part = target.with_name(f"{target.name}.gdrive.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        gdown.download(id=drive_id, output=str(part), quiet=not progress)
        if not part.is_file():
            raise FetchError("gdown brought nothing (is the file shared with everyone?)")
        sha256 = finish(part, target, expected)
    except requests.RequestException as error:
        raise FetchError(connection_problem(error)) from None
    except (gdown.exceptions.DownloadError, gdown.exceptions.FileURLRetrievalError) as error:
        raise FetchError(f"gdown: {' '.join(str(error).split())[:200]}") from None
    except OSError as error:
        raise FetchError(f"cannot be written to {target.parent} ({error.strerror or error})") from None
    finally:
        part.unlink(missing_ok=True)
    return _recorded(target, sha256, expected.verifiable, _checksum_note(expected), "Google Drive")


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.source.json")


def _read_record(path: Path) -> dict[str, Any] | None:
    """What :func:`_recorded` remembered; None where there is none or it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kinds = {"source": str, "sha256": str, "verified": bool, "note": str}
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in kinds.items()):
        return None
    return record


def _recorded(target: Path, sha256: str, verified: bool, note: str, source: str) -> _Brought:
    """Remember beside a download where it came from, so that later runs say so too."""
    record, place = {"source": source, "sha256": sha256, "verified": verified, "note": note}, _record_of(target)
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(record) + "\n", encoding="utf-8")
        os.replace(part, place)  # whole or absent
    except OSError as error:
        raise FetchError(f"cannot be written to {place.parent} ({error.strerror or error})") from None
    finally:
        part.unlink(missing_ok=True)
    return target, sha256, verified, note


def reachable(spec: DatasetSpec, cache: Path | None = None) -> tuple[bool, str]:
    """Whether some source has the dataset, told within seconds and without bringing it; and which, or why none."""
    cache = cache or data_folder()
    name = _file_name(spec)
    if spec.path is not None:
        there = spec.path.exists()
        return there, f"local file {spec.path.name}" if there else f"no file at {spec.path}"
    if any(path.is_file() for path in (cache / name, cache / Path(name).name)):
        return True, "local cache"
    mirror = os.environ.get("RECPOD_MIRROR", "")
    is_address = urlparse(mirror).scheme in ("http", "https")
    if (
        mirror
        and not is_address
        and spec.file
        and (Path(mirror.removeprefix("file://")).expanduser() / spec.file).is_file()
    ):
        return True, "mirror"
    if spec.recbole_example:
        try:
            _recbole(spec)
            return True, "recbole package"
        except (_Absent, FetchError):
            pass  # the next source may do
    asked = [f"{mirror.rstrip('/')}/{quote(spec.file)}"] if is_address and spec.file else []
    asked += [spec.url] if spec.url else []
    problem = "no source is known"
    for url in asked:
        try:
            answer = requests.head(url, timeout=_QUICK_S, allow_redirects=True)
        except requests.RequestException as error:
            problem = connection_problem(error)
            continue
        if answer.status_code == 200:
            return True, urlparse(url).hostname or url
        problem = f"{urlparse(url).hostname} answered {answer.status_code}"
    if _drive_id(spec):
        if util.find_spec("gdown") is not None:
            return True, "Google Drive, not checked"
        problem += "; Google Drive needs the package gdown"
    return False, problem
