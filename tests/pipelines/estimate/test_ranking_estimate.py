"""A ranking run's estimate: steps and targets are the trainer's, memory is that of real steps, the verb answers."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from pipelines import ranking_stages
from pipelines.config import load_config
from pipelines.data.ranking_loader import ranking_gather
from pipelines.errors import ConfigError
from pipelines.estimate import throughput
from pipelines.estimate.forecast import memory_of, work_of
from pipelines.estimate.measure import make_trainer
from pipelines.estimate.training_work import ranking_training_work
from pipelines.estimate.volume import find_volume
from tests.pipelines.estimate.live_tensors import LiveBytes
from tests.pipelines.estimate.test_verb import run

RECIPE = """
name: ranked
dataset: {{name: {folder}/data.yaml, cache: {folder}/cache}}
runs: {folder}/runs
model: {{name: hstu-ranking, hidden: 32, max_length: 20, head: [16, 3]}}
loader: {{max_length: 20, windows: all, rows_per_batch: 16}}
training: {{epochs: 2, select: AUC, patience: 0}}
evaluation: {{protocol: ranking-last}}
tracking: {{wandb: "off"}}
device: cpu
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eighty users with 8 to 47 events, rated 1 to 3."""
    monkeypatch.setattr(throughput, "SHIPPED", tmp_path / "read-only")
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "data"))
    lengths = 8 + np.arange(80) % 40
    users, rng = np.repeat(np.arange(80), lengths), np.random.default_rng(0)
    columns = {"user_id": users, "item_id": rng.integers(0, 50, len(users)), "timestamp": np.arange(len(users))}
    pl.DataFrame(columns | {"rating": rng.integers(1, 4, len(users))}).write_csv(tmp_path / "ratings.csv")
    (tmp_path / "data.yaml").write_text(
        f"name: rated\nformat: csv\noptions: {{rating: rating}}\npath: {tmp_path}/ratings.csv\n"
        "prepare: {rating_levels: [1, 2, 3], user_features: [user_id]}\n"
        f"counts: {{users: 80, items: 50, events: {len(users)}, least: 8}}\n"
    )
    (tmp_path / "ranked.yaml").write_text(RECIPE.format(folder=tmp_path))
    return tmp_path / "ranked.yaml"


LOADERS = (
    [],
    ["evaluation.protocol=ranking-users", "loader.windows=newest", "model.candidates=4", "loader.rows_per_batch=7"],
    ["loader.batch=tokens", "loader.tokens_per_batch=90", "model.candidates=2", "training.accumulate=2"],
)


@pytest.mark.parametrize("sets", LOADERS, ids=" ".join)
def test_steps_and_targets_are_those_of_the_trainer(recipe: Path, tmp_path: Path, sets: list[str]) -> None:
    config = load_config(recipe, sets)
    prepared = ranking_stages.prepare(config)
    volume, trainer = find_volume(config), make_trainer(config, prepared, tmp_path / "work")
    assert volume.exact and volume.ranking is not None and volume.ranking.context == {"user_id": 81}
    trainer.validate = lambda: {"AUC": 0.5}
    state = trainer.run()
    assert state.step == 2 * -(-volume.batches // config.training.accumulate)
    assert state.targets == 2 * volume.targets
    assert volume.tokens == trainer.data.windows.lengths.sum()
    assert volume.queries == len(prepared.split.valid)


def test_the_log_s_flops_of_an_epoch_are_those_of_the_estimate(recipe: Path, tmp_path: Path) -> None:
    config = load_config(recipe, ["model.candidates=4"])
    prepared = ranking_stages.prepare(config)
    volume, windows = find_volume(config), make_trainer(config, prepared, tmp_path / "work").data.windows
    data = ranking_stages.ranking_data(prepared.store)
    work = ranking_training_work(config, volume.items, "cpu", data, windows.lengths)
    told = work_of(config, volume, "cpu").flops * volume.targets
    assert work.flops(volume.shared_length) * windows.lengths.sum() == pytest.approx(told)
    assert work.flops(2 * volume.shared_length) > work.flops(volume.shared_length) and work.peak is None


@pytest.mark.parametrize(
    "sets",
    [
        [],
        ["model.candidates=5", "model.item_dim=16", "model.blocks=3"],
        ["loader.batch=tokens", "loader.tokens_per_batch=700", "model.recompute_silu=true"],
    ],
    ids=" ".join,
)
def test_the_peak_of_training_is_that_of_real_updates(recipe: Path, tmp_path: Path, sets: list[str]) -> None:
    """Within 10% of all tensors alive at the worst moment of an update on the heaviest batch."""
    config = load_config(recipe, ["model.hidden=64", *sets])
    prepared = ranking_stages.prepare(config)
    volume, trainer = find_volume(config), make_trainer(config, prepared, tmp_path / "work")
    trainer.task.train()
    memory = memory_of(config, volume, work_of(config, volume, "cpu"))
    rows, tokens = memory.share(getattr(config.loader, f"{config.loader.batch}_per_batch"))
    windows = trainer.data.windows
    order = torch.from_numpy(-windows.lengths).argsort(stable=True).numpy()[:rows]
    chosen = list(itertools.takewhile(lambda n: windows.lengths[order[:n]].sum() <= tokens, range(1, rows + 1)))
    batch = ranking_gather(config.model_options().candidates)(prepared.store, windows.take(order[: len(chosen)]))
    trainer.update([batch])  # makes the optimiser's state
    trainer.optimizer.zero_grad(set_to_none=True)
    held = [*trainer.task.parameters(), *(v for v in vars(batch).values() if isinstance(v, torch.Tensor))]
    held += [*(batch.context or {}).values()]
    held += [v for state in trainer.optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    with LiveBytes(held) as live:
        trainer.update([batch])
    lasting = memory.weights + memory.optimizer + memory.batch(batch.num_rows, batch.num_tokens)
    longest = replace(volume, ranking=None).longest
    assert longest <= config.loader.max_length + config.model_options().candidates
    counted = memory.training_peak(batch.num_rows, batch.num_tokens)
    assert counted == pytest.approx(live.peak + lasting, rel=0.1)


def test_counts_are_taken_where_nothing_is_prepared(recipe: Path) -> None:
    """Lengths are supposed: within a fifth of what is counted."""
    sets = ["evaluation.protocol=ranking-users", "loader.windows=newest", "model.candidates=4"]
    config = load_config(recipe, sets)
    told = find_volume(config)
    ranking_stages.prepare(config)
    counted = find_volume(config)
    assert not told.exact and "published counts" in told.source and counted.exact
    for name in ("users", "items", "events", "windows", "targets", "batches", "queries", "longest"):
        assert getattr(told, name) == getattr(counted, name), name
    for name in ("tokens", "shared_length", "query_tokens", "largest_batch"):
        assert getattr(told, name) == pytest.approx(getattr(counted, name), rel=0.2), name
    assert told.ranking is not None and told.ranking.context == {"user_id": 81}


def test_counts_do_not_decide_everything(recipe: Path) -> None:
    for sets, what in (
        (["loader.windows=all", "model.candidates=2"], "windows that overlap"),
        (["model.candidates=4", "loader.windows=newest"], "too short to be tested on 4 events"),
    ):
        with pytest.raises(ConfigError, match=f"{what}.*recpod prepare ranked"):
            find_volume(load_config(recipe, sets))


def estimate(capsys: pytest.CaptureFixture[str], recipe: Path, *arguments: str) -> dict[str, object]:
    code, out, err = run(capsys, "estimate", str(recipe), "--json", *arguments)
    assert code == 0, err
    found: dict[str, object] = json.loads(out)
    return found


def test_measure_then_estimate(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    before = estimate(capsys, recipe, "--gpu", "A100")
    assert before["hours"] is None and "no throughput file holds 'hstu-ranking'" in str(before["reason"])
    code, out, err = run(capsys, "estimate", str(recipe), "--gpu", "cpu", "--measure", "--seconds", "1")
    assert code == 0 and "measured on this machine" in out and "events)" in out, err
    (entry,) = throughput.read_all()[0].measurements
    assert entry.rank_queries_per_s == 0 and entry.encode_queries_per_s > 0
    assert entry.ranking is not None and entry.ranking["kind"] == "classes"
    found = estimate(capsys, recipe, "--gpu", "cpu")
    assert found["measured"] is True and found["hours"]["middle"] > 0  # type: ignore[index]
    scaled = estimate(capsys, recipe, "--gpu", "A100")
    assert scaled["measured"] is False and scaled["hours"]["middle"] > 0  # type: ignore[index]


def test_a_shipped_recipe_is_answered_before_any_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path))
    config = load_config("ranking-ml1m")
    volume = find_volume(config)
    assert volume.targets == volume.tokens == 1_000_209 - 2 * 6040  # all but what is held out
    work = work_of(config, volume, "cuda")
    assert work.flops > 1e6 and memory_of(config, volume, work).judge(80 * 10**9).fits
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="windows that overlap cannot be told from counts"):
        find_volume(load_config("ranking-kuairand-1k"))
