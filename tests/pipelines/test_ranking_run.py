"""A ranking recipe from a file of ratings to a gated result, stopped and resumed on its way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

from pipelines import ranking_stages, runbook
from pipelines.config import RunConfig, load_config, recipes
from pipelines.errors import ConfigError
from pipelines.evaluation.ranking_evaluator import item_average
from pipelines.runbook import RunChoices
from pipelines.training.signals import Interrupted
from pipelines.training.trainer import Trainer

CHOICES = RunChoices(preflight=False)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Forty users who like some films whoever they are: three levels of rating."""
    rng = np.random.default_rng(0)
    users, items = np.repeat(np.arange(40), 14), rng.integers(0, 12, 40 * 14)
    noise = rng.random(len(items)) < 0.1
    rating = np.where(noise, rng.integers(1, 4, len(items)), items % 3 + 1)
    table = {"user_id": users, "item_id": items, "timestamp": np.arange(len(items)), "rating": rating}
    pl.DataFrame(table).write_csv(tmp_path / "ratings.csv")
    (tmp_path / "data.yaml").write_text(
        f"name: small\nformat: csv\noptions: {{rating: rating}}\npath: {tmp_path}/ratings.csv\n"
        "prepare: {rating_levels: [1, 2, 3], user_features: [user_id]}\n"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: small\ndataset: {{name: {tmp_path}/data.yaml, cache: {tmp_path}/cache}}\nruns: {tmp_path}/runs\n"
        "model: {name: hstu-ranking, hidden: 16, max_length: 20, head: [16, 3], dropout: 0.0}\n"
        "loader: {max_length: 20, windows: all, rows_per_batch: 8}\noptimizer: {lr: 1e-2}\n"
        "training: {epochs: 6, select: AUC, log_every: 1}\nevaluation: {protocol: ranking-last}\n"
        "tracking: {wandb: 'off'}\ndevice: cpu\ngates: [{metric: 'AUC:3', above: 0.6}]\n"
    )
    return path


def run(config: RunConfig) -> int:
    return runbook.run(config, CHOICES, Console(quiet=True))


