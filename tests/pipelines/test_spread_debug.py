"""Debug mode where the item table or the blocks are spread: what one process alone can see ends both, no one waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.training.debug import DebugWatch
from pipelines.training.distributed import World
from pipelines.training.sparse.paged_items import PagedItems, PagedLoss
from tests.pipelines.recipe_runs import ran, write_recipes
from tests.pipelines.test_sharded_run import ROWS
from tests.pipelines.training.gang import run_gang

pytest.importorskip("torchrec", reason="extra hstu is not installed: entrypoints/setup.sh --hstu")
pytest.importorskip("megatron.core", reason="extra hstu is not installed: entrypoints/setup.sh --hstu")
# TorchRec and Megatron-Core take 10 s each to import, longer where cores are shared.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TENSOR, WATCHED, STEP = "parallel.tensor=2", "debug=true", 2


def warm_up() -> None:
    """What the processes fork with."""
    import torchrec.distributed.planner  # noqa: F401

    from pipelines.training.dense.megatron_linears import _layers

    _layers()


def from_step(number: int) -> Any:
    """A function that gives 1 until it has been called so often, then NaN."""
    calls = [0]

    def factor() -> float:
        calls[0] += 1
        return float("nan") if calls[0] > number else 1.0

    return factor


# --- what both do ---


def healthy(world: World, folder: Path) -> Any:
    return [ran(world, folder, f"healthy-{n}", WATCHED, *sets) for n, sets in enumerate(((ROWS,), (TENSOR,)))]


def own_columns(world: World, folder: Path) -> Any:
    """A gradient that the second process alone has: its columns of a block. The other one sees nothing."""
    attach, factor = DebugWatch.attach, from_step(STEP)

    def poisoned(self: DebugWatch, model: torch.nn.Module, optimizer: Any = None) -> None:
        weight = next(p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2)
        weight.register_hook(lambda gradient: gradient * factor())  # type: ignore[no-untyped-call]
        attach(self, model, optimizer)

    with pytest.MonkeyPatch.context() as patch:
        if world.rank == 1:
            patch.setattr(DebugWatch, "attach", poisoned)
        return ran(world, folder, "columns", WATCHED, TENSOR)


def own_rows(world: World, folder: Path) -> Any:
    """What the second process looks up is broken on its way: a module that has no parameters."""
    forward, factor = PagedItems.forward, from_step(STEP)
    with pytest.MonkeyPatch.context() as patch:
        if world.rank == 1:
            patch.setattr(PagedItems, "forward", lambda self, ids: forward(self, ids) * factor())
        return ran(world, folder, "rows", WATCHED, ROWS)


def own_page(world: World, folder: Path) -> Any:
    """The gradient of the rows themselves, which is no parameter's, as the loss gives it."""
    turn, factor = PagedLoss.turn, from_step(STEP)

    def poisoned(self: PagedLoss, items: torch.Tensor) -> None:
        turn(self, items)
        self.page.leaf.register_hook(lambda gradient: gradient * factor())  # type: ignore[no-untyped-call]

    with pytest.MonkeyPatch.context() as patch:
        if world.rank == 1:
            patch.setattr(PagedLoss, "turn", poisoned)
        return ran(world, folder, "page", WATCHED, ROWS)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("spread-debug")
    write_recipes(folder)
    return run_gang(__name__, {2: ("healthy", "own_columns", "own_rows", "own_page")}, folder, seconds=280)


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("own_columns", "gradient of parameter"),
        ("own_rows", "PagedItems 'item_embedding' (output"),
        ("own_page", "the loss function, outside any module"),
    ],
)
def test_both_end_in_the_same_line(answers: dict[str, list[Any]], name: str, origin: str) -> None:
    first, second = answers[name]
    assert isinstance(first, str) and first == second and "\n" not in first
    assert f"at step {STEP} on rank 1 of 2" in first and origin in first


def test_a_healthy_run_is_not_ended(answers: dict[str, list[Any]]) -> None:
    for runs in answers["healthy"]:
        assert all(isinstance(run, dict) and len(run["losses"]) == 6 for run in runs), runs
