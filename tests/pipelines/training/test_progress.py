"""What is shown at the terminal, and what in a job's log."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from pipelines.training.progress import (
    LiveProgress,
    PlainProgress,
    Telemetry,
    duration,
    open_progress,
    peak_memory_gib,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_line_tells_loss_speed_time_left_memory_and_cost() -> None:
    clock = Clock()
    telemetry = Telemetry(total_steps=1000, price_per_hour=3.6, clock=clock)
    for step in (100, 200):
        clock.now += 50
        telemetry.take(step, 1, {"loss": 2.34567, "tokens_per_s": 123456.7})
    line = telemetry.line()
    assert line.startswith(
        "epoch 1 | step 200/1000 | loss 2.3457 | 123,457 tokens/s | 6m 40s left | peak "
    )  # 800 steps at 2/s
    assert line.endswith("| cost 0.10")  # 100 s at 3.60 an hour
    assert float(re.search(r"peak ([\d.]+) GiB", line).group(1)) == pytest.approx(peak_memory_gib(), abs=0.1)


def test_nothing_is_invented_when_nothing_is_known() -> None:
    telemetry = Telemetry(clock=Clock())
    telemetry.take(3, 0, {})
    assert re.fullmatch(r"epoch 0 \| step 3 \| peak \d+\.\d GiB", telemetry.line())


def test_the_cost_of_earlier_parts_counts() -> None:
    telemetry = Telemetry(price_per_hour=1.0, clock=Clock())
    telemetry.take(1, 0, {"cost": 7.25})
    assert telemetry.cost() == 7.25


def test_an_event_may_tell_the_total() -> None:
    clock = Clock()
    telemetry = Telemetry(clock=clock)
    telemetry.take(0, 0, {"total_steps": 10})
    clock.now += 1
    telemetry.take(5, 0, {})
    assert telemetry.seconds_left() == pytest.approx(1.0)


def test_the_pace_is_the_recent_one() -> None:
    clock = Clock()
    telemetry = Telemetry(total_steps=2000, clock=clock)
    for step in range(1, 101):
        clock.now += 100 if step < 50 else 1  # a slow start
        telemetry.take(step, 0, {})
    assert telemetry.seconds_left() == pytest.approx(1900)


def test_plain_lines_come_at_intervals_and_validations_always() -> None:
    clock, lines = Clock(), []
    progress = PlainProgress(Telemetry(clock=clock), interval=30, write=lines.append)
    for step in range(1, 7):
        progress.update(step, 0, "train", {"loss": float(step)})
        clock.now += 10
    assert [line.split(" | ")[1] for line in lines] == ["step 1", "step 4"]
    progress.update(7, 1, "valid", {"HR@10": 0.25, "NDCG@10": 0.125})
    assert lines[-1] == "  epoch 1: HR@10 0.2500  NDCG@10 0.1250"
    progress.update(7, 1, "checkpoint", {})
    assert len(lines) == 3
    progress.close()
    progress.close()
    assert len(lines) == 4 and "step 7" in lines[-1]


def test_a_pipe_gets_plain_lines_without_control_codes() -> None:
    stream = io.StringIO()
    progress = open_progress(Console(file=stream), price_per_hour=2.0, interval=0)
    assert isinstance(progress, PlainProgress)
    progress.update(1, 0, "train", {"loss": 1.0})
    progress.update(1, 1, "valid", {"HR@10": 0.5})
    progress.close()
    text = stream.getvalue()
    assert "\x1b" not in text and "loss 1.0000" in text and "HR@10 0.5000" in text
    assert all(len(line) > 0 for line in text.splitlines()) and text.count("step 1") == 2


def test_a_terminal_gets_one_live_line() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, _environ={"TERM": "xterm"})
    progress = open_progress(console, total_steps=10)
    assert isinstance(progress, LiveProgress)
    for step in range(1, 6):
        progress.update(step, 0, "train", {"loss": 1.0 / step})
        progress.live.refresh()
    progress.update(5, 1, "valid", {"HR@10": 0.5})
    progress.close()
    progress.close()
    text = stream.getvalue()
    assert "step 5/10 | loss 0.2000" in text and "HR@10 0.5000" in text
    assert "\x1b[2K" in text  # the line was renewed, not repeated


def test_durations() -> None:
    assert [duration(s) for s in (-5, 42, 190, 7500)] == ["0s", "42s", "3m 10s", "2h 05m"]
