"""One file over HTTP: resumable, with progress, checked, and moved into place whole.

Bytes gather in ``NAME.part``; beside it ``NAME.part.json`` holds the address and the server's validator (ETag or
Last-Modified), so that a later call continues this very file or starts anew. What turns out wrong is deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pipelines.errors import FetchError

_CHUNK = 1 << 16  # what a broken connection can lose
_CONNECT_S, _READ_S = 10, 60
_RETRIES = 4  # in a row without a byte of progress


@dataclass(frozen=True)
class Expected:
    """What is known about a file before it comes; None for what is not."""

    sha256: str | None = None
    md5: str | None = None
    size: int | None = None

    @property
    def verifiable(self) -> bool:
        """Whether there is a checksum to hold it against."""
        return bool(self.sha256 or self.md5)


class _Cut(Exception):
    """The connection ended early; what came is worth keeping if the server can resume."""


def download(url: str, target: Path, expected: Expected, *, progress: bool = True) -> str:
    """Bring ``url`` to ``target``; returns its SHA-256.

    Raises:
        FetchError: no connection, an error status, an HTML page, a short file, a wrong checksum, a full disk. Nothing
            stays behind, except the ``.part`` of a connection that broke and can be resumed.
    """
    part = _part_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _transfer_with_retries(url, part, progress)
        return finish(part, target, expected)
    except OSError as error:
        if isinstance(error, requests.RequestException):
            raise FetchError(connection_problem(error)) from None
        discard(part)
        raise FetchError(f"cannot be written to {target.parent} ({error.strerror or error})") from None


def finish(part: Path, target: Path, expected: Expected) -> str:
    """Check the complete ``part`` and move it to ``target``; gives its SHA-256, or deletes it and raises FetchError."""
    try:
        sha256 = check(part, expected, is_zip=target.suffix == ".zip")
    except FetchError:
        discard(part)
        raise
    os.replace(part, target)
    discard(part)
    return sha256


def check(path: Path, expected: Expected, *, is_zip: bool = False) -> str:
    """The SHA-256 of ``path``; FetchError when it is an HTML page, short, of a wrong checksum, or not a zip."""
    with open(path, "rb") as stream:
        head = stream.read(512)
    if looks_like_html(head):
        raise FetchError("brought an HTML page instead of the file")
    size = path.stat().st_size
    if expected.size is not None and size != expected.size:
        word = "short" if size < expected.size else "long"
        raise FetchError(f"{word} file: {size} bytes, {expected.size} expected")
    sha256, md5 = digests(path)
    for kind, found, wanted in (("SHA-256", sha256, expected.sha256), ("MD5", md5, expected.md5)):
        if wanted and found != wanted.lower():
            raise FetchError(f"wrong checksum: {kind} {found}, expected {wanted}")
    if is_zip and not zipfile.is_zipfile(path):
        raise FetchError("brought something that is not a zip archive")
    return sha256


def digests(path: Path) -> tuple[str, str]:
    """SHA-256 and MD5 of a file, in one pass."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), md5.hexdigest()


def looks_like_html(head: bytes) -> bool:
    """Whether a file begins as a web page does."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html", b"<head"))


def discard(part: Path) -> None:
    """Delete a partial download and its side file."""
    for path in (part, _side_of(part)):
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def connection_problem(error: requests.RequestException) -> str:
    """A connection error in a few words, without the nested representation that requests gives."""
    url = error.request.url if error.request is not None else None
    place = f" to {urlparse(str(url)).hostname}" if url else ""
    if isinstance(error, requests.exceptions.SSLError):
        return f"no secure connection{place} (certificate not accepted)"
    if isinstance(error, requests.exceptions.ProxyError):
        return f"no connection{place} (the proxy refused)"
    if isinstance(error, requests.exceptions.Timeout):
        return f"no answer in time{place.replace(' to', ' from')}"
    if isinstance(error, requests.exceptions.ConnectionError):
        return f"no connection{place}"
    return f"request failed{place} ({type(error).__name__})"


def _part_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _side_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _transfer_with_retries(url: str, part: Path, progress: bool) -> None:
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _transfer(url, part, progress)
        except _Cut as cut:
            after = part.stat().st_size if part.exists() else 0
            failures = 0 if after > before else failures + 1
            if failures >= _RETRIES or not after:
                kept = "; run again to resume" if after else ""
                raise FetchError(f"{cut}{kept}") from None
            time.sleep(0.2 * 2**failures)


def _transfer(url: str, part: Path, progress: bool) -> None:
    """Bring the bytes that ``part`` lacks; raises _Cut when the connection ends before the file does."""
    known = _resume_point(url, part)
    have = part.stat().st_size if known else 0
    headers = {"Accept-Encoding": "identity"}  # a compressed transfer could not be resumed by byte
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": known["validator"]}
    with requests.get(url, headers=headers, stream=True, timeout=(_CONNECT_S, _READ_S)) as response:
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if response.status_code == 416 or (response.status_code == 206 and not resumed):
            discard(part)
            raise FetchError("the server cannot continue the partial download, which has been removed; run again")
        if response.status_code not in (200, 206):
            discard(part)
            raise FetchError(f"the server answered {response.status_code} {response.reason}".rstrip())
        if "html" in response.headers.get("Content-Type", ""):
            discard(part)
            raise FetchError("brought an HTML page instead of the file")
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        resumable = bool(validator) and not str(validator).startswith("W/")
        _side_of(part).write_text(
            json.dumps({"url": url, "validator": validator if resumable else None, "total": total})
        )
        try:
            _receive(response, part, have, total, progress)
        except (requests.RequestException, _Cut):
            came = part.stat().st_size if part.exists() else 0
            if not resumable:
                discard(part)
            raise _Cut(f"short file: the connection ended after {came} of {total or 'unknown'} bytes") from None


def _resume_point(url: str, part: Path) -> dict[str, Any]:
    """The side file's content if ``part`` is a resumable piece of ``url``; else {} and no ``part``."""
    try:
        known = json.loads(_side_of(part).read_text())
        if part.exists() and known["url"] == url and known["validator"]:
            return dict(known)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no side file, or a damaged one: start anew
    discard(part)
    return {}


def _receive(response: requests.Response, part: Path, have: int, total: int | None, progress: bool) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=Console(stderr=True), disable=not progress) as bar,
        open(part, "ab" if have else "wb") as stream,
    ):
        task = bar.add_task(part.stem, total=total, completed=have)
        for chunk in response.iter_content(_CHUNK):
            stream.write(chunk)
            bar.advance(task, len(chunk))
    if total is not None and part.stat().st_size < total:
        raise _Cut
