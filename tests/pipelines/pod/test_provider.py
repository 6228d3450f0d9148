"""The pod is stopped when it should be and only then, and who cannot stop it says so before or plainly afterwards."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.pod import stopping
from pipelines.pod.notices import Notifier
from pipelines.pod.provider import find_provider
from tests.pipelines.pod.conftest import POLITE, Pod, Server, wait_for

KEY = "rpa_" + "K3Y" * 12
STOP = "--stop-pod-when-done"
ASKED, ORDERED = ("GET", "/pods/pod1"), ("POST", "/pods/pod1/stop")
CALLS = [ASKED, ORDERED, ASKED]  # before the start, at the end, and whether it happened
LEFT = "the pod still runs and costs money"
TOOL = """#!/bin/sh
echo "$RUNPOD_API_KEY $*" >>{log}
case "$1" in get) exit {get};; esac
exit {stop}
"""


@pytest.fixture
def rented(server: Server) -> dict[str, str]:
    return {"RUNPOD_POD_ID": "pod1", "RUNPOD_API_KEY": KEY, "RECPOD_RUNPOD_API": server.address}


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_the_pod_is_stopped_at_every_end(pod: Pod, server: Server, rented: dict[str, str], code: int) -> None:
    done = pod.run(STOP, training=f"sys.exit({code})", **rented)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == "the pod is being stopped through the provider's API"
    assert server.calls() == CALLS
    assert {authorization for _, _, authorization, _ in server.asked} == {f"Bearer {KEY}"}
    assert KEY not in done.stderr and "RUNPOD_API_KEY" not in pod.seen()["environment"]


def test_not_without_the_flag(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    assert pod.run(training="sys.exit(1)", **rented).returncode == 1
    assert server.asked == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_not_after_a_signal_from_outside(
    pod: Pod, server: Server, rented: dict[str, str], number: signal.Signals
) -> None:
    process = pod.start(STOP, training=POLITE, **rented)
    wait_for(pod.work / "ready")
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == 75
    assert server.calls() == CALLS[:1]


def test_a_pod_that_is_left_running_is_told(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    process = pod.start(STOP, "--webhook", f"{server.address}/hook", training=POLITE, **rented)
    wait_for(pod.work / "ready")
    process.terminate()
    assert process.communicate(timeout=20)[1].endswith(f"\n{LEFT}: SIGTERM from outside was the end\n")
    assert server.messages()[-1].endswith(f"{LEFT}: SIGTERM from outside was the end")


def test_a_lost_connection_stops_it_saved(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    """SIGHUP, and a terminal that takes no more words."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pipelines.pod", "--no-setup", STOP]
    training = POLITE.replace("(signal.SIGTERM, signal.SIGINT)", "(signal.SIGTERM, signal.SIGHUP)")
    environment = pod.environment(training, **rented)
    process = subprocess.Popen(command, cwd=pod.work, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    wait_for(pod.work / "ready")
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 75
    assert (pod.work / "told").read_text() == str(int(signal.SIGHUP))
    assert server.calls() == CALLS


def test_a_connection_lost_before_training_stops_it(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    slow = pod.program("nvidia-smi", f"#!/bin/sh\ntouch {pod.work}/asked\nexec sleep 3\n")
    process = pod.start(STOP, PATH=slow, **{**rented, "RECPOD_DEVICE": "cuda"})
    wait_for(pod.work / "asked")
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, server.calls()) == (75, CALLS[1:]), said
    assert not pod.started()


def test_training_that_was_told_to_stop_behind_our_back_stops_it(
    pod: Pod, server: Server, rented: dict[str, str]
) -> None:
    assert pod.run(STOP, training="sys.exit(75)", **rented).returncode == 75
    assert server.calls() == CALLS


def test_a_pod_that_idles_is_stopped(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    done = pod.run(STOP, "--idle-minutes", "0.02", training="time.sleep(60)", **rented)
    assert done.returncode == 75
    assert server.calls() == CALLS


def test_a_mistake_stops_a_pod_where_nobody_sits(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    done = pod.run(STOP, "--model", "none", **rented)
    assert done.returncode == 2
    assert server.calls() == CALLS[1:]
    server.asked.clear()
    mistyped = pod.run(STOP, "--quickstrt", **rented)
    assert mistyped.returncode == 2
    assert server.calls() == CALLS[1:]


@pytest.mark.parametrize("flag", [f"{STOP}=1", "--stop-pod-when-don", "--stop_pod_when_done", "--Stop-Pod"])
def test_a_malformed_flag_still_means_it(pod: Pod, server: Server, rented: dict[str, str], flag: str) -> None:
    done = pod.run(flag, **rented)
    assert (done.returncode, server.calls()) == (2, CALLS[1:])
    assert not pod.started()
    server.asked.clear()
    assert pod.run(flag, "--dry-run", **rented).returncode == 2
    assert server.calls() == []


def test_at_a_terminal_a_mistake_does_not(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    process = pod.start(STOP, "--model", "none", stdin=theirs, **rented)
    process.communicate(timeout=20)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 2
    assert server.calls() == []


TOLD = "pathlib.Path(os.environ['RECPOD_HEARTBEAT']).touch()\n"  # as training does at its first event


@pytest.mark.parametrize(("training", "calls"), [("", CALLS[:1]), (TOLD, CALLS)])
def test_a_mistake_that_training_finds_is_one_too_until_it_has_trained(
    pod: Pod, server: Server, rented: dict[str, str], training: str, calls: list[tuple[str, str]]
) -> None:
    ours, theirs = pty.openpty()
    process = pod.start(STOP, stdin=theirs, training=f"time.sleep(0.1)\n{training}sys.exit(2)", **rented)
    _, said = process.communicate(timeout=20)
    os.close(ours)
    os.close(theirs)
    assert (process.returncode, server.calls()) == (2, calls)
    assert (f"{LEFT}: a mistake before training began, at a terminal\n" in said) == (not training)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "error: RUNPOD_API_KEY: the provider refuses the key (HTTP 401); the pod still runs"),
        (403, "error: RUNPOD_API_KEY: the provider refuses the key (HTTP 403); the pod still runs"),
        (404, "error: RUNPOD_API_KEY: the provider knows no such pod under this key; the pod"),
    ],
)
def test_a_wrong_key_is_refused_before_training(
    pod: Pod, server: Server, rented: dict[str, str], status: int, said: str
) -> None:
    server.status = lambda method, path: status
    done = pod.run(STOP, **rented)
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert not pod.started()
    assert KEY not in done.stderr
    assert "the pod still runs and costs money" in done.stderr and done.stderr.count("\n") == 1
    assert server.calls() == CALLS[:1]


def test_no_network_is_said_before_training(pod: Pod, rented: dict[str, str]) -> None:
    rented["RECPOD_RUNPOD_API"] = "http://127.0.0.1:9"
    done = pod.run(STOP, **rented)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {STOP}: the provider cannot be asked whether the pod can be stopped (it does not answer: Connection "
        f"refused); the pod still runs and costs money. check the network, or leave {STOP} away and stop the pod by "
        "hand.\n"
    )
    assert not pod.started()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"RUNPOD_POD_ID": ""},
            f"error: {STOP}: this is no RunPod pod: RUNPOD_POD_ID is not set. on another cloud set",
        ),
        ({"RUNPOD_API_KEY": ""}, f"error: {STOP}: nothing here can stop the pod. set RUNPOD_API_KEY (or"),
        ({"RUNPOD_POD_ID": "../x"}, "error: RUNPOD_POD_ID: not the name of a pod. leave it as the provider sets it."),
    ],
)
def test_no_way_to_stop_is_said_before_training(
    pod: Pod, rented: dict[str, str], changes: dict[str, str], said: str
) -> None:
    done = pod.run(STOP, **{**rented, **changes})
    assert done.returncode == 2
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert done.stderr.endswith(". The pod still runs and costs money.\n")
    assert not pod.started()


