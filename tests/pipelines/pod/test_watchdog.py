"""Idle is when nothing moves: neither processor nor GPU, nor the session's own heartbeat."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.pod import heartbeat
from pipelines.pod.watchdog import GpuProbe, SignsOfLife, family, process_table, processor_seconds
from tests.pipelines.pod.conftest import STUBBORN, Pod, Server, gone, wait_for

IDLE = ("--idle-minutes", "0.02")  # 1.2 s
PATIENT = ("--idle-minutes", "0.06")  # 3.6 s, which no busy machine takes to let a process of ours have its turn
MOVING = {
    "processor": "while time.monotonic() < end: sum(range(10000))",
    "a child's processor": (
        "import subprocess\n"
        "subprocess.run([sys.executable, '-c', 'import time\\nwhile time.monotonic() < %f: sum(range(9999))' % end], "
        "start_new_session=True)"
    ),
    "heartbeat": "while time.monotonic() < end: pathlib.Path(os.environ['RECPOD_HEARTBEAT']).touch(); time.sleep(0.1)",
}


def test_a_run_in_which_nothing_moves_is_stopped(pod: Pod, server: Server) -> None:
    (pod.work / "runs" / "x").mkdir(parents=True)
    process = pod.start(*IDLE, "--webhook", f"{server.address}/hook", training="time.sleep(60)")
    begin = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75
    assert time.monotonic() - begin > 1.2
    assert said.startswith("stopped by the supervisor: idle: nothing has moved for 0.02")
    assert any("was stopped: idle" in text for text in server.messages())


@pytest.mark.parametrize("sign", MOVING)
def test_every_sign_of_life_counts(pod: Pod, sign: str) -> None:
    (pod.work / "runs" / "x").mkdir(parents=True)
    done = pod.run(*PATIENT, training=f"end = time.monotonic() + 6\n{MOVING[sign]}")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_gpu_at_work_counts(pod: Pod) -> None:
    busy, idle = (pod.gpu(driver="570.86.15", busy=value) for value in (0, 0))
    assert pod.run(*IDLE, training="time.sleep(40)", PATH=idle).returncode == 75
    busy = pod.gpu(driver="570.86.15", busy=7)
    assert pod.run(*PATIENT, training="time.sleep(6)", PATH=busy).returncode == 0


def test_a_tracker_s_files_do_not_count(pod: Pod) -> None:
    """They grow while training hangs."""
    (pod.work / "runs" / "x" / "wandb").mkdir(parents=True)
    training = "while True: pathlib.Path('runs/x/wandb/log').touch(); time.sleep(0.2)"
    assert pod.run(*IDLE, training=training).returncode == 75


def test_other_runs_on_the_volume_do_not_count(pod: Pod) -> None:
    """Another pod trains there."""
    (pod.work / "runs" / "other" / "checkpoints").mkdir(parents=True)
    process = pod.start(*IDLE, training="time.sleep(40)")
    number = 0
    while process.poll() is None:
        number += 1
        (pod.work / "runs" / "other" / "events.jsonl").touch()
        (pod.work / "runs" / "other" / "checkpoints" / f"step-{number}").mkdir()
        time.sleep(0.1)
    process.communicate()
    assert process.returncode == 75


def test_set_up_that_hangs_is_stopped(pod: Pod) -> None:
    (pod.root / "entrypoints" / "setup.sh").write_text("#!/bin/bash\nsleep 62\n")
    process = pod.start(*IDLE, setup=True, RECPOD_VENV=str(pod.work / "venv"))
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert not pod.started()


def test_zero_switches_it_off(pod: Pod) -> None:
    assert pod.run("--idle-minutes", "0", training="time.sleep(2)").returncode == 0


def test_who_does_not_stop_is_killed_with_helpers_in_other_sessions(tmp_path: Path) -> None:
    """The minute between SIGTERM and the kill is shortened here, so the function is called itself."""
    script = (
        "import os, sys; from pipelines.pod.child import supervise\n"
        "ending = supervise([sys.executable, '-c', os.environ['TRAINING']], dict(os.environ), "
        "look=lambda: 'idle' if os.path.exists('ready') else None, tick=0.05, patience=0.5)\n"
        "print(ending.code, ending.stopped_for, ending.killed)"
    )
    training = f"import os, pathlib, signal, sys, time\n{STUBBORN}"
    path = str(Path(heartbeat.__file__).parents[2])
    command, environment = [sys.executable, "-c", script], {"TRAINING": training, "PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == "75 idle True\n", done.stderr
    assert gone(int((tmp_path / "helper").read_text()))


def test_the_family_is_found_across_sessions() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], start_new_session=True)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    until = time.monotonic() + 20
    while len(family(process.pid, process_table())) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert processor_seconds(process.pid) > 0
    process.communicate(b"\n", timeout=20)
    assert family(process.pid, process_table()) == []


def test_the_heartbeat_s_age_is_the_time_without_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "folder", lambda: tmp_path / "beats")
    pipe = subprocess.PIPE
    sleeper = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=pipe, stdout=pipe)
    assert sleeper.stdout is not None and sleeper.stdout.readline()  # its own start is no idleness
    time.sleep(0.1)
    with heartbeat.heartbeat() as beat:
        signs = SignsOfLife(sleeper.pid, beat)
        born = beat.stat().st_mtime
        time.sleep(0.3)
        assert 0.3 <= signs.look() < 60
        assert beat.stat().st_mtime == born
        assert heartbeat.stale(born + 61, 60) and not heartbeat.stale(born + 59, 60)
        assert not signs.told
        beat.touch()  # as an event of training does
        assert signs.look() == 0 and signs.told
        assert beat.stat().st_mtime > born
        (tmp_path / "beats" / "heartbeat-999999999").touch()  # of a session that was killed
        assert len(heartbeat.ages(time.time())) == 1
    assert heartbeat.ages(time.time()) == {}
    (tmp_path / "beats" / "heartbeat-999999998").touch()
    with heartbeat.heartbeat() as beat:
        assert list(beat.parent.iterdir()) == [beat]
    sleeper.communicate(b"\n")


def test_a_gpu_question_is_never_waited_for(tmp_path: Path) -> None:
    slow = tmp_path / "smi"
    slow.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nsleep 30\n")
    slow.chmod(0o755)
    probe = GpuProbe([str(slow)])
    begin = time.monotonic()
    assert not probe.busy() and not probe.busy()
    assert time.monotonic() - begin < 20  # it sleeps 30
    probe.close()
    wait = tmp_path / "answer"
    wait.write_text(f"#!/bin/sh\necho 0; echo 93; touch {tmp_path}/answered\n")
    wait.chmod(0o755)
    probe = GpuProbe([str(wait)])
    assert not probe.busy()
    wait_for(tmp_path / "answered")
    until = time.monotonic() + 20
    while not probe.busy():  # the script has answered; it may not have ended yet
        assert time.monotonic() < until
        time.sleep(0.02)
    probe.close()
