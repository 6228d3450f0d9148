"""The supervisor with real child processes: exit codes, signals, the terminal, set-up, and a killed supervisor."""

from __future__ import annotations

import os
import pty
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipelines.pod.conftest import POLITE, STUBBORN, Pod, gone, wait_for

SETUP = """#!/bin/bash
echo "$@" >>setup.log
env >setup.environment
mkdir -p "$RECPOD_VENV/bin"
ln -sf {python} "$RECPOD_VENV/bin/python"
{more}
"""


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=30)
    return process.returncode, err


@pytest.mark.parametrize("code", [0, 1, 2, 3, 75])
def test_training_s_exit_code_is_the_supervisor_s(pod: Pod, code: int) -> None:
    done = pod.run(training=f"print('out'); print('err', file=sys.stderr); sys.exit({code})")
    assert (done.returncode, done.stdout, done.stderr) == (code, "out\n", "err\n")


def test_training_gets_its_arguments_as_they_stood(pod: Pod) -> None:
    given = ("--test-ml1m", "--set", "training.epochs=1", "--max-hours=2", "--set", "a=b c", "--debug")
    assert pod.run(*given, "--idle-minutes", "3", "--webhook=http://127.0.0.1:9/x").returncode == 0
    expected = ["runbook", "--test-ml1m", "--set", "training.epochs=1", "--max-hours", "2", "--set", "a=b c", "--debug"]
    assert pod.seen()["arguments"] == expected


