"""Steps, targets and batches are the trainer's own, from a store and from published counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import stages
from pipelines.config import RunConfig, load_config
from pipelines.data.datasets import load_dataset_spec
from pipelines.data.loader import LoaderOptions, cut_windows, epoch_batches
from pipelines.data.splits import make_split
from pipelines.errors import ConfigError
from pipelines.estimate.layer_work import Formats
from pipelines.estimate.measure import make_trainer
from pipelines.estimate.memory import MemoryModel
from pipelines.estimate.volume import Lengths, find_store, find_volume, from_counts, from_store
from pipelines.estimate.work import find_work
from tests.pipelines.conftest import memory_store
from tests.pipelines.estimate.conftest import tiny_config

LOADERS = (
    ["loader.rows_per_batch=16"],
    ["loader.rows_per_batch=7", "training.accumulate=3"],
    ["loader.batch=tokens", "loader.tokens_per_batch=64", "loader.windows=newest"],
    ["loader.batch=tokens", "loader.tokens_per_batch=25", "training.accumulate=2"],
)


@pytest.mark.parametrize("sets", LOADERS)
def test_steps_are_those_of_the_trainer(tiny: Path, tmp_path: Path, sets: list[str]) -> None:
    config = tiny_config(tiny, *sets)
    prepared = stages.prepare(config)
    trainer = make_trainer(config, prepared, tmp_path / "work")
    volume = find_volume(config)
    assert volume.exact and volume.source.startswith("the prepared store")
    steps = config.training.epochs * -(-volume.batches // config.training.accumulate)
    assert steps == trainer.total_steps
    trainer.validate = lambda: {"NDCG@10": 0.5}
    trainer.options = replace(trainer.options, patience=0)
    state = trainer.run()
    assert (state.step, state.targets) == (steps, volume.targets * config.training.epochs)


def test_without_a_store_nothing_is_fetched_and_the_remedy_is_named(tiny: Path) -> None:
    config = tiny_config(tiny)
    with pytest.raises(ConfigError, match="run `recpod prepare tiny` first"):
        find_volume(config)
    assert not (tiny.parent / "data").exists()


def test_a_store_with_other_filters_is_not_taken(tiny: Path) -> None:
    stages.prepare(tiny_config(tiny))
    cache = tiny.parent / "data"
    assert find_store(stages.dataset_spec(tiny_config(tiny)), cache) is not None
    assert find_store(stages.dataset_spec(tiny_config(tiny, "dataset.min_user_events=9")), cache) is None


@pytest.fixture
def movielens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The quick start, its data prepared; no other store is in sight."""
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path))
    config = load_config("quickstart")
    stages.prepare(config)
    return config


def test_published_counts_are_those_of_the_real_data(movielens: RunConfig) -> None:
    spec = load_dataset_spec("ml-100k")
    counted, told = find_volume(movielens), from_counts(movielens, spec)
    assert counted.exact and not told.exact
    for name in ("users", "items", "events", "targets", "queries", "seen", "longest"):
        assert getattr(told, name) == getattr(counted, name), name
    store = find_store(spec, Path(movielens.dataset.cache or stages_cache()))
    assert store is not None and spec.counts["least"] == int(np.diff(store.offsets).min())
    assert told.windows == pytest.approx(counted.windows, rel=0.05)
    assert told.query_tokens == pytest.approx(counted.query_tokens, rel=0.15)
    assert told.shared_length == pytest.approx(counted.shared_length, rel=0.15)


def stages_cache() -> Path:
    from pipelines.data.datasets import data_folder

    return data_folder()


def test_counts_give_the_exact_steps_of_batches_by_tokens(movielens: RunConfig) -> None:
    spec = load_dataset_spec("ml-100k")
    config = load_config("quickstart", ["loader.batch=tokens", "loader.tokens_per_batch=3000"])
    counted, told = find_volume(config), from_counts(config, spec)
    assert told.exact and told.batches == counted.batches


def test_counts_do_not_answer_for_filters_or_another_split(movielens: RunConfig) -> None:
    for sets in (["dataset.min_rating=4"], ["evaluation.protocol=global-time", "evaluation.also=[]"]):
        config = load_config("quickstart", sets)
        with pytest.raises(ConfigError, match="recpod prepare quickstart"):
            from_counts(config, stages.dataset_spec(config))


@pytest.mark.parametrize("recipe", ["quickstart", "ml1m", "ml20m"])
def test_recipes_can_be_estimated_before_any_download(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path))
    volume = find_volume(load_config(recipe))
    assert volume.targets == volume.events - 3 * volume.users and not list(tmp_path.iterdir())


def test_ml20m_makes_299_steps_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path))
    volume = find_volume(load_config("ml20m"))
    assert volume.exact and volume.batches == -(-(20_000_263 - 3 * 138_493) // 65_536) == 299


LENGTHS = st.lists(st.integers(4, 60), min_size=4, max_size=40)


@settings(max_examples=20, deadline=None)
@given(LENGTHS, st.sampled_from(["rows", "tokens"]), st.sampled_from(["all", "newest"]), st.integers(1, 80))
def test_the_largest_batch_bounds_every_epoch(lengths: list[int], batch: str, windows: str, size: int) -> None:
    """In memory as well: what the memory model takes for the largest batch is never less than a real one."""
    store = memory_store(lengths)
    loader = LoaderOptions(max_length=12, windows=windows, batch=batch, rows_per_batch=size, tokens_per_batch=size)
    config = load_config("quickstart").model_copy(update={"loader": loader})
    volume = from_store(config, store)
    cut = cut_windows(store, make_split(store, "leave-one-out").train, 12, windows)
    for epoch in range(3):
        for rows in epoch_batches(cut, loader, seed=1, epoch=epoch):
            assert cut.lengths[rows].sum() <= volume.largest_batch
    work = find_work("ss4rec", config.model_options(), volume.items, 1.0, Formats("cpu", 4, 4))
    rows_there, tokens = MemoryModel(config, volume, work).share(size)
    assert tokens == volume.largest_batch and rows_there >= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.floats(0.5, 200), st.integers(1, 60))
def test_a_supposed_distribution_has_its_mean_and_counts_pieces(least: int, above: float, limit: int) -> None:
    lengths = Lengths(least, least + above)
    q = above / (above + 1)
    values = least + np.random.default_rng(0).geometric(1 - q, 200_000) - 1
    assert float(values.mean()) == pytest.approx(least + above, rel=0.02)
    assert lengths.capped(limit) == pytest.approx(np.minimum(values, limit).mean(), rel=0.02)
    assert lengths.pieces(limit) == pytest.approx((-(-values // limit)).mean(), rel=0.02)
    full, rest = values // limit, values % limit
    shared = (full * limit**2 + rest**2).sum() / values.sum()
    assert lengths.shared(limit, every=True) == pytest.approx(shared, rel=0.03)
