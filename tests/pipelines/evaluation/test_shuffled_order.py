"""The order control moves histories and nothing else."""

from __future__ import annotations

import numpy as np

from models.batch import Jagged
from models.item_knn import ItemKNN
from pipelines.data.splits import Queries, make_split
from pipelines.evaluation.evaluator import evaluate, histories
from pipelines.evaluation.protocols import PROTOCOLS
from pipelines.evaluation.shuffled_order import shuffle_order
from tests.pipelines.evaluation.scored_tasks import LastItem


def test_users_keep_their_items_and_times(make_store) -> None:  # type: ignore[no-untyped-def]
    times = [list(range(100, 142)), [7] * 30 + [9] * 30]
    store = make_store([list(range(1, 43)), list(range(43, 103))], 102, times)
    shuffled = shuffle_order(store, seed=1)
    for start, stop in ((0, 42), (42, 102)):
        assert sorted(shuffled.items[start:stop]) == store.items[start:stop].tolist()
        assert shuffled.items[start:stop].tolist() != store.items[start:stop].tolist()
    assert shuffled.items[:42].tolist()[0] != 1 or shuffled.items[41] != 42
    assert np.array_equal(shuffled.timestamps, store.timestamps)
    assert shuffled.features["ratings"].tolist() == shuffled.items.tolist()  # features move along
    assert np.array_equal(shuffle_order(store, seed=1).items, shuffled.items)
    assert not np.array_equal(shuffle_order(store, seed=2).items, shuffled.items)
    assert make_split(shuffled, "leave-one-out").digest != make_split(store, "leave-one-out").digest


def test_every_place_of_a_history_is_as_likely() -> None:
    from tests.pipelines.conftest import memory_store

    store = memory_store([5] * 20_000, num_items=5)
    store.items[:] = np.tile(np.arange(1, 6), 20_000)
    shuffled = shuffle_order(store, seed=3).items.reshape(-1, 5)
    for place in range(5):
        shares = np.bincount(shuffled[:, place], minlength=6)[1:] / 20_000
        assert abs(shares - 0.2).max() < 0.012  # sigma is 0.0028


def test_asked_targets_stay_and_histories_keep_their_items(make_store) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    store = make_store([rng.permutation(40)[:20].tolist() for _ in range(10)], 40)
    store.items.setflags(write=False)
    asked = Queries(
        np.repeat(np.arange(10), 2), np.sort(np.concatenate([np.arange(10) * 20 + 12, np.arange(10) * 20 + 19]))
    )
    shuffled = shuffle_order(store, seed=1, asked=asked)
    assert np.array_equal(shuffled.items[asked.end], store.items[asked.end])
    before, after = histories(store, asked), histories(shuffled, asked)
    for row in range(20):
        one, two = (j.values[j.offsets[row] : j.offsets[row + 1]].tolist() for j in (before, after))
        assert sorted(one) == sorted(two) and one != two


def test_a_reader_of_order_loses_and_a_bag_of_items_does_not(make_store) -> None:  # type: ignore[no-untyped-def]
    """Histories count up from a random item: the next is the newest plus one."""
    rng = np.random.default_rng(0)
    store = make_store([list(range(first, first + 12)) for first in rng.integers(1, 60, 80)], 80)
    split = make_split(store, "leave-one-out")
    shuffled = shuffle_order(store, 1, asked=split.test)
    asked = {"protocol": PROTOCOLS["loo-full"], "max_length": 50}
    assert evaluate(LastItem(80), store, split.test, **asked).metrics["HR@1"] == 1.0
    assert evaluate(LastItem(80), shuffled, split.test, **asked).metrics["HR@1"] < 0.3
    lengths = np.arange(81) * 12
    import torch

    bag = ItemKNN.from_histories(
        Jagged(torch.from_numpy(store.items.astype(np.int64)), torch.from_numpy(lengths)), 80, newest=11
    )
    ranks = [evaluate(bag, one, split.test, **asked).ranks for one in (store, shuffled)]
    assert np.mean(ranks[0] != ranks[1]) < 0.05  # sums in another order: a tie may fall otherwise