def test_without_the_new_flags_nothing_is_written_or_said(pod: Pod) -> None:
    done = pod.run("--quickstart")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in pod.work.iterdir()] == ["seen.json"]
    assert "RECPOD_RENT_SECONDS" not in pod.seen()["environment"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_training_once(pod: Pod, number: signal.Signals) -> None:
    training = POLITE.replace("(signal.SIGTERM, signal.SIGINT)", "(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)")
    process = pod.start(training=training)
    wait_for(pod.work / "ready")
    process.send_signal(number)
    assert finish(process) == (75, "")
    assert (pod.work / "told").read_text() == str(int(number))


def test_a_second_signal_goes_through_as_well(pod: Pod) -> None:
    process = pod.start(training=POLITE.replace("while not told", "while len(told) < 2"))
    wait_for(pod.work / "ready")
    process.send_signal(signal.SIGINT)
    wait_for(pod.work / "told")
    process.send_signal(signal.SIGINT)
    assert finish(process) == (75, "")
    assert (pod.work / "told").read_text() == "2 2"


def test_a_signal_before_training_can_answer_it_is_a_stop(pod: Pod) -> None:
    process = pod.start(training="pathlib.Path('ready').touch(); time.sleep(30)")  # no handler: as while it imports
    wait_for(pod.work / "ready")
    process.send_signal(signal.SIGTERM)
    assert finish(process) == (75, "")


def test_nohup_stays_in_force(pod: Pod) -> None:
    command = ["nohup", sys.executable, "-m", "pipelines.pod", "--no-setup"]
    environment = pod.environment("pathlib.Path('ready').touch(); time.sleep(1)")
    process = subprocess.Popen(
        command, cwd=pod.work, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_for(pod.work / "ready")
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 0


def test_a_killed_supervisor_takes_training_with_it_saved(pod: Pod) -> None:
    process = pod.start(training=POLITE)
    wait_for(pod.work / "ready")
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert gone(pod.seen()["pid"])
    assert (pod.work / "told").read_text() == str(int(signal.SIGTERM))


def test_training_that_does_not_stop_is_killed_with_its_helpers_in_a_container_s_grace(pod: Pod) -> None:
    process = pod.start(training=STUBBORN, RECPOD_GRACE_SECONDS="1")
    wait_for(pod.work / "ready")
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert (code, said.count("\n")) == (75, 1)
    assert "did not end within 1 s of SIGTERM and was killed" in said
    assert gone(int((pod.work / "helper").read_text()))


def test_a_crash_says_what_it_was(pod: Pod) -> None:
    done = pod.run(training="os.kill(os.getpid(), signal.SIGKILL)")
    line = "error: the run was ended by SIGKILL (most often: out of memory); start it again to go on\n"
    assert (done.returncode, done.stderr) == (137, line)


def test_the_terminal_is_training_s(pod: Pod) -> None:
    """Its window size and colours are there, and Ctrl-C at the keyboard arrives once."""
    training = "print(sys.stdout.isatty(), sys.stdin.isatty(), os.get_terminal_size().columns, flush=True)\n" + POLITE
    pid, screen = pty.fork()
    if pid == 0:
        os.chdir(pod.work)
        os.execve(sys.executable, [sys.executable, "-m", "pipelines.pod", "--no-setup"], pod.environment(training))
    wait_for(pod.work / "ready")
    os.write(screen, b"\x03")
    _, status = os.waitpid(pid, 0)
    shown = b""
    while select.select([screen], [], [], 0.2)[0]:
        try:
            shown += os.read(screen, 1000)
        except OSError:  # the other side is closed
            break
    os.close(screen)
    assert b"True True 0" in shown or b"True True 80" in shown, shown
    assert os.waitstatus_to_exitcode(status) == 75
    assert (pod.work / "told").read_text() == str(int(signal.SIGINT))


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_ctrl_z_stands_still_and_goes_on(pod: Pod) -> None:
    process = pod.start(training=POLITE)
    wait_for(pod.work / "ready")
    child = pod.seen()["pid"]
    process.send_signal(signal.SIGTSTP)
    until = time.monotonic() + 10
    while (state(process.pid), state(child)) != ("T", "T"):
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    assert finish(process) == (75, "")


def with_setup(pod: Pod, more: str = "") -> dict[str, str]:
    (pod.root / "entrypoints" / "setup.sh").write_text(SETUP.format(python=sys.executable, more=more))
    return {"RECPOD_VENV": str(pod.work / "venv")}


def test_set_up_comes_first_and_sees_no_secret(pod: Pod) -> None:
    secrets = {"WANDB_API_KEY": "w" * 40, "RUNPOD_API_KEY": "r" * 40, "PIP_INDEX_URL": "file:///index"}
    process = pod.start("--quickstart", setup=True, **with_setup(pod), **secrets)
    assert finish(process) == (0, "")
    assert pod.seen()["environment"]["WANDB_API_KEY"] == "w" * 40
    environment = (pod.work / "setup.environment").read_text()
    assert "w" * 40 not in environment and "r" * 40 not in environment and "PIP_INDEX_URL" in environment
    assert "PIP_INDEX_URL" not in pod.seen()["environment"]


def test_a_failed_set_up_ends_it(pod: Pod) -> None:
    process = pod.start(setup=True, **with_setup(pod, "echo error: no wheel >&2; exit 2"))
    assert finish(process) == (2, "error: no wheel\n")
    assert not pod.started()


def test_set_up_is_stopped_with_its_children(pod: Pod) -> None:
    process = pod.start(setup=True, **with_setup(pod, "sleep 61 & echo $! >sleeper; touch ready; wait"))
    wait_for(pod.work / "ready")
    process.send_signal(signal.SIGTERM)
    assert finish(process) == (75, "")
    assert gone(int((pod.work / "sleeper").read_text()))
    assert not pod.started()


def test_several_processes_go_through_the_launcher(pod: Pod) -> None:
    launch = pod.root / "entrypoints" / "launch.sh"
    launch.write_text('#!/bin/bash\nprintf "%s\\n" "$@" "$RECPOD_PYTHON" "$RECPOD_VENV" >launched\nexit 3\n')
    launch.chmod(0o755)
    flags = (
        "--processes",
        "2",
        "--nodes",
        "2",
        "--node-rank",
        "1",
        "--rendezvous",
        "host:29400",
        "--max-restarts",
        "4",
    )
    assert pod.run("--test-ml1m", *flags).returncode == 3
    assert (pod.work / "launched").read_text().split() == [
        *flags,
        "--",
        "runbook",
        "--test-ml1m",
        sys.executable,
        str(Path(sys.executable).parent.parent),
    ]


def test_a_dry_run_watches_and_writes_nothing(pod: Pod) -> None:
    changes = {"RUNPOD_POD_ID": "pod1", "RUNPOD_API_KEY": "k" * 40, "AWS_SECRET_ACCESS_KEY": "x"}
    done = pod.run("--stop-pod-when-done", "--dry-run", "--processes", "2", **changes)
    assert done.returncode == 0, done.stderr
    assert "stopped at the end through the provider's API" in done.stderr
    assert "not passed on to training: AWS_SECRET_ACCESS_KEY, RUNPOD_API_KEY, RUNPOD_POD_ID" in done.stderr
    assert pod.seen()["arguments"] == ["runbook", "--dry-run"]
    assert [path.name for path in pod.work.iterdir()] == ["seen.json"]


def test_the_heartbeat_is_there_while_it_runs_and_gone_afterwards(pod: Pod) -> None:
    training = "print(os.path.exists(os.environ['RECPOD_HEARTBEAT']), os.environ['RECPOD_HEARTBEAT'])"
    there, path = pod.run(training=training, TMPDIR=str(pod.work)).stdout.split()
    assert there == "True"
    assert Path(path).parent.parent == pod.work
    assert not Path(path).exists()


def test_the_supervisor_costs_little_to_start(pod: Pod) -> None:
    def used(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=pod.work, env=pod.environment("pass"), capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    bare = min(used(sys.executable, "-m", "pipelines", "runbook") for _ in range(3))
    assert pod.started()
    watched = min(used(sys.executable, "-m", "pipelines.pod", "--no-setup") for _ in range(3))
    assert watched - bare < 0.2, f"{watched:.3f} s with, {bare:.3f} s without"


def test_an_unknown_flag_is_named_before_any_set_up(pod: Pod) -> None:
    process = pod.start("--quickstrt", setup=True, **with_setup(pod))
    assert finish(process) == (2, "error: unknown flag '--quickstrt'. did you mean '--quickstart'?\n")
    assert not (pod.work / "setup.log").exists()
