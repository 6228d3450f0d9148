"""Whatever breaks in the supervisor, a pod that is to be stopped is stopped, and nothing runs on unwatched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import RunError
from pipelines.pod import heartbeat
from pipelines.pod.notices import Notifier
from pipelines.pod.provider import Provider, StopFailed, Way
from pipelines.pod.rental import Watch
from tests.pipelines.pod.conftest import POLITE, Pod, Server, wait_for

STOP = "--stop-pod-when-done"
ORDERED = ("POST", "/pods/pod1/stop")
OFTEN = ("--idle-minutes", "0.02")  # looks eight times a second
# What happens to the folder of the heartbeat, while training is busy.
BROKEN = {
    "removed": "shutil.rmtree(beats)",
    "a file": "shutil.rmtree(beats); beats.write_text('')",
}
BREAK = "import shutil\nbeats = pathlib.Path(os.environ['RECPOD_HEARTBEAT']).parent\n"


@pytest.fixture
def rented(server: Server) -> dict[str, str]:
    return {"RUNPOD_POD_ID": "pod1", "RUNPOD_API_KEY": "rpa_key", "RECPOD_RUNPOD_API": server.address}


@pytest.mark.parametrize("how", BROKEN)
def test_a_heartbeat_that_cannot_be_renewed_is_one_warning(
    pod: Pod, server: Server, rented: dict[str, str], how: str
) -> None:
    busy = "end = time.monotonic() + 1.5\nwhile time.monotonic() < end: sum(range(10000))"
    done = pod.run(STOP, *OFTEN, training=f"{BREAK}{BROKEN[how]}\n{busy}", **rented)
    assert done.returncode == 0
    assert done.stderr.count("warning: the idle watchdog failed (") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert ORDERED in server.calls()


@pytest.mark.parametrize("how", BROKEN)
def test_idleness_is_noticed_without_a_heartbeat(pod: Pod, server: Server, rented: dict[str, str], how: str) -> None:
    done = pod.run(STOP, *OFTEN, training=f"{BREAK}{BROKEN[how]}\ntime.sleep(60)", **rented)
    assert done.returncode == 75
    assert "stopped by the supervisor: idle: " in done.stderr
    assert ORDERED in server.calls()


def test_no_room_for_a_heartbeat_is_one_line(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    beats = pod.temporary / f"recpod-{os.getuid()}"
    beats.write_text("")
    done = pod.run(STOP, **rented)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        f"error: {beats}: no file can be put there (File exists). remove what is in the way, make room, or set TMPDIR "
        "to a folder that can be written."
    )
    assert ORDERED in server.calls()


def test_a_python_that_is_not_there_stops_the_pod(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    (pod.root / "entrypoints" / "setup.sh").write_text("#!/bin/bash\n")  # makes nothing
    changes = {**rented, "RECPOD_VENV": str(pod.work / "none"), "RECPOD_WEBHOOK": f"{server.address}/hook"}
    process = pod.start(STOP, setup=True, **changes)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" in said and "FileNotFoundError" in said
    assert said.splitlines()[-1] == "the pod is being stopped through the provider's API"
    assert ORDERED in server.calls()
    assert any("FAILED: the supervisor itself (FileNotFoundError" in text for text in server.messages())


@pytest.mark.parametrize("code", [129 + signal.SIGRTMAX, 200, 255])
def test_an_exit_code_beyond_every_signal_stops_the_pod(
    pod: Pod, server: Server, rented: dict[str, str], code: int
) -> None:
    done = pod.run(STOP, training=f"sys.exit({code})", **rented)
    assert done.returncode == code
    assert f"error: the run was ended by exit code {code}; start it again to go on\n" in done.stderr
    assert ORDERED in server.calls()


def test_an_ending_that_cannot_be_told_stops_the_pod(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    training = "os.makedirs('runs/x'); pathlib.Path('runs/x/metrics.json').write_text('{\"gate\": 3}')\nsys.exit(3)"
    done = pod.run(STOP, training=training, **rented)
    assert done.returncode == 3
    assert "warning: how it ended cannot be told in full" in done.stderr
    assert ORDERED in server.calls()


def test_a_child_is_ended_saved_when_its_supervisor_fails(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pipelines.pod.child import supervise\n"
        "def look():\n    if os.path.exists('ready'): raise OSError('broken')\n"
        "try: supervise([sys.executable, '-c', os.environ['TRAINING']], dict(os.environ), look=look, tick=0.05)\n"
        "except OSError as error: print(error, os.path.exists('/proc/' + open('pid').read()))"
    )
    training = f"import os, pathlib, signal, sys, time\npathlib.Path('pid').write_text(str(os.getpid()))\n{POLITE}"
    path = str(Path(heartbeat.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"TRAINING": training, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == "broken False\n", done.stderr  # before it ends itself, whose death would end the child too
    assert (tmp_path / "told").read_text() == str(int(signal.SIGTERM))


def test_a_run_that_ignores_a_lost_connection_is_still_watched(
    pod: Pod, server: Server, rented: dict[str, str]
) -> None:
    training = "signal.signal(signal.SIGHUP, signal.SIG_IGN); pathlib.Path('ready').touch(); time.sleep(60)"
    process = pod.start(STOP, *OFTEN, training=training, **rented, RECPOD_GRACE_SECONDS="50")
    wait_for(pod.work / "ready")
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75 and "stopped by the supervisor: idle" in said
    assert ORDERED in server.calls()


class Broken:
    """Looks that fail, and a ledger that counts."""

    def look(self) -> float:
        raise OSError("no")

    def cost(self) -> float:
        return 3.0

    def save(self) -> None:
        raise RunError("the disk is full")


def test_a_look_that_fails_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Broken()
    clock = iter(range(0, 999, 50)).__next__
    watch = Watch("job", tmp_path / "beat", Notifier(None, ""), broken, 2.0, 60.0, clock=clock)  # type: ignore[arg-type]
    watch._signs = broken  # type: ignore[assignment]
    for _ in range(3):
        reason = watch.look()
        assert reason is not None and reason.startswith("spend: 3.00 of a cap of 2")
    assert capsys.readouterr().err.splitlines() == [
        "warning: the idle watchdog failed (OSError: no); the run goes on",
        "warning: the ledger failed (the disk is full); the run goes on",
    ]


def test_a_way_that_breaks_does_not_keep_the_next_from_being_tried() -> None:
    def breaks() -> None:
        raise UnicodeError("key")

    tried: list[str] = []
    ways = (Way("first", breaks, breaks), Way("second", breaks, lambda: tried.append("second")))
    assert Provider(ways).stop() == "second" and tried == ["second"]
    with pytest.raises(StopFailed, match=r"^first: UnicodeError$"):  # what it says may hold the key
        Provider(ways[:1]).stop()


def test_words_that_nobody_hears_end_nothing() -> None:
    script = "from pipelines.pod.notices import say\nfor _ in range(3): say('word')\nraise SystemExit(7)"
    read, write = os.pipe()
    os.close(read)
    path = str(Path(heartbeat.__file__).parents[2])
    with os.fdopen(write, "w") as deaf:
        done = subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONPATH": path}, stderr=deaf, timeout=30, check=False
        )
    assert done.returncode == 7
