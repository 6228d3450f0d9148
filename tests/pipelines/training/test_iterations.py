"""Limits and intervals in updates: where training ends, validates, saves, profiles. Prefetching changes nothing."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models.batch import SequenceBatch
from pipelines.config import load_config
from pipelines.data.loader import LoaderOptions, cut_windows, epoch_batches, gather_batch
from pipelines.data.splits import make_split
from pipelines.errors import ConfigError
from pipelines.stages import spread
from pipelines.training.checkpoint import checkpoint_path, checkpoint_steps, load_checkpoint
from pipelines.training.options import TrainingOptions
from pipelines.training.prefetch import ahead
from pipelines.training.speed import Speed, WorkOf
from tests.pipelines.conftest import memory_store
from tests.pipelines.training.test_trainer import trainer

EPOCH = 6  # updates of an epoch of the small training: 48 windows, 8 in a batch


def seen(run: Any, kind: str) -> list[int]:
    return [event["step"] for event in run.log.of(kind)]


def test_max_steps_ends_training_inside_an_epoch_with_a_validation(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=8, epochs=50, eval_every=50)
    assert run.epoch_steps == EPOCH and run.total_steps == 8
    state = run.run()
    assert (state.step, state.epoch, state.finished) == (8, 1, "8 updates done")
    assert seen(run, "valid") == [8] and state.best_step == 8


def test_eval_steps_validate_between_epochs_and_at_the_end(tmp_path: Path) -> None:
    run = trainer(tmp_path, eval_steps=4, epochs=2, patience=0)
    state = run.run()
    assert seen(run, "valid") == [4, 8, 12] and seen(run, "epoch") == [6, 12]
    assert (state.finished, state.epoch, state.batch) == ("2 epochs done", 2, 0)
    run = trainer(tmp_path / "other", eval_steps=5, epochs=2, patience=0)
    assert run.run().finished == "2 epochs done" and seen(run, "valid") == [5, 10, 12]


def test_looking_more_often_does_not_change_the_weights(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", epochs=2)  # made and run one after the other: they share a random generator
    plain.run()
    often = trainer(tmp_path / "often", epochs=2, eval_steps=1, patience=0)
    often.run()
    losses = [[event["train_loss"] for event in run.log.of("epoch")] for run in (plain, often)]
    assert losses[0] == losses[1] and seen(often, "valid") == list(range(1, 2 * EPOCH + 1))
    for one, other in zip(plain.task.parameters(), often.task.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_between_validations_is_gone_on_from_exactly(tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint_minutes": 1e6, "checkpoint_steps": 3, "eval_steps": 4, "max_steps": 11}
    whole = trainer(tmp_path / "whole", epochs=9, patience=0, keep=9, **options)
    whole.run()
    saved = checkpoint_steps(tmp_path / "whole")
    assert {3, 6, 9} <= set(saved)
    for step, validations in ((3, [4, 8, 11]), (9, [11])):
        later = trainer(tmp_path / f"from-{step}", epochs=9, patience=0, keep=9, prefetch=2, **options)
        later.restore(checkpoint_path(tmp_path / "whole", step))
        assert later.state.step == step and later.run().step == 11
        assert seen(later, "valid") == validations
        for one, other in zip(whole.task.parameters(), later.task.parameters(), strict=True):
            assert torch.equal(one, other)


def test_a_checkpoint_of_a_step_to_validate_validates_first(tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint_minutes": 1e6, "checkpoint_steps": 4, "eval_steps": 4, "keep": 9}
    run = trainer(tmp_path, epochs=9, max_steps=5, **options)
    run.run()
    state = load_checkpoint(checkpoint_path(tmp_path, 4))["state"]
    assert state["judged"] in (-1, 4) and (state["to_validate"] or state["judged"] == 4)


def test_more_updates_than_before_go_on(tmp_path: Path) -> None:
    first = trainer(tmp_path, epochs=9, max_steps=4)
    first.run()
    second = trainer(tmp_path, epochs=9, max_steps=7)
    second.restore(checkpoint_path(tmp_path, checkpoint_steps(tmp_path)[-1]))
    assert second.run().step == 7


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"max_steps": -1}, "training.max_steps"),
        ({"eval_steps": -1}, "training.eval_steps"),
        ({"valid_queries": -1}, "training.valid_queries"),
        ({"checkpoint_steps": -1}, "training.checkpoint_steps"),
        ({"prefetch": -1}, "training.prefetch"),
        ({"profile_from": 5, "profile_until": 5}, "training.profile_until"),
    ],
)
def test_nonsense_is_refused(options: dict[str, int], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        TrainingOptions(**options)  # type: ignore[arg-type]


def test_new_options_part_only_those_runs_whose_weights_they_decide() -> None:
    def identity(*sets: str) -> str:
        return load_config("quickstart", sets).identity()

    before = identity()
    for same in ("prefetch=2", "checkpoint_steps=9", "profile_until=4", "max_steps=0", "eval_steps=0"):
        assert identity(f"training.{same}") == before, same
    for other in ("training.eval_steps=9", "training.valid_queries=9", "loader.shuffle=false"):
        assert identity(other) != before, other
    constant = identity("optimizer.schedule=constant")
    assert identity("optimizer.schedule=constant", "training.max_steps=9") == constant
    assert identity("optimizer.schedule=cosine", "training.max_steps=9") != identity("optimizer.schedule=cosine")


def test_profiled_updates_leave_a_trace(tmp_path: Path) -> None:
    trainer(tmp_path / "a" / "checkpoints", max_steps=6, profile_from=2, profile_until=4).run()
    found = list((tmp_path / "a" / "profile").iterdir())
    assert [path.name for path in found] == ["steps-2-4-rank-0.json.gz"]
    names = {event.get("name") for event in json.loads(gzip.decompress(found[0].read_bytes()))["traceEvents"]}
    assert any("aten::" in str(name) for name in names)
    trainer(tmp_path / "b" / "checkpoints", max_steps=3, profile_from=2, profile_until=9).run()
    assert [path.name for path in (tmp_path / "b" / "profile").iterdir()] == ["steps-2-3-rank-0.json.gz"]
    trainer(tmp_path / "c" / "checkpoints", max_steps=3).run()
    assert not (tmp_path / "c" / "profile").exists()


def batches(count: int, made: list[int]) -> Iterator[SequenceBatch]:
    store = memory_store([5] * 4)
    windows = cut_windows(store, make_split(store, "leave-one-out").train, 5)
    for number in range(count):
        made.append(number)
        yield gather_batch(store, windows)


def test_batches_are_made_ahead_and_come_in_order() -> None:
    made: list[int] = []
    coming = ahead(batches(6, made), 2, torch.device("cpu"))
    assert isinstance(next(coming), SequenceBatch)
    deadline = time.monotonic() + 20
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert made == [0, 1, 2, 3]  # one taken, two waiting, one in hand
    assert len(list(coming)) == 5 and made == list(range(6))


def test_an_error_in_a_batch_comes_where_the_batch_would() -> None:
    def broken() -> Iterator[SequenceBatch]:
        yield from batches(2, [])
        raise ConfigError("no more")

    coming = ahead(broken(), 3, torch.device("cpu"))
    next(coming), next(coming)
    with pytest.raises(ConfigError, match="no more"):
        next(coming)


def test_the_thread_ends_with_the_iterator() -> None:
    coming = ahead(batches(100, []), 1, torch.device("cpu"))
    next(coming)
    assert any(thread.name == "prefetch" for thread in threading.enumerate())
    coming.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_speed_is_of_the_tokens_and_the_lengths_of_their_rows() -> None:
    speed = Speed(WorkOf(lambda shared: 1e9 * shared, peak=1e12))
    store = memory_store([4, 8])
    windows = cut_windows(store, make_split(store, "leave-one-out").train, 9)
    batch = gather_batch(store, windows)
    lengths = batch.lengths.tolist()
    speed.start(100)
    speed.since -= 10.0  # ten seconds ago
    speed.count(batch), speed.count(batch)
    found = speed.measure(100 + 50)
    assert found["tokens_per_s"] == pytest.approx(5.0, rel=0.05)
    flops = 2 * 1e9 * sum(length**2 for length in lengths)  # each token shares its row with `length` tokens
    assert found["tflops"] == pytest.approx(flops / 10 / 1e12, rel=0.05)
    assert found["mfu"] == pytest.approx(found["tflops"], rel=1e-6)  # of a peak of 1 TFLOP/s
    assert set(speed.measure(150)) == {"tokens_per_s"}  # nothing was trained since
    assert set(Speed(None).measure(5)) == {"tokens_per_s"}


def test_some_queries_are_spread_over_all_users() -> None:
    store = memory_store([6] * 30)
    queries = make_split(store, "leave-one-out").valid
    some = spread(queries, 7)
    assert len(some) == 7 and some.user[0] == 0 and some.user[-1] > 24 and len(set(some.user.tolist())) == 7
    assert spread(queries, 0) is queries and spread(queries, 30) is queries and spread(queries, 99) is queries


def test_unshuffled_windows_come_in_the_order_of_the_data() -> None:
    store = memory_store([6] * 10)
    windows = cut_windows(store, make_split(store, "leave-one-out").train, 6)
    for epoch in (0, 1):
        rows = epoch_batches(windows, LoaderOptions(shuffle=False, rows_per_batch=4), seed=3, epoch=epoch)
        assert [batch.tolist() for batch in rows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
