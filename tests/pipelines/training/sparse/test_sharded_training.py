"""A training whose item table is spread over two real processes: the same losses as one process and as plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.losses import Drawn, LossOptions
from models.sasrec import SASRec, SASRecOptions
from pipelines.data.loader import LoaderOptions, cut_windows
from pipelines.data.splits import make_split
from pipelines.training.distributed import World
from pipelines.training.guards import GuardOptions
from pipelines.training.optimizers import OptimizerOptions
from pipelines.training.signals import StopSignal
from pipelines.training.sparse import paged_items
from pipelines.training.sparse.options import EmbeddingOptions
from pipelines.training.sparse.trainer import ShardedTrainer
from pipelines.training.trainer import Trainer, TrainingData, TrainingOptions
from tests.pipelines.conftest import memory_store
from tests.pipelines.training.gang import run_gang
from tests.pipelines.training.test_trainer import Events

pytest.importorskip("torchrec", reason="extra hstu is not installed: entrypoints/setup.sh --hstu")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
]  # TorchRec takes 10 s to import, longer where cores are shared

ITEMS, WIDTH, LR = 20, 8, 0.05
NAMES = ("row_wise", "table_wise", "planned", "few_rows", "resumed", "saved_here")


def warm_up() -> None:
    """What the processes fork with."""
    import torchrec.distributed.planner  # noqa: F401


def settings(folder: Path, world: World | None, rows: int, options: dict[str, Any]) -> dict[str, Any]:
    store = memory_store([12] * 24)
    loader = LoaderOptions(max_length=6, windows="all", rows_per_batch=rows)
    return {
        "data": TrainingData(
            store, cut_windows(store, make_split(store, "leave-one-out").train, 6, "all"), loader, seed=1
        ),
        "options": TrainingOptions(**{"epochs": 2, "log_every": 1, **options}),
        "optimizer": OptimizerOptions(lr=LR),
        "guards": GuardOptions(stuck_epochs=0),
        "checkpoints": folder,
        "log": Events(),
        "validate": lambda: {"NDCG@10": 0.5},
        "stop": StopSignal(alone=False),
        "identity": "tiny",
        "world": world,
    }


def model(loss: str) -> SASRec:
    torch.manual_seed(0)
    return SASRec(
        ITEMS,
        SASRecOptions(
            hidden=WIDTH, heads=2, blocks=1, max_length=6, dropout=0.0, loss=LossOptions(name=loss, precision="float32")
        ),
    )


def every_item(*_: Any) -> Drawn:
    """All items as negatives: then the sampled softmax is the full one, which plain torch can compute."""
    return Drawn(torch.arange(1, ITEMS + 1), ITEMS)


def build(
    folder: Path,
    world: World | None,
    sharding: str = "row_wise",
    *,
    rows: int = 8,
    capacity: int = 0,
    **options: Any,
) -> ShardedTrainer:
    paged_items.draw_negatives = every_item  # type: ignore[attr-defined]
    return ShardedTrainer(
        model("sampled_softmax"),
        embedding=EmbeddingOptions(sharding=sharding, capacity=capacity),
        **settings(folder, world, rows, options),
    )


def losses(run: Trainer) -> list[float]:
    return [event["loss"] for event in run.log.of("train")]  # type: ignore[attr-defined]


def trained(run: Trainer) -> list[float]:
    with run.stop:
        run.run()
    return losses(run)


# --- what the processes do ---


def row_wise(world: World, folder: Path) -> list[Any]:
    run = build(folder / f"row-{world.size}", world)
    parts = sum(len(part) for _, part in run.table.local_parts())
    return [trained(run), parts, run.table.gather(), sorted(run.task.state_dict())]


def table_wise(world: World, folder: Path) -> list[Any]:
    run = build(folder / f"table-{world.size}", world, "table_wise")
    return [trained(run), sum(len(part) for _, part in run.table.local_parts()), run.table.gather()]


def planned(world: World, folder: Path) -> list[float]:
    return trained(build(folder / "auto", world, "auto", epochs=1))


def few_rows(world: World, folder: Path) -> list[float]:
    """One window a batch: a process has nothing in every one, and still has to answer."""
    return trained(build(folder / "few", world, rows=1, epochs=1))[:20]


def resumed(world: World, folder: Path) -> list[Any]:
    """Two processes go on from the checkpoint of two, after one epoch."""
    path = folder / "row-2" / "step-6"
    run = build(folder / "again", world)
    run.restore(path)
    return [trained(run)]


def saved_here(world: World, folder: Path) -> list[str]:
    names = {path.name for path in (folder / "row-2" / "tables").iterdir()}
    return sorted(names)


def alone_row_wise(world: World, folder: Path) -> list[Any]:
    return row_wise(world, folder)


def alone_few_rows(world: World, folder: Path) -> list[float]:
    return few_rows(world, folder / "alone")


def alone_resumed(world: World, folder: Path) -> list[Any]:
    """One process goes on from the checkpoint of two: its table is read from both parts."""
    run = build(folder / "alone-again", world)
    run.restore(folder / "row-2" / "step-6")
    return [trained(run)]


def managed(folder: Path) -> list[float]:
    run = build(folder, None, capacity=12, epochs=6)
    return trained(run)


# --- plain torch ---


class RowWiseAdagrad:
    """As the papers have it: one sum a row."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        self.weight, self.eps, self.sums = weight, eps, torch.zeros(len(weight))

    @torch.no_grad()
    def step(self, gradient: torch.Tensor) -> None:
        self.sums += gradient.square().mean(1)
        self.weight -= LR * gradient / (self.sums.sqrt() + self.eps)[:, None]


