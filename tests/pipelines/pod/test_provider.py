"""The pod is stopped when it should be and only then, and who cannot stop it says so before or plainly afterwards."""

from __future__ import annotations

import os
import pty
import signal
from pathlib import Path

import pytest

from tests.pipelines.pod.conftest import POLITE, Pod, Server, wait_for

KEY = "rpa_" + "K3Y" * 12
STOP = "--stop-pod-when-done"
CALLS = [("GET", "/pods/pod1"), ("POST", "/pods/pod1/stop")]
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


def test_nor_when_training_itself_was_told_to_stop(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    assert pod.run(STOP, training="sys.exit(75)", **rented).returncode == 75
    assert server.calls() == CALLS[:1]


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


def test_at_a_terminal_a_mistake_does_not(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    process = pod.start(STOP, "--model", "none", stdin=theirs, **rented)
    process.communicate(timeout=20)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 2
    assert server.calls() == []


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
        ({"RUNPOD_POD_ID": "../x"}, "error: RUNPOD_POD_ID: not the name of a pod. leave it as the provider sets it.\n"),
    ],
)
def test_no_way_to_stop_is_said_before_training(
    pod: Pod, rented: dict[str, str], changes: dict[str, str], said: str
) -> None:
    done = pod.run(STOP, **{**rented, **changes})
    assert done.returncode == 2
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert not pod.started()


def test_an_api_that_fails_at_the_end_is_said_plainly(pod: Pod, server: Server, rented: dict[str, str]) -> None:
    server.status = lambda method, path: 500 if method == "POST" and "stop" in path else 200
    done = pod.run(STOP, "--webhook", f"{server.address}/hook", training="sys.exit(3)", **rented)
    assert done.returncode == 3
    text = "THE POD COULD NOT BE STOPPED: IT STILL RUNS AND COSTS MONEY. Stop it by hand (the provider's API: HTTP 500)"
    assert done.stderr.splitlines()[-1] == f"error: {text}"
    assert server.calls() == CALLS[:1] + 3 * CALLS[1:]
    assert server.messages()[-1].endswith(text)


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
