"""Windows, batches and their order, against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.loader import (
    LoaderOptions,
    Windows,
    cut_windows,
    deal_rows,
    dealt_rows,
    epoch_batches,
    evaluation_batches,
    gather_batch,
    training_batches,
)
from pipelines.data.splits import Queries, make_split
from pipelines.errors import ConfigError
from tests.pipelines.conftest import memory_store

lengths = st.lists(st.integers(4, 23), min_size=2, max_size=6)


@given(lengths, st.integers(1, 9))
def test_all_windows_train_every_target_once(users: list[int], max_length: int) -> None:
    store = memory_store(users)
    train = make_split(store, "leave-one-out").train
    windows = cut_windows(store, train, max_length, "all")
    targets = [
        position
        for start, end in zip(windows.start, windows.end, strict=True)
        for position in range(start + 1, end + 1)
    ]
    expected = [p for u, end in zip(train.user, train.end, strict=True) for p in range(store.offsets[u] + 1, end + 1)]
    assert sorted(targets) == expected
    assert windows.lengths.max() <= max_length and windows.lengths.min() >= 1


@given(lengths, st.integers(1, 9))
def test_newest_windows_keep_the_newest_items(users: list[int], max_length: int) -> None:
    store = memory_store(users)
    queries = make_split(store, "leave-one-out").test
    windows = cut_windows(store, queries, max_length)
    assert windows.end.tolist() == queries.end.tolist()
    for user, start, end in zip(windows.user, windows.start, windows.end, strict=True):
        assert start == max(store.offsets[user], end - max_length)


def test_a_batch_is_what_the_store_says() -> None:
    store = memory_store([6, 9])
    batch = gather_batch(store, Windows(np.array([1, 0]), np.array([8, 1]), np.array([12, 4])))
    assert batch.offsets.tolist() == [0, 4, 7]
    assert batch.items.tolist() == [*store.items[8:12], *store.items[1:4]]
    assert batch.targets.tolist() == [*store.items[9:13], *store.items[2:5]]
    assert batch.timestamps.tolist() == [*store.timestamps[8:12], *store.timestamps[1:4]]
    assert batch.request_time.tolist() == [store.timestamps[12], store.timestamps[4]]
    assert batch.ratings is not None and batch.ratings.tolist() == [8, 9, 10, 11, 1, 2, 3]
    assert batch.user_index.tolist() == [1, 0]


def test_an_evaluation_batch_asks_for_the_last_target_only() -> None:
    store = memory_store([6, 9, 4])
    queries = make_split(store, "leave-one-out").test
    answers = {}
    for positions, batch in evaluation_batches(store, queries, max_length=5, tokens_per_batch=7):
        assert int((batch.targets > 0).sum()) == len(positions)
        answers.update(zip(positions.tolist(), batch.targets[batch.offsets[1:] - 1].tolist(), strict=True))
    assert answers == {row: store.items[end] for row, end in enumerate(queries.end)}


def test_a_query_without_history_is_left_out() -> None:
    store = memory_store([4, 4])
    batches = list(
        evaluation_batches(store, Queries(np.array([0, 1]), np.array([2, 4])), max_length=5, tokens_per_batch=99)
    )
    assert [positions.tolist() for positions, _ in batches] == [[0]]


@given(lengths, st.sampled_from(["rows", "tokens"]), st.integers(0, 3))
def test_an_epoch_has_every_window_once_and_repeats(users: list[int], batch: str, epoch: int) -> None:
    store = memory_store(users)
    windows = cut_windows(store, make_split(store, "leave-one-out").train, 4, "all")
    options = LoaderOptions(max_length=4, batch=batch, rows_per_batch=3, tokens_per_batch=8)
    first, again = (epoch_batches(windows, options, seed=5, epoch=epoch) for _ in range(2))
    assert sorted(np.concatenate(first).tolist()) == list(range(len(windows.user)))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    if batch == "tokens":
        assert max(windows.lengths[rows].sum() for rows in first) <= 8 + 3
    else:
        assert all(len(rows) == 3 for rows in first[:-1])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    store = memory_store([20] * 12)
    windows = cut_windows(store, make_split(store, "leave-one-out").train, 4, "all")
    orders = [
        np.concatenate(epoch_batches(windows, LoaderOptions(), seed=seed, epoch=epoch)).tolist()
        for seed, epoch in ((1, 0), (1, 1), (2, 0))
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2]


def test_starting_in_the_middle_gives_the_remaining_batches() -> None:
    store = memory_store([20] * 5)
    windows = cut_windows(store, make_split(store, "leave-one-out").train, 4, "all")
    options = LoaderOptions(max_length=4, rows_per_batch=3)
    whole = list(training_batches(store, windows, options, seed=1, epoch=2))
    rest = list(training_batches(store, windows, options, seed=1, epoch=2, first=4))
    assert len(rest) == len(whole) - 4
    assert all(np.array_equal(a.items, b.items) for a, b in zip(whole[4:], rest, strict=True))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(2, 4))
def test_dealing_to_processes_loses_nothing_and_is_even(token_counts: list[int], world: int) -> None:
    counts = np.array(token_counts)
    shares = [deal_rows(np.arange(len(counts)), counts, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(counts)))
    assert (
        max(counts[share].sum() for share in shares) - min(counts[share].sum() for share in shares) <= 2 * counts.max()
    )


@settings(deadline=None)
@given(
    st.lists(st.integers(4, 60), min_size=3, max_size=16),
    st.integers(2, 4),
    st.sampled_from(["rows", "tokens"]),
    st.integers(0, 2**31),
)
def test_dealing_by_attention_gives_every_batch_away_whole(users: list[int], world: int, batch: str, seed: int) -> None:
    store = memory_store(users)
    windows = cut_windows(store, make_split(store, "leave-one-out").train, 20, "all")
    options = LoaderOptions(max_length=20, batch=batch, rows_per_batch=7, tokens_per_batch=90, deal="attention")
    whole = epoch_batches(windows, options, seed=seed, epoch=1)
    shares = [list(dealt_rows(windows, options, seed=seed, epoch=1, rank=rank, world=world)) for rank in range(world)]
    assert [len(share) for share in shares] == [len(whole)] * world
    for number, rows in enumerate(whole):
        dealt = [share[number] for share in shares]
        assert sorted(np.concatenate(dealt).tolist()) == sorted(rows.tolist())
        loads = [float((windows.lengths[share] ** 2).sum()) for share in dealt]
        assert max(loads) <= sum(loads) / world + float((windows.lengths[rows] ** 2).max())
    first = len(whole) // 2
    for rank, share in enumerate(shares):  # a resumed run goes on with the shares it would have had
        rest = list(dealt_rows(windows, options, seed=seed, epoch=1, first=first, rank=rank, world=world))
        assert [rows.tolist() for rows in rest] == [rows.tolist() for rows in share[first:]]


def test_batches_dealt_by_attention_are_more_even_in_it_than_those_dealt_by_tokens() -> None:
    generator = np.random.default_rng(3)
    store = memory_store(np.minimum(generator.lognormal(3.5, 1.0, 300).astype(np.int64) + 5, 200).tolist())
    windows = cut_windows(store, make_split(store, "leave-one-out").train, 100)
    work: dict[str, float] = {}
    for deal in ("tokens", "attention"):
        options = LoaderOptions(max_length=100, rows_per_batch=24, deal=deal)
        ranks = [training_batches(store, windows, options, seed=1, epoch=0, rank=rank, world=4) for rank in range(4)]
        slowest = [max(int(b.lengths.square().sum()) for b in together) for together in zip(*ranks, strict=True)]
        work[deal] = float(sum(slowest))
    mean = float((windows.lengths**2).sum()) / 4
    assert mean <= work["attention"] < 1.03 * mean and work["attention"] - mean < 0.3 * (work["tokens"] - mean)


@pytest.mark.parametrize(
    ("bad", "said"),
    [({"deal": "even"}, "loader.deal: 'even' is not one of tokens, attention"), ({"resident": "yes"}, "auto, on, off")],
)
def test_a_choice_that_there_is_not_is_answered_with_those_there_are(bad: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        LoaderOptions(**bad)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [{"windows": "some"}, {"batch": "bytes"}, {"max_length": 0}, {"rows_per_batch": -1}])
def test_bad_options_name_the_key(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"loader.{next(iter(bad))}"):
        LoaderOptions(**bad)  # type: ignore[arg-type]
