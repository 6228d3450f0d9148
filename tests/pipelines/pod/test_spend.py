"""The ledger counts a rental from the pod's start, once, over all sessions; the cap holds."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ConfigError, RunError
from pipelines.pod import spend
from pipelines.pod.spend import Ledger, open_ledger, pod_start
from tests.pipelines.pod.conftest import Pod, Server, wait_for


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def begin(runs: Path, clock: Clock, job: str = "ml1m", *, pod: bool = True) -> Ledger:
    return open_ledger(runs, job, price_per_hour=3600.0, contained=pod, clock=clock)


@pytest.fixture
def rented(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The pod's name and start, for the test to change."""
    pod = {"pod-a": 900.0}
    monkeypatch.setattr(spend, "pod_start", lambda now: next(iter(pod.items())))
    return pod


def test_the_pod_s_time_before_the_session_counts(tmp_path: Path, clock: Clock, rented: dict[str, float]) -> None:
    ledger = begin(tmp_path, clock)
    assert ledger.seconds() == 100
    clock.now += 20
    assert (ledger.seconds(), ledger.cost()) == (120, 120)


def test_sessions_add_up_and_nothing_counts_twice(tmp_path: Path, clock: Clock, rented: dict[str, float]) -> None:
    first = begin(tmp_path, clock)
    clock.now += 50
    first.save()  # the session ends at 1050: 150 s
    clock.now += 30
    other = begin(tmp_path, clock, "ml20m")  # the same pod, idle for 30 s, then 10 s of another job
    clock.now += 10
    other.save()
    assert other.seconds() == 40
    rented.clear()
    rented["pod-b"] = 5000.0
    clock.now = 5005.0
    again = begin(tmp_path, clock)
    assert again.seconds() == 150 + 5
    entries = json.loads((tmp_path / ".pod" / "spend.json").read_text())["sessions"]
    assert [entry["job"] for entry in entries] == ["ml1m", "ml20m", "ml1m"]


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 50), st.integers(0, 50)), max_size=6))
def test_all_jobs_of_a_pod_pay_for_it_exactly(
    steps: list[tuple[str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    runs, clock = tmp_path_factory.mktemp("runs"), Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spend, "pod_start", lambda now: ("pod", 900.0))
        paid = {"a": 0.0, "b": 0.0}
        for job, waited, worked in steps:
            clock.now += waited
            ledger = begin(runs, clock, job)
            clock.now += worked
            ledger.save()
            paid[job] = ledger.seconds()
    assert sum(paid.values()) == (clock.now - 900 if steps else 0)


def test_a_session_that_was_killed_keeps_what_it_had_saved(
    tmp_path: Path, clock: Clock, rented: dict[str, float]
) -> None:
    killed = begin(tmp_path, clock)
    clock.now += 30
    killed.save()
    clock.now += 25  # killed in here
    rented.clear()
    rented["pod-b"] = clock.now
    assert begin(tmp_path, clock).seconds() == 130


def test_a_run_begun_anew_is_still_paid_for(pod: Pod) -> None:
    """As a cloud's automatic restart would do it: the same flags every time, without end."""
    flags = ("--resume", "never", "--max-cost", "1", "--price-per-hour", "3600")
    first = pod.run(*flags, training="time.sleep(1.05)")
    assert first.returncode == 0, first.stderr
    (pod.work / "seen.json").unlink()
    again = pod.run(*flags)
    assert again.returncode == 2 and re.search(r"'quickstart' has cost [1-9]", again.stderr)
    assert not pod.started()
    (pod.work / "runs" / ".pod" / "spend.json").unlink()  # what the message says
    assert pod.run(*flags).returncode == 0
    assert pod.started()


def test_what_an_older_ledger_set_aside_counts_again(tmp_path: Path, clock: Clock, rented: dict[str, float]) -> None:
    begin(tmp_path, clock).save()
    path = tmp_path / ".pod" / "spend.json"
    content = json.loads(path.read_text())
    content["sessions"][0]["set_aside"] = True
    path.write_text(json.dumps(content))
    assert begin(tmp_path, clock).seconds() == 100


def test_only_the_first_of_several_nodes_counts(pod: Pod) -> None:
    """The price is that of all together, and they may share the volume."""
    (pod.root / "entrypoints" / "launch.sh").write_text("#!/bin/bash\nenv >environment.$2\nsleep 0.5\n")
    flags = ("--nodes", "2", "--rendezvous", "host:1", "--max-cost", "9", "--price-per-hour", "1", "--node-rank")
    nodes = [pod.start("--processes", str(rank + 1), *flags, str(rank)) for rank in (0, 1)]
    assert [node.communicate(timeout=30)[1] for node in nodes] == ["", ""]
    assert len(json.loads((pod.work / "runs" / ".pod" / "spend.json").read_text())["sessions"]) == 1
    found = {path.name: "RECPOD_RENT_SECONDS" in path.read_text() for path in pod.work.glob("environment.*")}
    assert sorted(found.values()) == [False, True], found


def test_at_home_only_the_session_counts(tmp_path: Path, clock: Clock) -> None:
    ledger = begin(tmp_path, clock, pod=False)
    clock.now += 7
    assert ledger.seconds() == 7


def test_a_cap_that_is_reached_is_refused(tmp_path: Path, clock: Clock, rented: dict[str, float]) -> None:
    ledger = begin(tmp_path, clock)
    ledger.check_cap(101)
    with pytest.raises(ConfigError) as refused:
        ledger.check_cap(100)
    assert str(refused.value) == (
        f"--max-cost 100: 'ml1m' has cost 100.00 already (rental and earlier sessions, {tmp_path}/.pod/spend.json). "
        "raise it, or delete that file to count from zero again (this pod alone has cost 100.00)."
    )


ROW = {"session": "s", "job": "ml1m", "rental": "r", "begin": 1.0, "end": 2.0, "price_per_hour": 1.0}
WRONG = [
    {"begin": "1"},
    {"end": None},
    {"end": True},
    {"end": 0.5},
    {"end": float("nan")},
    {"end": 10**400},
    {"job": 7},
    {"rental": []},
    {"price_per_hour": "1"},
    {"price_per_hour": -1},
]


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", '"sessions"', '{"sessions": 3}', '{"sessions": ["s"]}', '{"sessions": {"a": 1}}'),
        '{"sessions": [{"job": 1}]}',
        *(json.dumps({"sessions": [ROW | wrong]}) for wrong in WRONG),
    ],
)
def test_a_file_that_is_no_ledger_is_not_overwritten(tmp_path: Path, clock: Clock, text: str) -> None:
    path = tmp_path / ".pod" / "spend.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(RunError, match="this is no spend ledger. move it away"):
        begin(tmp_path, clock)
    assert path.read_text() == text


