"""The evaluator on hand-made stores: popularity by hand, masking of the full history, Parquet, the ties control."""

from __future__ import annotations

import time

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from torch import Tensor

from models.batch import SequenceBatch
from models.popularity import Popularity
from pipelines.data.splits import Queries, make_split
from pipelines.errors import ConfigError, DataError
from pipelines.evaluation.evaluator import evaluate, histories, shuffle_ties, write_ranks
from pipelines.evaluation.protocols import PROTOCOLS, get_protocol
from pipelines.evaluation.ranking import NonFiniteScoreError
from tests.pipelines.evaluation.scored_tasks import LastItem

FULL, MASKED = PROTOCOLS["loo-full"], PROTOCOLS["loo-full-masked"]


def test_popularity_ranks_by_hand(make_store) -> None:  # type: ignore[no-untyped-def]
    """Training events: u0 [1, 2, 3], u1 [1, 2]; counts 1: 2, 2: 2, 3: 1, 4: 0, 5: 0."""
    store = make_store([[1, 2, 3, 4, 2], [1, 2, 5, 3]], 5)
    split = make_split(store, "leave-one-out")
    baseline = Popularity(torch.tensor([0, 2, 2, 1, 0, 0]))
    # u0: target 2 ties with 1: rank 2 (both seen: 1 does not compete when masked: rank 1). u1: target 3 behind 1, 2.
    assert evaluate(baseline, store, split.test, protocol=FULL, max_length=10).ranks.tolist() == [2, 3]
    masked = evaluate(baseline, store, split.test, protocol=MASKED, max_length=10)
    assert masked.ranks.tolist() == [1, 1]
    assert masked.metrics["HR@1"] == 1.0
    # Validation, target u0: 4 (ties with 5, behind 3 others), u1: 5.
    assert evaluate(baseline, store, split.valid, protocol=FULL, max_length=10).ranks.tolist() == [5, 5]


def test_masking_reaches_beyond_the_models_window(make_store) -> None:  # type: ignore[no-untyped-def]
    """Window of one item; the next best item 6 was seen long ago and must not compete under the masked protocol."""
    store = make_store([[6, 9, 5, 7], [1, 2, 3, 4]], 9)
    split = make_split(store, "leave-one-out")
    task = LastItem(9)
    # u0: newest 5 wants 6; target 7 has score distance 1: 6 before, 5 ties: rank 3; masked 5, 6 and 9 are out: rank 1.
    assert evaluate(task, store, split.test, protocol=FULL, max_length=1).ranks.tolist() == [3, 1]
    assert evaluate(task, store, split.test, protocol=MASKED, max_length=1).ranks.tolist() == [1, 1]
    assert task.longest == 1


def test_ranks_come_in_query_order_whatever_the_batches(make_store) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 40, size=60)
    store = make_store([rng.integers(1, 31, size=n).tolist() for n in lengths], 30)
    split = make_split(store, "leave-one-out")
    expected = []
    for user, end in zip(split.test.user, split.test.end, strict=True):
        wanted, target = store.items[end - 1] + 1, store.items[end]
        seen = set(store.items[store.offsets[user] : end].tolist())
        distance = abs(int(target) - int(wanted))
        rivals = [j for j in range(1, 31) if j != target and j not in seen and abs(j - int(wanted)) <= distance]
        expected.append(1 + len(rivals))
    for tokens, chunk in ((1, 1), (64, 7), (100_000, 8192)):
        task = LastItem(30).train()
        result = evaluate(
            task, store, split.test, protocol=MASKED, max_length=5, tokens_per_batch=tokens, queries_per_ranking=chunk
        )
        assert result.ranks.tolist() == expected
        assert task.training and task.rows_seen == 60 == result.num_queries
        assert result.encode_seconds > 0 and result.rank_seconds > 0


def test_a_broken_model_names_the_user(make_store) -> None:  # type: ignore[no-untyped-def]
    class Broken(LastItem):
        def encode(self, batch: SequenceBatch) -> Tensor:
            states = super().encode(batch)
            states[batch.user_index == 2] = torch.nan
            return states

    store = make_store([[1, 2, 3], [2, 3, 1, 2], [3, 1, 2], [1, 1, 1, 1]], 3)
    task = Broken(3).train()
    with pytest.raises(NonFiniteScoreError, match="1 of 4 queries .* the first is user u2"):
        evaluate(task, store, make_split(store, "leave-one-out").test, protocol=FULL, max_length=3)
    assert task.training


@pytest.mark.parametrize("protocol", [FULL, MASKED, PROTOCOLS["sampled-100"]])
def test_an_observer_is_shown_every_state_with_its_history_and_changes_nothing(make_store, protocol) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(1)
    store = make_store([rng.integers(1, 31, size=n).tolist() for n in rng.integers(3, 12, size=40)], 30)
    queries, shown = make_split(store, "leave-one-out").test, []

    calls = []

    def observe(task, states, seen) -> None:  # type: ignore[no-untyped-def]
        calls.append(len(states))
        time.sleep(0.02)
        rows = (
            [None] * len(states) if seen is None else [row.tolist() for row in seen.values.split(seen.lengths.tolist())]
        )
        shown.extend(zip(states[:, 0].tolist(), rows, strict=True))

    asked = {"protocol": protocol, "max_length": 5, "tokens_per_batch": 20, "queries_per_ranking": 7}
    plain = evaluate(LastItem(30), store, queries, **asked)
    started = time.perf_counter()
    watched = evaluate(LastItem(30), store, queries, observe=observe, **asked)
    wall = time.perf_counter() - started
    assert np.array_equal(plain.ranks, watched.ranks) and plain.observe_seconds == 0
    assert len(calls) > 3 and watched.observe_seconds >= 0.02 * len(calls)
    assert watched.encode_seconds + watched.rank_seconds + watched.observe_seconds <= wall  # none counts for another
    whole = histories(store, queries)
    expected = [
        (2.0 * (row[-1] + 1), row if protocol.mask_seen else None)
        for row in (part.tolist() for part in whole.values.split(whole.lengths.tolist()))
    ]
    assert sorted(shown, key=str) == sorted(expected, key=str)


