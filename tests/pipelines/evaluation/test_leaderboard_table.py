"""The leaderboard's tables: one way of asking each, a row a configuration, baselines where they belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import RunError
from pipelines.evaluation.leaderboard_table import NOTE, read_records, tables


def result(**changes: Any) -> dict[str, Any]:
    card = {"catalogue_items": 3706, "name": "loo-full", "query_time": "blind", "ranking": "full", "masked": "nothing"}
    card |= {"ties": "worst", "test_queries": 6040, "split_digest": "a" * 64}
    found = {"HR@10": 0.5, "NDCG@10": 0.25}
    base = {"recipe": "r", "name": "r", "dataset": "d", "seed": 1, "model": {"name": "m"}, "test": found}
    base |= {"settings": "s", "file": "r-seed-1.json", "training": {"epochs": 7, "seconds": 90}}
    base["baselines"] = {"popularity": {"HR@10": 0.1, "NDCG@10": 0.05}, "popularity, last 7 days": found}
    base["intervals"] = {"test": {metric: [0.1, 0.9] for metric in found}}
    base["protocol"] = card | {key: changes.pop(key) for key in list(changes) if key in card or key == "engine"}
    return base | changes


def shown(*records: dict[str, Any]) -> str:
    return tables(records, heading="##", files="results/")


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "e"},
        {"catalogue_items": 3416},
        {"name": "loo-full-masked"},
        {"query_time": "aware"},
        {"split_digest": "b" * 64},
        {"ranking": "sampled"},
    ],
)
def test_numbers_asked_for_differently_never_share_a_table(change: dict[str, Any]) -> None:
    assert shown(result(), result(seed=2)).count("## ") == 1
    assert shown(result(), result(**change)).count("## ") == 2


def test_a_table_names_catalogue_protocol_and_query_time() -> None:
    table = shown(result())
    assert table.startswith("## d · 3,706 items · loo-full · query time blind\n")
    assert "6,040 test queries, ranking full, masked: nothing; ties worst; split `aaaaaaaaaaaa`." in table
    cells = ["r (m)", "[1](results/r-seed-1.json)", "0.5000 [0.1000, 0.9000]", "0.2500 [0.1000, 0.9000]", "7", "1.5"]
    assert f"| {' | '.join(cells)} |" in table


def test_seeds_of_a_configuration_are_a_row_and_others_are_told_apart() -> None:
    """Means .25 and .30: the standard deviation of two values is their distance over the root of two."""
    second = result(seed=2, file="b.json", test={"HR@10": 0.6, "NDCG@10": 0.30})
    second["intervals"] = {"test": {"HR@10": [0.1, 0.9], "NDCG@10": [0.2, 0.4]}}
    assert "| r (m) | [1](results/r-seed-1.json), [2](results/b.json) | 0.5500 ± 0.0707 [0.1000, 0.9000] | " in (
        shown(second, result())
    )
    assert "0.2750 ± 0.0354 [0.1500, 0.6500]" in shown(second, result())
    apart = shown(result(), {**second, "settings": "t", "name": "r-wide"})
    assert apart.index("| r (m), r-wide | [2]") < apart.index("| r (m), r | [1]")  # best first


def test_the_baseline_that_is_told_the_time_stands_with_those_that_are() -> None:
    assert "| *popularity* | - | 0.1000 | 0.0500 | - | - |" in shown(result())
    assert "last 7 days" not in shown(result())
    assert "told when it is asked stands below models that are told it too, and nowhere else" in NOTE
    older = result(baselines={}, seed=2)  # a run from before there were any
    assert "| *popularity* | - | 0.1000 | 0.0500 | - | - |" in shown(older, result())
    assert "| *popularity, last 7 days* | - | 0.5000 | 0.2500 | - | - |" in shown(result(query_time="aware"))


def test_engines_share_a_table_and_are_named() -> None:
    theirs = result(engine="recbole", settings="t", test={"HR@10": 0.6, "NDCG@10": 0.3})
    table = shown(result(), theirs)
    assert table.count("## ") == 1 and table.index("r (recbole m)") < table.index("r (m)")
    assert "0.3000 [0.1000, 0.9000]" in table  # one seed has no spread


def test_a_seed_counts_once_and_other_files_are_refused(tmp_path: Path) -> None:
    for name, one in (("a", result()), ("b", result(seed=2)), ("c", result(settings="t"))):
        (tmp_path / f"{name}.json").write_text(json.dumps(one))
    assert [one["file"] for one in read_records(tmp_path)] == ["a.json", "b.json", "c.json"]
    (tmp_path / "d.json").write_text(json.dumps(result()))
    with pytest.raises(RunError, match="d.json: a.json is a run of the same configuration and seed"):
        read_records(tmp_path)
    (tmp_path / "d.json").write_text("{}")
    with pytest.raises(RunError, match="d.json: this is no leaderboard result, it lacks 'baselines'"):
        read_records(tmp_path)


def ranking_result(**changes: Any) -> dict[str, Any]:
    """One of a ranking model: two bits, of which ``like`` has no AUC."""
    card = {"catalogue_items": 7551, "name": "ranking-users", "query_time": "blind", "ranking": "none", "ties": "half"}
    card |= {"test_queries": 604, "split_digest": "c" * 64, "asked_events": "the newest 20 of each query"}
    card |= {"asked_at_most": 20, "actions": {"kind": "bits", "names": ["click", "like"]}}
    found = {"AUC": 0.7, "GAUC": 0.65, "AUC:click": 0.7, "GAUC:click": 0.65, "LogLoss": 0.4}
    base = {"recipe": "k", "name": "k", "dataset": "k", "seed": 1, "model": {"name": "hstu-ranking"}, "test": found}
    base |= {"settings": "s", "file": "k-seed-1.json", "training": {"epochs": 2, "seconds": 60}}
    base["baselines"] = {"item average": {"AUC": 0.6, "AUC:click": 0.6, "LogLoss": 0.5}}
    base["intervals"] = {"test": {"AUC": [0.68, 0.72], "GAUC": [0.6, 0.7], "AUC:click": [0.68, 0.72]}}
    base["protocol"] = card | {key: changes.pop(key) for key in list(changes) if key in card}
    return base | changes


def test_a_ranking_table_has_auc_of_all_and_of_each_task() -> None:
    better = ranking_result(seed=2, file="b.json", settings="t", recipe="l", test={"AUC": 0.8, "AUC:click": 0.8})
    second = ranking_result(seed=3, file="k-3.json", test={"AUC": 0.72, "GAUC": 0.67, "AUC:click": 0.72})
    table = shown(ranking_result(), better, second)
    assert table.startswith("## k · 7,551 items · ranking-users · query time blind\n")
    assert "604 test users, asked about the newest 20 of each query (at most 20 events)" in table
    assert "| recipe (model) | seeds | AUC | GAUC | AUC:click | epochs | minutes |" in table
    rows = [line for line in table.splitlines() if "| [" in line]
    assert rows[0].startswith("| l (hstu-ranking) | [2](results/b.json) | 0.8000 [0.6800, 0.7200] | - | 0.8000 | ")
    cells = ["0.7100 ± 0.0141 [0.6800, 0.7200]", "0.6600 ± 0.0141 [0.6000, 0.7000]", "0.7100 ± 0.0141", "2", "1.0"]
    assert rows[1].endswith(f"| {' | '.join(cells)} |")
    assert "| *item average* | - | 0.6000 | - | 0.6000 | - | - |" in table


@pytest.mark.parametrize(
    "change",
    [{"asked_at_most": 50}, {"asked_events": "all"}, {"actions": {"kind": "bits", "names": ["click"]}}],
)
def test_ranking_models_that_were_asked_differently_never_share_a_table(change: dict[str, Any]) -> None:
    assert shown(ranking_result(), ranking_result(seed=2)).count("## ") == 1
    assert shown(ranking_result(), ranking_result(**change)).count("## ") == 2
    assert shown(ranking_result(), result()).count("## ") == 2