def test_a_ledger_of_other_types_is_one_line(pod: Pod) -> None:
    path = pod.work / "runs" / ".pod" / "spend.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"sessions": [ROW | {"job": "quickstart", "end": "2"}]}))
    done = pod.run("--price-per-hour", "1")
    assert done.returncode == 2
    assert (
        done.stderr.startswith("error: runs/.pod/spend.json: this is no spend ledger.") and done.stderr.count("\n") == 1
    )


def test_two_at_once_lose_nothing(tmp_path: Path, clock: Clock, rented: dict[str, float]) -> None:
    first, second = begin(tmp_path, clock), begin(tmp_path, clock, "other")
    first.save()
    second.save()
    first.save()
    assert len(json.loads((tmp_path / ".pod" / "spend.json").read_text())["sessions"]) == 2


def test_a_process_s_start_is_found_again_by_the_same_name() -> None:
    assert pod_start(time.time())[0] == pod_start(time.time() + 5)[0]
    assert pod_start(time.time())[1] < time.time()
    before = time.time()
    with subprocess.Popen(["sleep", "60"]) as process:
        after = time.time()
        time.sleep(1)
        name, start = pod_start(time.time(), pid=process.pid)
        process.kill()
    assert before - 0.1 <= start <= after + 0.1  # processes are dated by hundredths
    assert name != pod_start(time.time())[0]


def test_a_sandbox_that_hides_process_one_pays_from_now(tmp_path: Path) -> None:
    assert pod_start(123.0, tmp_path)[1] == 123.0


def test_training_is_told_what_was_paid_and_the_overdraft_ends_it(pod: Pod, server: Server) -> None:
    """At 1.10 a second with a cap of 4: a session pays more than 4.4 only if nobody stops it."""
    flags = ("--max-cost", "4", "--price-per-hour", "3960", "--webhook", f"{server.address}/hook")
    training = "print(os.environ['RECPOD_RENT_SECONDS'], flush=True)\ntime.sleep(0.6)"
    first = pod.run(*flags, training=training)
    assert first.returncode == 0, first.stderr
    paid = float(first.stdout)
    assert 0 <= paid < 3
    second = pod.start(*flags, training="print(os.environ['RECPOD_RENT_SECONDS'], flush=True)\ntime.sleep(60)")
    out, err = second.communicate(timeout=30)
    assert float(out) > paid + 0.5  # each told to a tenth
    assert second.returncode == 75
    assert "stopped by the supervisor: spend: " in err
    assert "of a cap of 4 (--max-cost); 1.1 times the cap, and no end yet" in err
    assert any("% of its cap of 4" in text for text in server.messages())
    third = pod.run(*flags)
    assert third.returncode == 2
    assert third.stderr.startswith("error: --max-cost 4: 'quickstart' has cost ")
    assert len(third.stderr.splitlines()) == 1
    assert any("did not start: --max-cost 4:" in text for text in server.messages())


def test_the_ledger_is_kept_up_to_date_while_it_runs(pod: Pod) -> None:
    process = pod.start("--price-per-hour", "1", training="time.sleep(60)")
    path = wait_for(pod.work / "runs" / ".pod" / "spend.json")
    first = json.loads(path.read_text())["sessions"][0]["end"]
    until = time.monotonic() + 20
    while json.loads(path.read_text())["sessions"][0]["end"] == first:
        assert time.monotonic() < until
        time.sleep(0.1)
    process.terminate()
    assert process.wait(20) == 75
    process.communicate()