def test_an_api_that_fails_at_the_end_is_said_plainly(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    server.status = lambda method, path: 500 if method == "POST" and "stop" in path else 200
    done = pod.run(STOP, "--webhook", f"{server.address}/hook", training="sys.exit(3)", **rented)
    assert done.returncode == 3
    text = "THE POD COULD NOT BE STOPPED: IT STILL RUNS AND COSTS MONEY. Stop it by hand (the provider's API: HTTP 500)"
    assert done.stderr.splitlines()[-1] == f"error: {text}"
    assert server.calls() == [ASKED] + 3 * [ORDERED]
    assert server.messages()[-1].endswith(text)


def test_a_server_that_says_yes_and_does_nothing_is_found_out(
    server: Server, rented: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twenty seconds are shortened here, so the function is called itself."""
    monkeypatch.setattr(stopping, "other_sessions", list)
    server.stops = False
    provider = replace(find_provider(rented), pause=0.05, patience=0.3)
    stopping.stop_pod(provider, Notifier(None, ""))
    assert capsys.readouterr().err == (
        "error: THE POD MAY STILL RUN AND COST MONEY: the order to stop was taken, but the provider's API: it is still "
        "shown as running after 0.3 s. Look at the console\n"
    )
    assert server.calls()[:3] == [ORDERED, ASKED, ASKED]
    server.status = lambda method, path: 404 if method == "GET" else 200  # it is no more
    stopping.stop_pod(provider, Notifier(None, ""))
    assert capsys.readouterr().err == "the pod is being stopped through the provider's API\n"


def test_a_second_session_leaves_the_pod_to_the_first(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    first = pod.start(STOP, training=POLITE.replace("while not told", "while not os.path.exists('end')"), **rented)
    wait_for(pod.work / "ready")
    left = f"{LEFT}: another session still uses this pod; it is left running\n"
    mistake = pod.run(STOP, "--quickstrt", **rented)
    assert (mistake.returncode, mistake.stderr.splitlines(keepends=True)[-1]) == (2, left)
    locked = pod.run(STOP, training="sys.exit(2)", **rented)
    assert (locked.returncode, locked.stderr.splitlines(keepends=True)[-1]) == (2, left)
    assert ORDERED not in server.calls()
    (pod.work / "end").touch()
    assert first.communicate(timeout=20)[1].endswith("\nthe pod is being stopped through the provider's API\n")
    assert server.calls().count(ORDERED) == 1


def test_a_dead_session_whose_number_was_given_again_keeps_nothing_alive(
    pod: Pod, server: Server, rented: dict[str, str]
) -> None:
    beats = pod.temporary / f"recpod-{os.getuid()}"
    beats.mkdir()
    (beats / f"heartbeat-{os.getpid()}").write_text("1")  # this process did not begin at the machine's first tick
    assert pod.run(STOP, **rented).returncode == 0
    assert server.calls() == CALLS


def test_runpodctl_comes_first(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    log = pod.work / "calls"
    path = pod.program("runpodctl", TOOL.format(log=log, get=0, stop=0))
    done = pod.run(STOP, PATH=path, **rented)
    assert done.stderr.splitlines()[-1] == "the pod is being stopped through runpodctl"
    assert log.read_text().splitlines() == [f"{KEY} get pod pod1", f"{KEY} stop pod pod1"]
    assert server.calls() == []


def test_the_api_stands_in_for_runpodctl(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    path = pod.program("runpodctl", TOOL.format(log=pod.work / "calls", get=1, stop=1))
    done = pod.run(STOP, PATH=path, **rented)
    assert done.stderr.splitlines()[-1] == "the pod is being stopped through the provider's API"
    assert server.calls() == CALLS


def test_another_cloud_s_command(pod: Pod) -> None:
    done = pod.run(STOP, RECPOD_STOP_COMMAND="echo stopped >stopped")
    assert done.returncode == 0
    assert (pod.work / "stopped").read_text() == "stopped\n"
    failed = pod.run(STOP, RECPOD_STOP_COMMAND="exit 4")
    assert failed.returncode == 0
    assert "COULD NOT BE STOPPED" in failed.stderr and "exit code 4" in failed.stderr


def test_a_key_from_a_file(pod: Pod, server: Server, rented: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    changes = {**rented, "RUNPOD_API_KEY": "", "RUNPOD_API_KEY_FILE": str(tmp_path / "key")}
    assert pod.run(STOP, **changes).returncode == 0
    assert server.calls() == CALLS
