"""metrics.json of a run: every control, metric and list that the recipe asks for, and what switches them off."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import stages
from pipelines.cli import main
from pipelines.config import load_config
from pipelines.data.loader import evaluation_batches
from pipelines.evaluation.baselines import training_events
from pipelines.run_evaluation import Trained, evaluate_trained
from pipelines.run_folder import RunFolder
from pipelines.training.state import TrainState

RECIPE = """
name: tiny
dataset: {data}
model: {{name: sasrec, hidden: 16, blocks: 1, max_length: 10}}
loader: {{max_length: 10, windows: all, rows_per_batch: 16}}
optimizer: {{lr: 0.01}}
training: {{epochs: 12, patience: 0, select: Recall@7}}
evaluation: {{ks: [3], also: [loo-full], shuffle_ties: true, shuffle_order: true}}
tracking: {{wandb: "off"}}
runs: {runs}
gates: [{{metric: Recall@4, times_popularity: 0.5}}]
"""
ORDER, TIES = "loo-full-masked, order shuffled", "loo-full-masked, ties shuffled"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on a file in which item ``i`` is mostly followed by ``i + 1``, trained and evaluated."""
    folder = tmp_path_factory.mktemp("run")
    rows = [f"{u},{(u * 7 + i + (i % 5 == 4) * u) % 40},{1000 * u + 60 * i}" for u in range(60) for i in range(14)]
    (folder / "clicks.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(data=folder / "clicks.csv", runs=folder / "runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECPOD_DATA", str(folder / "data"))
        patch.chdir(folder)
        command("run", str(path))
        yield path


def command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert left.value.code in (0, 3)


def metrics_of(recipe: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((recipe.parent / "runs" / "tiny" / "metrics.json").read_text())
    return found


def test_every_metric_at_every_cut_off_that_anything_names(recipe: Path) -> None:
    metrics = metrics_of(recipe)
    names = {f"{kind}@{k}" for kind in ("HR", "Recall", "NDCG", "MRR") for k in (3, 4, 7, 10)}
    assert set(metrics["test"]) == set(metrics["valid"]) == set(metrics["intervals"]["test"]) == names
    assert metrics["protocol"]["ks"] == [3, 4, 7, 10]
    for k in (3, 4, 7, 10):
        assert metrics["test"][f"Recall@{k}"] == metrics["test"][f"HR@{k}"]
    assert metrics["gate"]["checks"][0]["metric"] == "Recall@4" and metrics["gate"]["passed"]
    assert metrics["protocol"]["validation"].startswith("best Recall@7 on validation, every 1 epoch")


def test_controls_are_asked_and_named_on_the_card(recipe: Path) -> None:
    """Order is all that there is to learn here; no second holds two events; popularity reads no order at all."""
    metrics = metrics_of(recipe)
    assert set(metrics["also"]) == {"loo-full", TIES, ORDER}
    assert metrics["also"][TIES]["test"] == metrics["test"]
    assert metrics["also"][ORDER]["test"]["NDCG@10"] < 0.7 * metrics["test"]["NDCG@10"]
    assert metrics["also"][ORDER]["popularity"] == metrics["baselines"]["popularity"]
    ties, order = metrics["protocol"]["controls"]
    assert ties.startswith("ties shuffled: ") and order.startswith("order shuffled: ") and "seed 1" in order


def test_lists_are_counted_over_all_test_users(recipe: Path) -> None:
    """Coverage and popularity again, from whole rows of scores and plain sorting."""
    metrics, config = metrics_of(recipe), load_config(recipe)
    prepared = stages.prepare(config)
    store, test = prepared.store, prepared.split.test
    task, _ = stages.best_task(config, prepared, RunFolder(config.folder))
    counts = np.bincount(store.items[training_events(store, prepared.split)], minlength=store.num_items + 1)
    assert np.array_equal(counts, stages.training_counts(prepared))
    percentile = [np.mean(counts[1:] < one) + np.mean(counts[1:] == one) / 2 for one in counts]
    lists: list[list[int]] = []
    task.eval()
    for rows, batch in evaluation_batches(store, test, max_length=10, tokens_per_batch=1 << 20):
        with torch.inference_mode():
            scores = task.encode(batch) @ task.item_vectors(torch.arange(store.num_items + 1)).T
        for row, own in zip(rows, scores.numpy(), strict=True):
            seen = store.items[store.offsets[test.user[row]] : test.end[row]]
            lists.append([item for item in np.argsort(-own) if item > 0 and item not in seen][:10])
    shown = metrics["beyond_accuracy"]["test"]
    for k in (3, 10):
        flat = [item for one in lists for item in one[:k]]
        assert shown[f"Coverage@{k}"] == pytest.approx(len(set(flat)) / 40)
        assert shown[f"Popularity@{k}"] == pytest.approx(np.mean([percentile[item] for item in flat]))
    chosen = store.items[test.end]
    expected = {"Coverage": len(set(chosen.tolist())) / 40, "Popularity": np.mean([percentile[i] for i in chosen])}
    assert metrics["beyond_accuracy"]["targets"] == pytest.approx(expected)
    assert metrics["protocol"]["lists"] == "the best k of what competes, for coverage and popularity"
    assert "What it shows" in (recipe.parent / "runs" / "tiny" / "report.html").read_text()


def test_the_card_says_what_the_lists_of_a_sampled_protocol_are_made_of(recipe: Path) -> None:
    config = load_config(recipe)
    prepared = stages.prepare(config)
    sampled = replace(prepared, protocol=stages.protocol_of(config, "sampled-100"))
    trained = Trained(stages.build_task(config, prepared), TrainState(), [], {}, partial(stages.ask, config))
    metrics, _ = evaluate_trained(config, sampled, trained)
    said = "the best k of the whole catalogue without the user's history, not of the sampled items"
    assert metrics["protocol"]["lists"] == f"{said}, for coverage and popularity"
    full, _ = evaluate_trained(config, prepared, trained)
    assert metrics["beyond_accuracy"] == full["beyond_accuracy"]  # as it says
    assert metrics["test"] != full["test"]


def test_what_is_switched_off_is_not_there_and_nothing_else_changes(recipe: Path) -> None:
    before = metrics_of(recipe)
    off = ["beyond_accuracy=false", "shuffle_order=false", "shuffle_ties=false", "also=[]"]
    command("evaluate", str(recipe), *(word for key in off for word in ("--set", f"evaluation.{key}")))
    after = metrics_of(recipe)
    assert after["also"] == {} and "beyond_accuracy" not in after
    assert {"controls", "lists"}.isdisjoint(after["protocol"])
    assert after["test"] == before["test"] and after["evaluation"]["observe_seconds"] == 0
    assert before["evaluation"]["observe_seconds"] > 0
    command("evaluate", str(recipe))  # the same weights answer again: neither switch is part of the run's identity
    again = metrics_of(recipe)
    assert {key: again[key] for key in ("test", "also", "beyond_accuracy")} == {
        key: before[key] for key in ("test", "also", "beyond_accuracy")
    }
