"""Checkpoints are whole or absent, and the previous one survives."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.errors import RunError
from pipelines.training import checkpoint
from pipelines.training.checkpoint import (
    adopt_checkpoint,
    checkpoint_path,
    checkpoint_steps,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    sweep_checkpoints,
    table_path,
)


def test_round_trip(tmp_path: Path) -> None:
    state = {"weights": {"a": torch.arange(3.0)}, "state": {"step": 3, "finished": ""}, "rng": torch.get_rng_state()}
    loaded = load_checkpoint(save_checkpoint(tmp_path, 3, state))
    assert torch.equal(loaded["weights"]["a"], state["weights"]["a"])  # type: ignore[index]
    assert loaded["state"] == state["state"] and torch.equal(loaded["rng"], state["rng"])  # type: ignore[arg-type]


@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
def test_a_changed_byte_is_found(tmp_path: Path, file: str) -> None:
    path = save_checkpoint(tmp_path, 1, {"x": torch.ones(50)})
    content = bytearray((path / file).read_bytes())
    content[len(content) // 2] ^= 1
    (path / file).write_bytes(content)
    with pytest.raises(RunError, match=r"step-1: .*(corrupt|cannot be read)"):
        load_checkpoint(path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"x": 1})
    (path / "state.pt").unlink()
    with pytest.raises(RunError, match="cannot be read"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "kind", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Exception
) -> None:
    save_checkpoint(tmp_path, 1, {"x": torch.ones(3)})

    def full(*_: object) -> None:
        raise kind

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(RunError, match="step 2 could not be written .* step 1 is intact"):
        save_checkpoint(tmp_path, 2, {"x": torch.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert torch.equal(load_checkpoint(checkpoint_path(tmp_path, 1))["x"], torch.ones(3))


def test_a_checkpoint_without_its_manifest_is_none(tmp_path: Path) -> None:
    """What a bucket that renames file by file holds when the machine goes away meanwhile."""
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"x": 1})
    (tmp_path / "step-2" / "manifest.json").unlink()
    assert checkpoint_steps(tmp_path) == [1]
    save_checkpoint(tmp_path, 2, {"x": 2})
    assert checkpoint_steps(tmp_path) == [1, 2] and load_checkpoint(checkpoint_path(tmp_path, 2)) == {"x": 2}


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (5, 10, 100, 20):
        save_checkpoint(tmp_path, step, {})
    (tmp_path / ".writing-step-101").mkdir()  # what a killed process leaves
    prune_checkpoints(tmp_path, keep=2, best=5)
    assert checkpoint_steps(tmp_path) == [5, 20, 100]


def test_what_a_killed_process_left_is_cleared_and_brought_back(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"x": torch.ones(step)})
    (tmp_path / "step-2").rename(tmp_path / ".replaced-step-2")  # killed between the two renames
    shutil.copytree(tmp_path / "step-1", tmp_path / ".replaced-step-1")  # killed while the replaced one was deleted
    (tmp_path / ".writing-step-3").mkdir()
    sweep_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"]
    save_checkpoint(tmp_path, 1, {"x": torch.zeros(1)})
    assert torch.equal(load_checkpoint(tmp_path / "step-1")["x"], torch.zeros(1))


class Hidden:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_code_cannot_hide_in_a_checkpoint(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"x": Hidden(tmp_path / "made")})
    with pytest.raises(RunError, match="cannot be read"):
        load_checkpoint(path)
    assert not (tmp_path / "made").exists()


def test_spread_item_tables_go_where_their_checkpoints_go(tmp_path: Path) -> None:
    """One that is adopted brings its own and the best one's; those of newer checkpoints are moved aside."""
    for place, steps in (("here", (1, 5)), ("there", (2, 3))):
        for step in steps:
            save_checkpoint(tmp_path / place, step, {"step": step})
            table_path(tmp_path / place, f"step-{step}").mkdir(parents=True)
            (table_path(tmp_path / place, f"step-{step}") / "part").write_text(f"{place} {step}")
    path, aside = adopt_checkpoint(tmp_path / "here", tmp_path / "there" / "step-3", 2)
    assert aside is not None and path == tmp_path / "here" / "step-3"
    assert (table_path(aside, "step-5") / "part").read_text() == "here 5"
    kept = {part.parent.name: part.read_text() for part in (tmp_path / "here" / "tables").glob("*/part")}
    assert kept == {"step-1": "here 1", "step-2": "there 2", "step-3": "there 3"}
