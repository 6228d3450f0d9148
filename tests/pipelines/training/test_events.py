"""The event file survives what happens to processes and disks."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import RunError
from pipelines.training.events import EventLog, read_events


def steps(path: Path) -> list[int]:
    return [event["step"] for event in read_events(path)]


def test_events_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    log = EventLog(path)
    log.write("train", step=1, epoch=0, loss=2.5, note="ä")
    log.write("valid", step=2, epoch=1, **{"HR@10": 0.25, "checks": [{"passed": True}]})
    events = read_events(path)  # readable while the log is open: every event is written at once
    assert [event["kind"] for event in events] == ["train", "valid"]
    assert events[0]["loss"] == 2.5 and events[0]["note"] == "ä" and events[0]["time"].endswith("+00:00")
    assert events[1]["HR@10"] == 0.25 and events[1]["checks"] == [{"passed": True}]
    log.close()
    log.close()


def test_numbers_that_are_not_finite_are_json_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.write("train", step=1, epoch=0, loss=math.nan, parts=[math.inf, -math.inf, 1.0])
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    (event,) = read_events(path)
    assert math.isnan(event["loss"]) and event["parts"] == [math.inf, -math.inf, 1.0]


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.write("train", step=1, epoch=0)
    log.close()
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    assert steps(path) == [1]
    log = EventLog(path)
    log.write("train", step=2, epoch=0)
    assert steps(path) == [1, 2]


def test_a_file_of_one_torn_line_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind"')
    log = EventLog(path)
    assert path.read_text() == "" and read_events(path) == []
    log.write("train", step=1, epoch=0)
    assert steps(path) == [1]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "a", "step": 1}\nnonsense\n{"kind": "b", "step": 2}\n')
    with pytest.raises(RunError, match=r"events\.jsonl:2"):
        read_events(path)


def test_no_file_has_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "events.jsonl") == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        EventLog(tmp_path / "file" / "events.jsonl")


def test_two_logs_do_not_overwrite_each_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    one, two = EventLog(path), EventLog(path)
    for step in range(0, 10, 2):
        one.write("train", step=step, epoch=0)
        two.write("tracker", step=step + 1, epoch=0)
    assert steps(path) == list(range(10))


@settings(max_examples=50, deadline=None)
@given(told=st.lists(st.integers(-1, 20), max_size=20), step=st.integers(-1, 20))
def test_cut_back_keeps_what_came_before_the_first_later_step(
    tmp_path_factory: pytest.TempPathFactory, told: list[int], step: int
) -> None:
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    log = EventLog(path)
    for number in told:
        log.write("train", step=number, epoch=0)
    keep = next((index for index, number in enumerate(told) if number > step), len(told))
    assert log.cut_back(step) == len(told) - keep
    assert steps(path) == told[:keep]
    log.write("train", step=step + 1, epoch=0)
    assert steps(path) == [*told[:keep], step + 1]
    log.close()


def test_a_line_that_is_taken_in_parts_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
    log.write("train", step=1, epoch=0, loss=2.5)
    log.write("train", step=2, epoch=0)
    assert steps(log.path) == [1, 2]


@pytest.mark.parametrize("refusal", ["error", "nothing taken"])
def test_a_disk_that_fills_up_in_a_line_is_an_error_and_leaves_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write("train", step=1, epoch=0)
    whole = log.path.read_bytes()
    write, taken = os.write, []

    def fill_up(file: int, data: bytes) -> int:
        taken.append(data)
        if len(taken) == 1:
            return write(file, data[:7])
        if refusal == "error":
            raise OSError(errno.ENOSPC, "No space left on device")
        return 0

    with monkeypatch.context() as full:
        full.setattr(os, "write", fill_up)
        with pytest.raises(RunError, match="cannot be written .No space left on device"):
            log.write("train", step=2, epoch=0)
    assert log.path.read_bytes() == whole
    log.write("train", step=3, epoch=0)
    assert steps(log.path) == [1, 3]
