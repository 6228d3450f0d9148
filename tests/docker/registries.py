"""Two registries: Debian's, run for real, and one in small that asks for tokens and misbehaves on request."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass
class FakeRegistry:
    """What the small registry holds and how it behaves.

    Attributes:
        manifests: ``repository:tag`` to the manifest's bytes.
        wants_token: whether it answers 401 with a challenge until a token comes.
        token_answer: what its token server sends; None: a proper token.
        refuse: a status code to answer everything with.
        lie: whether its digest header is wrong.
        asked: the paths that were asked for, with the query.
        accepts: Accept headers of the manifest requests.
    """

    manifests: dict[str, bytes]
    wants_token: bool = True
    token_answer: dict | None = None
    refuse: int = 0
    lie: bool = False
    asked: list[str] = field(default_factory=list)
    accepts: list[str] = field(default_factory=list)
    host: str = ""

    def digest(self, name: str) -> str:
        return f"sha256:{hashlib.sha256(self.manifests[name]).hexdigest()}"


def index(*architectures: str) -> bytes:
    """An image index; the last entry is an attestation, as build tools add them."""
    entries = [
        {"digest": f"sha256:{name}", "platform": {"os": "linux", "architecture": name}} for name in architectures
    ]
    entries.append({"digest": "sha256:note", "platform": {"os": "unknown", "architecture": "unknown"}})
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()


@contextmanager
def fake_registry(registry: FakeRegistry) -> Iterator[FakeRegistry]:
    """``registry`` on a port of this machine; its address is in ``host``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            registry.asked.append(self.path)
            url = urlsplit(self.path)
            if registry.refuse:
                self.reply(registry.refuse, b"{}")
            elif url.path == "/token":
                answer = registry.token_answer
                scope = parse_qs(url.query)["scope"][0]
                self.reply(200, json.dumps({"token": f"for {scope}"} if answer is None else answer).encode())
            else:
                self.manifest(url.path)

        def manifest(self, path: str) -> None:
            repository, _, tag = path.removeprefix("/v2/").rpartition("/manifests/")
            scope = f"repository:{repository}:pull"
            if registry.wants_token and self.headers.get("Authorization") != f"Bearer for {scope}":
                where = f'Bearer realm="http://{registry.host}/token",service="fake",scope="{scope}"'
                self.reply(401, b"{}", {"WWW-Authenticate": where})
                return
            registry.accepts.append(self.headers["Accept"])
            name = f"{repository}:{tag}"
            if name not in registry.manifests:
                self.reply(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')
                return
            digest = "sha256:" + "0" * 64 if registry.lie else registry.digest(name)
            self.reply(200, registry.manifests[name], {"Docker-Content-Digest": digest, "Content-Type": INDEX})

        def reply(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet: pytest shows what matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    registry.host = f"127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def real_registry(program: str, folder: Path) -> Iterator[str]:
    """Debian's docker-registry with its files in ``folder``; yields ``127.0.0.1:PORT``."""
    host = f"127.0.0.1:{free_port()}"
    settings = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "store")}},
        "http": {"addr": host},
    }
    file = folder / "registry.yml"
    file.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    with (folder / "registry.log").open("w") as log:
        process = subprocess.Popen([program, "serve", str(file)], stdout=log, stderr=log)
    try:
        wait_for(f"http://{host}/v2/", folder / "registry.log")
        yield host
    finally:
        process.terminate()
        process.wait(timeout=20)


def wait_for(url: str, log: Path, seconds: float = 20) -> None:
    """Return once ``url`` answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError as error:
            if time.monotonic() > end:
                raise AssertionError(f"{url} does not answer:\n{log.read_text()[-1000:]}") from error
            time.sleep(0.1)
