"""What does not fit a spread table or spread blocks: one line with the place, code 2, in every process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.registry import build_model
from pipelines import cli, run_stages, stages
from pipelines.config import load_config
from pipelines.errors import ConfigError, RecPodError
from pipelines.training.distributed import World
from pipelines.training.sparse import trainer as sparse_trainer
from pipelines.training.sparse.table_files import check_shared
from tests.pipelines.recipe_runs import as_launched, ran, write_recipes
from tests.pipelines.training.gang import ROOT, run_gang

pytestmark = pytest.mark.timeout(120)

ROWS = "embedding.sharding=row_wise"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    write_recipes(folder)
    lines = (folder / "clicks.csv").read_text().splitlines()
    (folder / "fewer.csv").write_text("\n".join(lines[:-12]) + "\n")
    (folder / "single.csv").write_text("\n".join([lines[0], *lines[1::12]]) + "\n")  # one event of each user
    damaged = load_config(folder / "tiny.yaml", [f"dataset.cache={folder}/damaged"])
    path = run_stages.prepare(damaged).store.path / "items.npy"
    items = np.load(path)
    items[17] = 21
    np.save(path, items)
    return folder


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["parallel.tensor=3"], "--set parallel.tensor=3: 'parallel.tensor': 3 does not divide the 4 heads"),
        (["model=sasrec", "parallel.tensor=2"], "--set parallel.tensor=2: 'parallel.tensor': sasrec has no tensor"),
        (["parallel.sequence=true"], "parallel.sequence: tokens are spread over the processes of a block"),
        (["parallel.tensr=2"], "--set parallel.tensr=2: unknown key 'parallel.tensr'. did you mean 'tensor'?"),
        ([ROWS, "training.grad_clip=1"], "--set training.grad_clip=1: 'training.grad_clip': a sharded table steps"),
        ([ROWS, "training.accumulate=2"], "--set training.accumulate=2: 'training.accumulate': a sharded table"),
        ([ROWS, "model.loss.name=softmax"], "--set model.loss.name=softmax: 'model.loss.name': softmax multiplies"),
        ([ROWS, "optimizer.item_l2=0.1"], "--set optimizer.item_l2=0.1: 'optimizer.item_l2': row-wise Adagrad adds"),
        (["engine.name=recbole", ROWS], "'embedding.sharding': not used with --engine recbole. leave it away."),
        (["engine.name=recbole", "parallel.tensor=2"], "'parallel.tensor': not used with --engine recbole"),
        ([ROWS, "training.cuda_graph=true"], "'training.cuda_graph': rows or sums travel between processes"),
        (["parallel.tensor=2", "training.cuda_graph=true"], "'training.cuda_graph': rows or sums travel"),
        (["embedding.capacity=12"], "embedding.capacity: managed ids are spread by rows"),
        (["embedding.lr_scale=2"], "embedding.lr_scale: 2.0 changes nothing without embedding.sharding"),
        ([ROWS, "embedding.eviction=lfu"], "embedding.eviction: lfu changes nothing without embedding.capacity"),
        ([ROWS, "embedding.eviction_interval=2"], "embedding.eviction_interval: 2 changes nothing without"),
    ],
)
def test_what_does_not_go_together_is_refused_when_the_recipe_is_read(folder: Path, sets: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(folder / "tiny.yaml", sets)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("spread", [ROWS, "parallel.tensor=2"])
def test_one_process_does_not_time_what_is_spread(
    folder: Path, capsys: pytest.CaptureFixture[str], spread: str
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["estimate", str(folder / "tiny.yaml"), "--measure", "--seconds", "0.1", "--set", spread])
    assert left.value.code == 2
    said = f"error: {spread.partition('=')[0]}: --measure times one process that holds the whole model"
    assert capsys.readouterr().err.strip().startswith(said)


def test_a_line_of_a_file_is_named(folder: Path) -> None:
    path = folder / "wrong.yaml"
    path.write_text("extends: tiny.yaml\nmodel:\n  heads: 2\nparallel:\n  tensor: 4\n")
    with pytest.raises(ConfigError, match=r"wrong\.yaml:5: 'parallel\.tensor': 4 does not divide the 2 heads"):
        load_config(path)


def test_what_decides_the_weights_is_in_a_run_s_identity(folder: Path) -> None:
    def identity(*sets: str) -> str:
        return load_config(folder / "tiny.yaml", sets).identity()

    plain, rows = identity(), identity(ROWS)
    assert plain == identity("parallel.tensor=2") == identity("loader.deal=tokens", "loader.resident=off")
    assert rows != plain and rows == identity("embedding.sharding=table_wise")
    others = {identity(ROWS, more) for more in ("embedding.lr_scale=2.0", "embedding.capacity=12")}
    others |= {identity(ROWS, "embedding.capacity=12", "embedding.eviction=lfu"), identity("loader.deal=attention")}
    assert len(others | {plain, rows}) == 6


def test_a_table_that_will_be_spread_never_lies_on_the_device_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts do, on the device of the other weights."""
    made: list[torch.device] = []

    class Table:
        width = 16

        def __init__(self, rows: int, width: int, options: Any, *, device: torch.device, eps: float) -> None:
            made.append(device)

        def fill(self, weight: torch.Tensor) -> None:
            assert weight.device.type == "cpu"

    monkeypatch.setattr(sparse_trainer, "ShardedTable", Table)
    for sets, where in (([ROWS], "cpu"), ([], "meta")):
        config = load_config(folder / "tiny.yaml", sets)
        task = build_model("hstu", 20, config.model_options())
        names = [name for name, _ in task.named_parameters()]
        task = stages.on_device(task, config, torch.device("meta"))
        devices = {name: parameter.device.type for name, parameter in task.named_parameters()}
        assert list(devices) == names and devices.pop("item_embedding.weight") == where
        assert set(devices.values()) == {"meta"}
        if sets:
            sparse_trainer.ShardedItems(task, config.embedding, config.optimizer)
    assert made == [torch.device("meta")]


