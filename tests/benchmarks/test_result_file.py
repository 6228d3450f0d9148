"""A result file holds every key, says how to repeat itself without a private path, and refuses what is no result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.result_file import RESULTS, write_result
from pipelines.errors import ConfigError

KEYS = ["claim", "value", "unit", "target", "met", "peer", "command", "machine", "versions", "commit", "runs"]


def write(folder: Path, **changes: object) -> Path:
    values: dict = {"claim": "front-example", "value": 1.5, "unit": "s", "target": "<= 2", "met": True, "peer": "none"}
    values |= {"command": "python -m benchmarks.example", "runs": [1.4, 1.5], "folder": folder}
    return write_result(**values | changes)


def test_every_key_is_there(tmp_path: Path) -> None:
    path = write(tmp_path / "results")
    result = json.loads(path.read_text())
    assert path.name == "front-example.json"
    assert list(result) == KEYS
    assert (result["value"], result["met"], result["runs"]) == (1.5, True, [1.4, 1.5])
    assert result["machine"]["cores"] >= 1
    assert result["versions"]["torch"].startswith("2.")


def test_a_private_mirror_is_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPOD_MIRROR", "/private/mirror")
    result = json.loads(write(tmp_path, command="RECPOD_MIRROR=/private/mirror ./run").read_text())
    assert result["command"] == "RECPOD_MIRROR=$RECPOD_MIRROR ./run"


@pytest.mark.parametrize("changes", [{"claim": "backdoor-example"}, {"claim": "front-../x"}, {"target": "360"}])
def test_no_direction_or_part_is_refused(tmp_path: Path, changes: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        write(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path, value=float("nan"))


def test_committed_results_are_whole() -> None:
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        assert set(result) == set(KEYS), path.name
        assert result["claim"] == path.stem
        assert isinstance(result["met"], bool), path.name