def test_an_evaluation_can_be_broken_off_between_batches(make_store) -> None:  # type: ignore[no-untyped-def]
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    store = make_store([[1, 2, 3], [2, 3, 1, 2], [3, 1, 2]], 3)
    task = LastItem(3).train()
    split = make_split(store, "leave-one-out")
    with pytest.raises(Stop):
        evaluate(task, store, split.test, protocol=FULL, max_length=3, tokens_per_batch=1, between_batches=stop)
    assert task.training and task.rows_seen == 1


def test_wrong_catalogue_no_queries_no_history_are_errors(make_store) -> None:  # type: ignore[no-untyped-def]
    store = make_store([[1, 2, 3], [2, 3, 1, 2]], 3)
    split = make_split(store, "leave-one-out")
    nothing = np.array([], dtype=np.int64)
    with pytest.raises(DataError, match="knows 4 items, the data hold 3"):
        evaluate(LastItem(4), store, split.test, protocol=FULL, max_length=3)
    with pytest.raises(DataError, match="no queries"):
        evaluate(LastItem(3), store, Queries(nothing, nothing), protocol=FULL, max_length=3)
    with pytest.raises(DataError, match="1 queries have no history"):
        evaluate(LastItem(3), store, Queries(np.array([1]), np.array([3])), protocol=FULL, max_length=3)


def test_histories_are_the_full_ones(make_store) -> None:  # type: ignore[no-untyped-def]
    store = make_store([[1, 2, 3, 2], [3], [2, 2, 1]], 3)
    rows = histories(store, Queries(np.array([0, 2]), np.array([3, 7])))
    assert rows.values.tolist() == [1, 2, 3, 2, 2]
    assert rows.offsets.tolist() == [0, 3, 5]


def test_ranks_to_parquet_carry_original_ids(make_store, tmp_path) -> None:  # type: ignore[no-untyped-def]
    store = make_store([[1, 2, 3], [3, 1, 2, 1]], 3)
    split = make_split(store, "leave-one-out")
    write_ranks(tmp_path / "deep" / "ranks.parquet", store, split.test, np.array([2, 3]))
    rows = parquet.read_table(tmp_path / "deep" / "ranks.parquet").to_pylist()
    assert rows == [
        {"user_id": "u0", "target_item_id": 103, "rank": 2, "history_length": 2},
        {"user_id": "u1", "target_item_id": 101, "rank": 3, "history_length": 3},
    ]
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["ranks.parquet"]


def test_shuffled_ties_permute_only_ties(make_store) -> None:  # type: ignore[no-untyped-def]
    times = [[5] * 40 + [6, 7], [7] * 30 + [9] * 30]
    store = make_store([list(range(1, 43)), list(range(43, 103))], 102, times)
    shuffled = shuffle_ties(store, seed=1)
    assert shuffled.items[40:42].tolist() == [41, 42]
    for start, stop in ((0, 40), (42, 72), (72, 102)):
        assert sorted(shuffled.items[start:stop]) == store.items[start:stop].tolist()
        assert shuffled.items[start:stop].tolist() != store.items[start:stop].tolist()
    assert shuffled.features["ratings"].tolist() == shuffled.items.tolist()
    assert np.array_equal(shuffled.timestamps, store.timestamps)
    assert np.array_equal(shuffle_ties(store, seed=1).items, shuffled.items)
    assert not np.array_equal(shuffle_ties(store, seed=2).items, shuffled.items)
    assert make_split(shuffled, "leave-one-out").digest != make_split(store, "leave-one-out").digest


def test_the_protocol_card_carries_what_a_reader_needs(make_store) -> None:  # type: ignore[no-untyped-def]
    store = make_store([[1, 2, 3], [2, 3, 1, 2]], 3)
    split = make_split(store, "leave-one-out")
    about = {"max_length": 50, "validation": "best NDCG@10", "seeds": [7], "commit": "abc"}
    card = MASKED.describe(store, split, query_time="aware", **about)
    assert card["name"] == "loo-full-masked" and card["ranking"] == "full" and card["ties"] == "worst"
    assert card["catalogue_items"] == 3 and card["test_queries"] == 2 and card["max_length"] == 50
    assert card["masked"] == "all items of the user's history, but never the target"
    assert FULL.describe(store, split, query_time="blind", **about)["masked"] == "nothing"
    assert card["query_time"] == "aware" and card["seeds"] == [7] and card["commit"] == "abc"
    assert card["split_digest"] == split.digest and card["data_hash"] == store.manifest["content_hash"]
    assert card["data_source"]["note"] == "made in a test" and card["event_order"] == "file order"
    with pytest.raises(ConfigError, match="needs a global-time split"):
        PROTOCOLS["global-time"].describe(store, split, query_time="aware", **about)
    with pytest.raises(ConfigError, match="did you mean 'blind'"):
        MASKED.describe(store, split, query_time="blnd", **about)
    with pytest.raises(ConfigError, match="did you mean 'loo-full'"):
        get_protocol("loo-ful")
