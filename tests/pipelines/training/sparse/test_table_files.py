"""A table on disk: the one that is there outlives the writing of the same step again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import RunError
from pipelines.training.checkpoint import sweep_checkpoints, table_path
from pipelines.training.distributed import World
from pipelines.training.sparse import table_files
from pipelines.training.sparse.table_files import load_table, save_table


class Table:
    """What a sharded table shows of itself, here one plain tensor."""

    def __init__(self, value: float) -> None:
        self.weight = torch.full((3, 2), value)

    def state(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def check_loaded(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"]


def kept(folder: Path) -> float:
    """The number in the table of step 4."""
    table: Any = Table(0.0)
    load_table(table, folder, 4)
    return float(table.weight.unique())


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("end", [OSError(28, "No space left on device"), Killed()])
def test_a_table_stays_until_the_same_step_s_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    first, second = Table(1.0), Table(2.0)
    save_table(first, tmp_path, 4, World())  # type: ignore[arg-type]

    def half(state: Any, *, checkpoint_id: Path) -> None:
        checkpoint_id.mkdir(parents=True, exist_ok=True)
        (checkpoint_id / "__0_0.distcp").write_bytes(b"half")
        raise end

    with monkeypatch.context() as patch:
        patch.setattr(table_files, "save", half)
        said = pytest.raises(Killed) if isinstance(end, Killed) else pytest.raises(RunError, match="No space left")
        with said:
            save_table(second, tmp_path, 4, World())  # type: ignore[arg-type]
    assert kept(tmp_path) == 1.0
    sweep_checkpoints(tmp_path)
    assert [path.name for path in table_path(tmp_path, "").iterdir()] == ["step-4"] and kept(tmp_path) == 1.0
    save_table(second, tmp_path, 4, World())  # type: ignore[arg-type]
    assert kept(tmp_path) == 2.0


def test_a_table_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    save_table(Table(1.0), tmp_path, 4, World())  # type: ignore[arg-type]
    path = table_path(tmp_path, "step-4")
    path.rename(path.with_name(".replaced-step-4"))
    sweep_checkpoints(tmp_path)
    assert kept(tmp_path) == 1.0


def test_a_table_that_cannot_be_put_in_its_place_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table_files, "put_in_place", full)
    with pytest.raises(RunError, match="the item table of step-4 could not be written"):
        save_table(Table(1.0), tmp_path, 4, World())  # type: ignore[arg-type]
