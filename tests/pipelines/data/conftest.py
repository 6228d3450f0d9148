"""A small sequence of events for every data test, and a file server that misbehaves on demand."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.data.prepare import PrepareOptions, prepare
from pipelines.data.store import SequenceStore


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., SequenceStore]:
    """Build a store from (user, item, time) rows."""

    def from_rows(rows: list[tuple[Any, Any, int]], **options: Any) -> SequenceStore:
        table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
        return prepare(table, tmp_path / "store", source={"name": "rows"}, options=PrepareOptions(**options))

    return from_rows


@dataclass
class Served:
    """How one path is answered."""

    body: bytes
    content_type: str = "application/octet-stream"
    etag: str | None = '"one"'
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes sent before the connection drops, one entry a request
    status: int = 200


class FileServer:
    """A real HTTP server on this machine; ``requests`` collects (path, Range header)."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers.get("Range")))
                outer.answer(self, with_body=True)

            def do_HEAD(self) -> None:
                outer.answer(self, with_body=False)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler, with_body: bool) -> None:
        """Answer one request as the file's :class:`Served` says."""
        served = self.files.get(handler.path)
        if served is None:
            handler.send_error(404)
            return
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "")
        if asked and served.ranges and handler.headers.get("If-Range") == served.etag:
            start = int(asked.group(1))
        handler.send_response(206 if start else served.status)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(served.body) - 1}/{len(served.body)}")
        handler.send_header("Content-Type", served.content_type)
        handler.send_header("Content-Length", str(len(served.body) - start))
        if served.etag:
            handler.send_header("ETag", served.etag)
        handler.end_headers()
        if not with_body:
            return
        body = served.body[start:]
        if served.cut_after:
            body = body[: served.cut_after.pop(0)]
            handler.close_connection = True
        handler.wfile.write(body)


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A running :class:`FileServer`."""
    running = FileServer()
    thread = threading.Thread(target=running.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield running
    running.http.shutdown()
    running.http.server_close()
    thread.join()


@pytest.fixture
def no_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No mirror, no drive id, no proxy between the test and its server."""
    for name in ("RECPOD_MIRROR", "RECPOD_GDRIVE_ID", "RECPOD_DATA", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