# --- what two processes do ---


def groups_of_four(world: World, folder: Path) -> Any:
    return ran(world, folder, "groups", "parallel.tensor=4")


def odd_capacity(world: World, folder: Path) -> Any:
    return ran(world, folder, "odd", ROWS, "embedding.capacity=7")


def unequal_data(world: World, folder: Path) -> Any:
    file = ("clicks", "fewer")[world.rank]
    return ran(world, folder, "unequal", f"dataset.name={folder}/{file}.csv")


def item_outside(world: World, folder: Path) -> Any:
    return ran(world, folder, "outside", f"dataset.cache={folder}/damaged")


def item_outside_of_ranking(world: World, folder: Path) -> Any:
    """One process' store alone is damaged, as on another node's disk."""
    where = folder / f"disk-{world.rank}"
    prepared = run_stages.prepare(load_config(folder / "ranking.yaml", [f"dataset.cache={where}"]))
    if world.rank == 1:
        path = prepared.store.path / "items.npy"
        items = np.load(path)
        items[3] = -1
        np.save(path, items)
    return ran(world, folder, "half", f"dataset.cache={where}", recipe="ranking")


def a_disk_each(world: World, folder: Path) -> Any:
    """Nodes that share no folder: each would write its part of the table where the other does not look."""
    as_launched(world)
    own = folder / f"node-{world.rank if world.rank else 'first'}"
    own.mkdir()
    found = []
    for place in (folder / "shared", own):
        try:
            found.append(check_shared(place, world))
        except RecPodError as error:
            found.append(f"{error.exit_code} {error.what}. {error.fix}")
    return [*found, sorted(path.name for path in folder.glob("*/tables/.*"))]


def one_compiler(world: World, folder: Path) -> Any:
    """One node alone has no compiler for ``training.compile``."""
    with pytest.MonkeyPatch.context() as patch:
        if world.rank == 1:
            patch.setattr(shutil, "which", lambda name: None)
        return ran(world, folder, "compiled", "model=sasrec", "model.hidden=16", "training.compile=true")


def one_item_each(world: World, folder: Path) -> Any:
    return ran(world, folder, "single", f"dataset.name={folder}/single.csv")


NAMES = ("groups_of_four", "odd_capacity", "unequal_data", "item_outside", "item_outside_of_ranking", "one_item_each")
NAMES += ("a_disk_each", "one_compiler")


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, list[Any]]:
    return run_gang(__name__, {2: NAMES}, folder, seconds=100)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("groups_of_four", "2 parallel.tensor: 2 processes cannot make groups of 4. start a multiple of 4"),
        ("odd_capacity", "2 embedding.capacity: 7 rows do not divide over 2 processes. choose a multiple of 2."),
        ("unequal_data", "2 unequal: the nodes have different data or another configuration."),
        ("item_outside", "/items.npy: event 17 is of item 21, the catalogue has items 1 to 20."),
        ("item_outside_of_ranking", "/items.npy: event 3 is of item -1, the catalogue has items 1 to 12."),
        ("one_item_each", "2 "),
        ("one_compiler", "2 training.compile: torch.compile needs a C++ compiler and finds none."),
    ],
)
def test_both_processes_say_the_same_line(answers: dict[str, list[Any]], name: str, said: str) -> None:
    first, second = answers[name]
    assert isinstance(first, str) and first == second and first.startswith("2 ")
    assert said in first and "\n" not in first


def test_nodes_must_share_the_folder_of_a_spread_table(answers: dict[str, list[Any]]) -> None:
    first, second = answers["a_disk_each"]
    said = "2 not every process sees this folder, into which each writes its part of the item table. "
    assert first == second == [None, f"{said}set runs to a folder that all nodes share", []]


def test_one_item_alone_is_no_sequence(answers: dict[str, list[Any]]) -> None:
    assert "event" in answers["one_item_each"][0]


def test_the_launcher_leaves_with_two(folder: Path) -> None:
    variables = {**os.environ, "RECPOD_VENV": "nowhere", "RECPOD_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [ROOT / "entrypoints/launch.sh", "--processes", "2", "--", "train", "tiny.yaml", "--set", "parallel.tensor=4"],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    said = "error: parallel.tensor: 2 processes cannot make groups of 4"
    assert done.returncode == 2 and done.stderr.count(said) == 1, done.stderr
