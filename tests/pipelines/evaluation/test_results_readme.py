"""The README's tables come from the result files and agree with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import DataError
from pipelines.evaluation.results_readme import BEGIN, END, main
from tests.pipelines.evaluation.test_leaderboard_table import result

RESULT: dict[str, Any] = {
    "claim": "front-full-ranking", "value": 123456.7, "unit": "users/s", "target": 100_000, "met": True,
    "peer": {"topk|10": 0.5}, "command": "python x", "machine": {}, "versions": {}, "commit": "c", "runs": [1],
}  # fmt: skip


def checkout(tmp_path: Path, **changes: Any) -> Path:
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    result = {**RESULT, **changes}
    (folder / "front-full-ranking.json").write_text(json.dumps(result))
    missed = {**RESULT, "claim": "drift-delay", "value": 0.25, "target": None, "met": False, "peer": "none"}
    (folder / "drift-delay.json").write_text(json.dumps(missed))
    (tmp_path / "README.md").write_text(f"# Top\n{BEGIN}\nold\n{END}\nbottom\n")
    return tmp_path


def test_tables_are_written_and_then_agree(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    assert main(["--check"], root) == 1
    assert main([], root) == 0
    text = (root / "README.md").read_text()
    assert text.startswith(f"# Top\n{BEGIN}\n### The front door\n") and text.endswith(f"{END}\nbottom\n")
    row = "| [full ranking](benchmarks/results/front-full-ranking.json) | **123,457** users/s | 100,000 | yes | "
    assert row + "topk\\|10 0.5 |" in text.splitlines()
    assert (
        "| [delay](benchmarks/results/drift-delay.json) | **0.25** users/s | - | **no** | none |" in text.splitlines()
    )
    assert "old" not in text
    assert main(["--check"], root) == 0
    result = {**RESULT, "value": 99_000.0, "met": False}
    (root / "benchmarks/results/front-full-ranking.json").write_text(json.dumps(result))
    assert main(["--check"], root) == 1


@pytest.mark.parametrize(
    ("changes", "message"), [({"claim": "front-other"}, "the file says"), ({"claim": None}, "the claim is")]
)
def test_a_file_not_named_after_its_claim_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        main([], checkout(tmp_path, **changes))


def test_the_leaderboard_stands_among_the_results(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    assert main([], root) == 0
    text = (root / "README.md").read_text()
    assert "### Leaderboard\n\nNo runs yet. `recpod leaderboard RECIPE... --seeds 1,2,3`" in text
    board = root / "benchmarks" / "results" / "leaderboard"
    board.mkdir()
    (board / "r-seed-1.json").write_text(json.dumps(result()))
    assert main(["--check"], root) == 1
    assert main([], root) == 0
    text = (root / "README.md").read_text()
    assert "No runs yet" not in text and "95% bootstrap interval" in text
    assert "#### d · 3,706 items · loo-full · query time blind" in text
    assert "| r (m) | [1](benchmarks/results/leaderboard/r-seed-1.json) | 0.5000" in text
    assert main(["--check"], root) == 0
    (board / "r-seed-1.json").write_text(json.dumps(result(test={"HR@10": 0.5, "NDCG@10": 0.26})))
    assert main(["--check"], root) == 1


def test_missing_keys_and_markers_are_named(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    (root / "README.md").write_text(f"{END} {BEGIN}")
    with pytest.raises(DataError, match="once each"):
        main([], root)
    (root / "benchmarks/results/drift-delay.json").write_text(json.dumps({"claim": "drift-delay"}))
    with pytest.raises(DataError, match="lacks value, unit"):
        main([], root)


def test_this_readme_agrees_with_its_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().out
