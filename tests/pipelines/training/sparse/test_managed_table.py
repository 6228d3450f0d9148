"""A table for ids that nobody has numbered, over two real processes: rows come, stay, change hands and are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import RunError
from pipelines.training.distributed import World
from pipelines.training.sparse.options import EmbeddingOptions
from pipelines.training.sparse.table_files import load_table, save_table
from tests.pipelines.training.gang import run_gang

pytest.importorskip("torchrec", reason="extra hstu is not installed: entrypoints/setup.sh --hstu")
# TorchRec takes 10 s to import, longer where cores are shared.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

WIDTH, OLD, NEW = 4, [7, 3_000_000_007, 2**61 + 5], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]


def warm_up() -> None:
    """What the processes fork with."""
    import torchrec.distributed.planner  # noqa: F401


def make(capacity: int = 8) -> Any:
    from pipelines.training.sparse.managed_table import ManagedTable

    options = EmbeddingOptions("row_wise", capacity=capacity, eviction="lru")
    return ManagedTable(24, WIDTH, options, device=torch.device("cpu"), eps=1e-8)


def admit(table: Any, ids: list[int], lr: float = 0.0) -> torch.Tensor:
    """Look ``ids`` up and train them towards 1, in both processes; what they were."""
    fetched = table.fetch(torch.tensor(ids), lr)
    vectors = fetched.detach().clone()
    table.step(fetched, -torch.ones_like(fetched))
    return vectors


# --- what the processes do ---


def coming_and_going(world: World, folder: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(world.rank)
    table = make()
    answer = {"first": admit(table, OLD, lr=1.0), "second": admit(table, OLD), "third": admit(table, OLD)}
    for _ in range(3):  # more ids than rows: the old ones are longest unseen
        admit(table, NEW)
    answer["back"] = admit(table, OLD)
    answer["sums"] = torch.cat([shard.tensor for shard in table.state()["item.momentum1"].local_shards()])
    return answer


def kept_on_disk(world: World, folder: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(world.rank)
    table = make()
    admit(table, [1, 2, 3], lr=1.0)
    expected = table.gather()
    save_table(table, folder, 1, world)
    again = make()
    load_table(again, folder, 1)
    return {"expected": expected, "again": again.gather()}


def read_by_another_number(world: World, folder: Path) -> str:
    try:
        load_table(make(), folder, 1)
    except RunError as error:
        return str(error)
    return "nothing was said"


def trained(world: World, folder: Path) -> list[float]:
    """A whole training with fewer rows than items, alone."""
    from tests.pipelines.training.sparse.test_sharded_training import managed

    return managed(folder / "whole")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    plan = {2: ("coming_and_going", "kept_on_disk"), 1: ("read_by_another_number", "trained")}
    return run_gang(__name__, plan, tmp_path_factory.mktemp("managed"))


def test_an_id_keeps_the_row_that_it_got(answers: dict[str, list[Any]]) -> None:
    for own in answers["coming_and_going"]:
        moved = own["second"] - own["first"]
        assert torch.allclose(moved, torch.ones_like(moved), atol=1e-5), "row-wise Adagrad's first step is the rate"
        assert torch.equal(own["third"], own["second"])
    assert torch.equal(*(own["second"] for own in answers["coming_and_going"])), "one row for both processes"


def test_ids_of_any_size_do_not_meet(answers: dict[str, list[Any]]) -> None:
    first = answers["coming_and_going"][0]["first"]
    assert all(not torch.equal(first[a], first[b]) for a in range(3) for b in range(a))


def test_the_longest_unseen_gives_its_row_up_and_comes_back_as_new(answers: dict[str, list[Any]]) -> None:
    for own in answers["coming_and_going"]:
        assert (own["back"].abs() < 0.2).all(), "what it had learnt is gone with its row"


def test_rows_and_who_has_them_are_saved(answers: dict[str, list[Any]]) -> None:
    for own in answers["kept_on_disk"]:
        assert torch.equal(own["again"], own["expected"])
        assert (own["expected"][1:4] > 0.5).all() and (own["expected"][4:].abs() < 0.2).all()


def test_another_number_of_processes_is_refused(answers: dict[str, list[Any]]) -> None:
    assert answers["read_by_another_number"] == [
        "embedding.capacity: managed ids of 2 processes, 1 are here. go on with 2 processes."
    ]


def test_a_model_trains_on_a_table_with_fewer_rows_than_items(answers: dict[str, list[Any]]) -> None:
    (losses,) = answers["trained"]
    assert len(losses) == 36 and losses[-1] < 0.98 * losses[0]
