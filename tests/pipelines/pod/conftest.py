"""A checkout in small whose training is a script of the test's, and a web server that remembers what it was asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# Stands for training: tells what it was given, then runs the test's lines.
TRAINING = """
import json, os, pathlib, signal, sys, time
seen = {"arguments": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()}
pathlib.Path("seen.new").write_text(json.dumps(seen))
os.replace("seen.new", "seen.json")
exec(os.environ["RECPOD_TEST_TRAINING"])
"""
# Training that counts signals and leaves as the real one does.
POLITE = """
told = []
def stop(number, frame):
    told.append(number)
    pathlib.Path("told").write_text(" ".join(str(int(one)) for one in told))
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop)
pathlib.Path("ready").touch()
while not told:
    time.sleep(0.02)
time.sleep(0.2)
sys.exit(75)
"""
STUBBORN = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
import subprocess
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
pathlib.Path("helper").write_text(str(helper.pid))
pathlib.Path("ready").touch()
time.sleep(60)
"""
SMI = """#!/bin/sh
case "$*" in
  *utilization.gpu*) echo {busy} ;;
  *) echo "{name}, {memory}, {capability}, {driver}" ;;
esac
"""


@dataclass
class Pod:
    """The small checkout, a working folder, and how to start the supervisor there."""

    root: Path
    work: Path

    @property
    def temporary(self) -> Path:
        return self.work.parent / "tmp"

    def environment(self, training: str, **changes: str) -> dict[str, str]:
        """A bare environment; a value of "" takes the variable away."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        fixed = {"HOME": str(self.work), "PYTHONPATH": str(self.root), "RECPOD_TEST_TRAINING": training}
        fixed["TMPDIR"] = str(self.temporary)  # a pod of its own: sessions know each other by a folder in it
        here = {"RECPOD_SECRETS": str(self.work / "secrets"), "RECPOD_DEVICE": "cpu"}
        return {name: value for name, value in {**kept, **fixed, **here, **changes}.items() if value}

    def start(
        self, *flags: str, training: str = "pass", setup: bool = False, stdin: int = subprocess.DEVNULL, **changes: str
    ) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipelines.pod", *([] if setup else ["--no-setup"]), *flags]
        pipe, environment = subprocess.PIPE, self.environment(training, **changes)
        return subprocess.Popen(
            command, cwd=self.work, env=environment, stdin=stdin, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, *flags: str, training: str = "pass", **changes: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*flags, training=training, **changes)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(flags, process.returncode, out, err)

    def seen(self) -> dict:
        """What training was given; fails where it was not started."""
        return json.loads((self.work / "seen.json").read_text())

    def started(self) -> bool:
        return (self.work / "seen.json").exists()

    def program(self, name: str, text: str) -> str:
        """An executable in a folder of its own; PATH with that folder in front."""
        folder = self.work.parent / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
        return f"{folder}:{os.environ['PATH']}"

    def gpu(self, *, driver: str, name: str = "NVIDIA A40", capability: str = "8.6", busy: int = 0) -> str:
        """PATH with an nvidia-smi that shows one GPU."""
        text = SMI.format(driver=driver, name=name, capability=capability, memory=46068, busy=busy)
        return self.program("nvidia-smi", text)


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    root, work = tmp_path / "checkout", tmp_path / "work"
    work.mkdir()
    (tmp_path / "tmp").mkdir()
    (root / "docker").mkdir(parents=True)
    shutil.copytree(ROOT / "entrypoints", root / "entrypoints")
    shutil.copytree(ROOT / "configs", root / "configs")
    shutil.copytree(ROOT / "pipelines" / "pod", root / "pipelines" / "pod")
    for name in ("pipelines/__init__.py", "pipelines/errors.py", "pipelines/machine.py"):
        shutil.copy(ROOT / name, root / name)
    for name in ("docker/versions.env", "docker/gpu-matrix.json"):
        shutil.copy(ROOT / name, root / name)
    (root / "pipelines" / "__main__.py").write_text(TRAINING)
    (root / "pyproject.toml").write_text("[project]\ndependencies = []\n")
    return Pod(root, work)


def wait_for(path: Path, seconds: float = 20.0) -> Path:
    """``path`` once it is there."""
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.01)
    return path


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether the process ends within ``seconds``."""
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


@dataclass
class Server:
    """What was asked, and how it answers."""

    address: str
    status: Callable[[str, str], int] = lambda method, path: 200
    stops: bool = True  # a pod that was told to stop is shown as stopped
    asked: list[tuple[str, str, str, str]] = field(default_factory=list)  # method, path, Authorization, body

    def messages(self, key: str = "content") -> list[str]:
        """The texts of all notices."""
        return [json.loads(body)[key] for method, path, _, body in self.asked if path.startswith("/hook")]

    def calls(self) -> list[tuple[str, str]]:
        """Method and path of everything that is no notice."""
        return [(method, path) for method, path, _, _ in self.asked if not path.startswith("/hook")]

    def shown(self) -> bytes:
        """The pod as the provider shows it."""
        over = self.stops and any(method == "POST" and path.endswith("/stop") for method, path in self.calls())
        return json.dumps({"id": "pod1", "desiredStatus": "EXITED" if over else "RUNNING"}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            record.asked.append((self.command, self.path, self.headers.get("Authorization", ""), body))
            self.send_response(record.status(self.command, self.path))
            self.end_headers()
            self.wfile.write(record.shown())

        do_GET = do_POST = answer

        def log_message(self, *arguments: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    record = Server(f"http://127.0.0.1:{http.server_address[1]}")
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield record
    http.shutdown()
    http.server_close()
    thread.join()