def metrics_of(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((config.folder / "metrics.json").read_text())
    return found


def test_a_ranking_recipe_runs_to_a_gated_page(recipe: Path) -> None:
    config = load_config(recipe)
    assert run(config) == 0
    metrics = metrics_of(config)
    assert metrics["test"]["AUC"] > 0.75
    assert metrics["gate"]["passed"] is True
    assert metrics["asked"] == {"valid": 40, "test": 40}
    assert metrics["protocol"]["actions"] == {"kind": "classes", "names": ["1", "2", "3"]}
    assert metrics["baselines"]["item average"]["AUC"] > 0.75
    steps = [json.loads(line) for line in (config.folder / "events.jsonl").read_text().splitlines()]
    assert any(entry.get("tflops", 0) > 0 for entry in steps)
    predictions = pl.read_parquet(config.folder / "predictions.parquet")
    assert predictions.columns == ["user_id", "item_id", "action", "logit:1", "logit:2", "logit:3"]
    assert predictions.height == 40
    page = (config.folder / "report.html").read_text()
    assert "AUC:3" in page and "ranking-last" in page
    assert runbook.evaluate_only(config, Console(quiet=True)) == 0
    assert run(load_config(recipe, ["gates=[{metric: AUC, above: 0.999}]"])) == 3


def test_a_stopped_run_ends_like_one_that_was_not(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_config(recipe, ["name=whole", "training.epochs=2", "gates=[]"])
    run(whole)
    stopped = load_config(recipe, ["name=stopped", "training.epochs=2", "gates=[]"])
    update, count = Trainer.update, 0

    def interrupted(self: Any, group: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            self.stop.requested = True
        return update(self, group)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupted)
        with pytest.raises(Interrupted):
            run(stopped)
    assert not (stopped.folder / "metrics.json").exists()
    run(stopped)
    assert metrics_of(stopped)["test"] == metrics_of(whole)["test"]


@pytest.mark.parametrize(("candidates", "asked"), [(0, 4 * 14), (3, 4 * 3)])
def test_users_split_asks_users_that_trained_nothing(recipe: Path, candidates: int, asked: int) -> None:
    config = load_config(recipe, ["evaluation.protocol=ranking-users", f"model.candidates={candidates}"])
    prepared = ranking_stages.prepare(config)
    assert not set(prepared.split.train.user) & set(prepared.split.test.user)
    found = ranking_stages.ask(config, prepared, ranking_stages.build_task(config, prepared), "test")
    assert len(found.events) == asked and set(found.users) == set(prepared.split.test.user)
    assert (np.diff(found.events) > 0).all()
    assert "GAUC" in found.metrics


def test_last_item_split_holds_out_as_many_as_are_candidates(recipe: Path) -> None:
    prepared = ranking_stages.prepare(load_config(recipe, ["model.candidates=3"]))
    split = prepared.split
    assert (split.test.end - split.valid.end == 3).all() and (split.valid.end - split.train.end == 3).all()


def test_predictions_are_the_model_s_for_each_event(recipe: Path) -> None:
    config = load_config(recipe, ["model.candidates=2", "loader.tokens_per_batch=40"])
    prepared = ranking_stages.prepare(config)
    task = ranking_stages.build_task(config, prepared)
    found = ranking_stages.ask(config, prepared, task, "test")
    again = ranking_stages.ask(load_config(recipe, ["model.candidates=2"]), prepared, task, "test")
    torch.testing.assert_close(torch.from_numpy(found.logits), torch.from_numpy(again.logits))
    assert found.labels[:, 0].tolist() == prepared.store.features["actions"][found.events].tolist()
    assert task.training


def test_the_baseline_is_each_item_s_average_in_training(recipe: Path) -> None:
    prepared = ranking_stages.prepare(load_config(recipe))
    store, train = prepared.store, prepared.split.train
    inside = [p for u, end in zip(train.user, train.end, strict=True) for p in range(store.offsets[u], end + 1)]
    actions, items = store.features["actions"][inside], store.items[inside]
    mean = np.array([(actions == place).mean() for place in range(3)])
    event = int(prepared.split.test.end[5])
    own = actions[items == store.items[event]]
    expected = [((own == place).sum() + 10 * mean[place]) / (len(own) + 10) for place in range(3)]
    assert np.exp(item_average(store, prepared.split, np.array([event])))[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("evaluation.protocol=loo-full", r"protocol 'loo-full' is not one of a ranking model.*ranking-last"),
        ("training.select=NDCG@10", r"'NDCG@10' is no metric of a ranking model"),
        ("training.select=LogLoss", r"'LogLoss' is no metric"),
        ("gates=[{metric: AUC, times_popularity: 2}]", r"compares with popularity"),
        ("gates=[{metric: HR@10, above: 0.1}]", r"'HR@10' is no metric"),
        ("evaluation.also=[loo-full]", r"evaluation.also is for retrieval"),
        ("evaluation.shuffle_ties=true", r"evaluation.shuffle_ties is for retrieval"),
        ("engine.name=recbole", r"recbole trains no ranking model"),
        ("loader.max_length=21", r"21 items for a model with 20 positions"),
        ("model.heds=3", r"unknown key 'model.heds'. did you mean 'heads'"),
    ],
)
def test_what_belongs_to_retrieval_is_refused_before_anything_is_read(
    recipe: Path, override: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_config(recipe, [override])


def test_data_and_head_must_fit(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"names no actions, which hstu-ranking predicts"):
        ranking_stages.prepare(load_config(recipe, [f"dataset.name={tmp_path}/ratings.csv"]))
    config = load_config(recipe, ["model.head=[8, 4]"])
    with pytest.raises(ConfigError, match=r"model.head: 4 outputs for 3 classes: 1, 2, 3"):
        ranking_stages.build_task(config, ranking_stages.prepare(config))


def test_shipped_ranking_recipes_say_what_they_rank() -> None:
    found = {name: load_config(name) for name in recipes() if load_config(name).ranks}
    assert {"ranking-ml1m", "ranking-kuairand-1k"} <= found.keys()
    assert all(config.training.select.startswith("AUC") for config in found.values())