def plain(folder: Path, rows: int = 8, epochs: int = 2) -> tuple[list[float], torch.Tensor]:
    """The same training by the plain trainer, whose table is an nn.Embedding that Adam does not touch."""
    task = model("softmax")
    table = task.item_embedding.weight
    run = Trainer(task, **settings(folder, None, rows, {"epochs": epochs}))
    for group in run.optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if parameter is not table]
    adagrad, dense_step = RowWiseAdagrad(table, run.optimizer_options.eps), run.optimizer.step

    def step() -> None:
        assert table.grad is not None
        adagrad.step(table.grad)
        table.grad = None  # which Adam's zero_grad no longer knows
        dense_step()

    run.optimizer.step = step  # type: ignore[method-assign, assignment]
    return trained(run), table.detach()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    alone = ("alone_row_wise", "alone_few_rows", "alone_resumed")
    return run_gang(__name__, {2: NAMES, 1: alone}, folder)


def test_two_processes_train_as_plain_torch_does(answers: dict[str, list[Any]], tmp_path: Path) -> None:
    expected, table = plain(tmp_path)
    assert len(expected) == 12 and expected[-1] < 0.95 * expected[0]
    for name in ("row_wise", "table_wise"):
        first, second = answers[name]
        assert first[0] == second[0], "both processes hear the same loss"
        assert first[0] == pytest.approx(expected, rel=2e-5)
        assert torch.allclose(first[2], table, atol=2e-5)


def test_one_process_with_a_sharded_table_trains_as_two(answers: dict[str, list[Any]]) -> None:
    alone, two = answers["alone_row_wise"][0], answers["row_wise"][0]
    assert alone[0] == pytest.approx(two[0], rel=2e-5)
    assert alone[1] == ITEMS + 1
    assert answers["planned"][0] == pytest.approx(two[0][:6], rel=2e-5)


def test_the_table_is_spread_and_is_no_parameter_of_the_task(answers: dict[str, list[Any]]) -> None:
    assert [part[1] for part in answers["row_wise"]] == [11, 10]
    assert sorted(part[1] for part in answers["table_wise"]) == [0, 21]
    assert not [name for name in answers["row_wise"][0][3] if "item_embedding" in name]


def test_a_process_without_rows_keeps_nobody_waiting(answers: dict[str, list[Any]], tmp_path: Path) -> None:
    expected, _ = plain(tmp_path, rows=1, epochs=1)
    assert answers["few_rows"][0] == pytest.approx(expected[:20], rel=1e-4)
    assert answers["alone_few_rows"][0] == pytest.approx(expected[:20], rel=1e-4)


def test_two_and_one_go_on_from_the_checkpoint_of_two(answers: dict[str, list[Any]]) -> None:
    whole = answers["row_wise"][0][0]
    assert answers["resumed"][0][0] == whole[6:], "bit for bit"
    assert answers["alone_resumed"][0][0] == pytest.approx(whole[6:], rel=2e-5)
    assert answers["saved_here"][0] == ["step-12", "step-6"]
