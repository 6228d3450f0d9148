"""Two nodes against one process, in a tiny mode, over whatever network can be made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import two_nodes


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_nodes_have_the_losses_of_one_process(tmp_path: Path) -> None:
    two_nodes.main(["--epochs", "1", "--users", "40", "--repeats", "1", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "container-two-nodes.json").read_text())
    assert result["met"] and result["value"] <= 1e-6 and result["runs"]["updates"] >= 2
    assert result["runs"]["between"].startswith("two ")
    assert result["runs"]["float32_rounding_of_one_process"] > result["value"]


def test_a_difference_is_the_largest_and_a_short_run_is_none() -> None:
    assert two_nodes.largest_difference([1.0, 2.0, 4.0], [1.0, 2.1, 4.1]) == pytest.approx(0.05)
    with pytest.raises(SystemExit, match="2 losses against 1"):
        two_nodes.largest_difference([1.0, 2.0], [1.0])
