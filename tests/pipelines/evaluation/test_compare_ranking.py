"""Two ranking runs compared by their predictions: the numbers of the paired test, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from rich.console import Console

from pipelines.errors import RunError
from pipelines.evaluation.compare import compare_runs
from pipelines.evaluation.ranking_metrics import outcomes_of, ranking_metrics, scores_of
from pipelines.evaluation.ranking_significance import Asked, paired_ranking_tests
from tests.pipelines.evaluation.test_compare import CARD, write_run

USERS, EVENTS = 30, 8
NAMES = {"bits": ["click", "like"], "classes": ["1", "2", "3"]}


def card_of(kind: str) -> dict[str, Any]:
    card = {key: value for key, value in CARD.items() if key != "masked"}
    card |= {"name": "ranking-users", "split": "users", "ranking": "none: predictions of what the user does, by AUC"}
    card |= {"actions": {"kind": kind, "names": NAMES[kind]}, "asked_events": "the newest 8 of each query"}
    return card | {"ties": "half", "test_queries": USERS, "context": ["sex"]}


def actions_of(kind: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4 if kind == "bits" else 3, USERS * EVENTS)


def logits_of(kind: str, noise: float, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed).normal(size=(USERS * EVENTS, len(NAMES[kind])))
    return (outcomes_of(actions_of(kind), kind, len(NAMES[kind])) + noise * draw).astype(np.float32)


def write_ranking(path: Path, logits: np.ndarray, kind: str = "bits", **card: Any) -> Path:
    """A run folder as far as a comparison reads it."""
    path.mkdir(parents=True)
    users, actions, names = np.repeat(np.arange(USERS), EVENTS), actions_of(kind), NAMES[kind]
    columns = {"user_id": [f"u{user:02}" for user in users], "item_id": np.arange(len(users)), "action": actions}
    columns |= {f"logit:{name}": logits[:, place] for place, name in enumerate(names)}
    parquet.write_table(arrow.table(columns), path / "predictions.parquet")
    labels = actions[:, None] if kind == "classes" else outcomes_of(actions, kind, len(names)).astype(int)
    metrics = {"protocol": card_of(kind) | card, "test": ranking_metrics(logits, labels, users, kind, names)}
    (path / "metrics.json").write_text(json.dumps(metrics))
    return path


@pytest.mark.parametrize("kind", ["bits", "classes"])
def test_the_numbers_are_those_of_the_paired_test(tmp_path: Path, kind: str) -> None:
    noisy, sharp = logits_of(kind, 2.0, 1), logits_of(kind, 0.3, 2)
    run_a = write_ranking(tmp_path / "a", noisy, kind)
    run_b = write_ranking(tmp_path / "b", sharp, kind, seeds=[2], context=[])
    result = compare_runs(run_a, run_b)
    users, names = np.repeat(np.arange(USERS), EVENTS), NAMES[kind]
    asked = Asked(users, outcomes_of(actions_of(kind), kind, len(names)), names)
    tests = paired_ranking_tests(asked, [scores_of(noisy, kind)], [scores_of(sharp, kind)], resamples=1000)
    assert [one.metric for one in result.differences] == list(tests)
    assert {"AUC", "GAUC", *(f"AUC:{name}" for name in names)} <= set(tests)
    recorded = json.loads((run_b / "metrics.json").read_text())["test"]
    for one in result.differences:
        values, test = tests[one.metric]
        assert (one.difference, one.low, one.high, one.p_value) == (test.difference, test.low, test.high, test.p_value)
        assert (one.a, one.b) == pytest.approx(tuple(values)) and one.b == pytest.approx(recorded[one.metric], abs=1e-6)
        assert one.low > 0 and one.p_value < 0.01
    assert result.unlike == {"seeds": ([1], [2]), "context": (["sex"], [])}
    assert (result.queries, result.events, result.slices) == (USERS, USERS * EVENTS, ())
    console = Console(width=160, record=True, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(result.table())
    assert f"{USERS * EVENTS} events; intervals and p by resampling users" in captured.get()
    assert json.loads(json.dumps(result.as_dict()))["events"] == USERS * EVENTS


def test_seeds_of_two_models_are_compared_by_their_means(tmp_path: Path) -> None:
    side_a = [write_ranking(tmp_path / f"a{s}", logits_of("bits", 2.0, s), seeds=[s]) for s in (1, 2)]
    side_b = [write_ranking(tmp_path / f"b{s}", logits_of("bits", 0.5, s), seeds=[s]) for s in (1, 2, 3)]
    result = compare_runs(side_a, side_b)
    auc = result.differences[0]
    own = [json.loads((path / "metrics.json").read_text())["test"]["AUC"] for path in side_b]
    assert auc.b == pytest.approx(np.mean(own), abs=1e-6)
    assert auc.spread_b == pytest.approx(np.std(own, ddof=1), abs=1e-6)
    assert auc.difference == pytest.approx(auc.b - auc.a)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("split", "leave-one-out"),
        ("split_digest", "e" * 64),
        ("data_hash", "i" * 64),
        ("asked_events", "all of each query's newest window"),
        ("actions", {"kind": "bits", "names": ["like", "click"]}),
        ("test_queries", 29),
    ],
)
def test_runs_of_another_protocol_are_refused(tmp_path: Path, field: str, value: Any) -> None:
    logits = logits_of("bits", 1.0, 1)
    run_a, other = write_ranking(tmp_path / "a", logits), write_ranking(tmp_path / "b", logits, **{field: value})
    with pytest.raises(RunError, match=f"differ in '{field}': .* not comparable"):
        compare_runs(run_a, other)


def test_a_ranking_run_is_not_compared_with_a_retrieval_run(tmp_path: Path) -> None:
    ranking = write_ranking(tmp_path / "a", logits_of("bits", 1.0, 1))
    retrieval = write_run(tmp_path / "b", np.arange(400) % 50 + 1)
    for pair in ((ranking, retrieval), (retrieval, ranking)):
        with pytest.raises(RunError, match="differ in .* not comparable"):
            compare_runs(*pair)


def test_predictions_that_do_not_belong_to_the_run_are_refused(tmp_path: Path) -> None:
    logits = logits_of("bits", 1.0, 1)
    run_a, run_b = write_ranking(tmp_path / "a", logits), write_ranking(tmp_path / "b", logits)
    file = run_b / "predictions.parquet"
    table = parquet.read_table(file)
    swapped = table.set_column(3, "logit:click", arrow.array(-logits[:, 0]))
    parquet.write_table(swapped, file)
    with pytest.raises(RunError, match=r"predictions.parquet gives AUC .* metrics.json says"):
        compare_runs(run_a, run_b)
    others = table.set_column(1, "item_id", arrow.array(np.arange(len(logits)) + 1))
    parquet.write_table(others, file)
    with pytest.raises(RunError, match=r"holds other events \(item_id\)"):
        compare_runs(run_a, run_b)
    parquet.write_table(table.drop_columns("logit:like"), file)
    with pytest.raises(RunError, match="lacks the column logit:like"):
        compare_runs(run_a, run_b)
    file.write_bytes(b"PAR1 no more")
    with pytest.raises(RunError, match="cannot be read"):
        compare_runs(run_a, run_b)
