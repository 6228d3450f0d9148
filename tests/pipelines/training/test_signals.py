"""A signal alone raises at once; one process of several waits until the others know."""

from __future__ import annotations

import os
import signal

import pytest

from pipelines.training.signals import Interrupted, StopSignal, current_stop


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_alone_it_raises_at_once_and_in_training_it_waits() -> None:
    with StopSignal() as stop, pytest.raises(Interrupted, match="SIGTERM"):
        ask()
    with StopSignal() as stop, stop.deferred():
        ask()
        assert stop.requested
        with pytest.raises(Interrupted):  # a second one means it
            ask()


def test_one_of_several_waits_but_where_it_works_for_all() -> None:
    with StopSignal(alone=False) as stop:
        ask()
        assert stop.requested
        with pytest.raises(Interrupted), stop.at_once():
            pytest.fail("what was asked for before counts")
    with StopSignal(alone=False) as stop:
        with pytest.raises(Interrupted), stop.at_once():
            ask()
        assert not stop.alone
    with StopSignal(alone=False) as stop, stop.deferred(), stop.at_once():
        ask()  # a checkpoint is being written: even here it waits
        assert stop.requested


def test_a_request_that_nobody_acted_on_is_handed_down() -> None:
    with StopSignal(alone=False) as outer:
        ask()
        with StopSignal(alone=False) as inner:
            assert inner.requested and current_stop() is inner
        assert current_stop() is outer
    assert not current_stop().requested


def test_a_lost_terminal_saves_too_unless_nohup_was_asked_for() -> None:
    with StopSignal() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop, stop.deferred():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
