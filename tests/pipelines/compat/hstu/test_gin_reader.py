"""Gin files are read as gin itself reads them; a mistake names file, line and field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gin
import pytest

from pipelines.compat.hstu.gin_classes import (
    CLASSES,
    BenchmarkDatasetArgs,
    DatasetArgs,
    FeatureArgs,
    NetworkArgs,
    OptimizerArgs,
    RankingArgs,
    RetrievalArgs,
    TensorModelParallelArgs,
    TrainerArgs,
)
from pipelines.compat.hstu.gin_reader import GinFile, read_gin
from pipelines.errors import ConfigError

FILES = sorted((Path(__file__).parent / "gin").glob("*.gin"))
ROOTS = (TrainerArgs, DatasetArgs, BenchmarkDatasetArgs, NetworkArgs, OptimizerArgs, TensorModelParallelArgs)
ROOTS += (RankingArgs, RetrievalArgs)
TWO = "TrainerArgs.train_batch_size = 4\nTrainerArgs.eval_batch_size = 5\n"


def read(folder: Path, text: str, name: str = "f.gin") -> GinFile:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_gin(path)


@pytest.fixture(scope="module")
def gins_own() -> Iterator[dict[str, Any]]:
    """Our classes, registered with gin itself."""
    with gin.unlock_config():
        yield {name: gin.external_configurable(kind, name=name) for name, kind in CLASSES.items()}
    gin.clear_config()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_objects_are_those_that_gin_makes(path: Path, gins_own: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.chdir(path.parent)  # gin looks for included files from where it runs
    gin.clear_config()
    gin.parse_config_file(str(path))
    ours = read_gin(path)
    bound = [kind for kind in ROOTS if ours.bound(kind)]
    assert bound
    for kind in bound:
        theirs = gins_own[kind.__name__]()
        mine = ours.get(kind)
        for name, value in vars(mine).items():
            expected = getattr(theirs, name)
            assert type(value)(expected) == value if isinstance(value, (list, tuple)) else expected == value, name


RULES = """
batch = 6
TrainerArgs:
  train_batch_size = %batch
  eval_batch_size = 7  # replaced below
TrainerArgs.eval_batch_size = 8
FeatureArgs.max_sequence_length = 3
a/FeatureArgs.feature_names = ['x']
a/b/FeatureArgs.feature_names = ['y']
BenchmarkDatasetArgs.feature_args = [@a/FeatureArgs(), @a/b/FeatureArgs(), @a/FeatureArgs()]
BenchmarkDatasetArgs.embedding_args = []
BenchmarkDatasetArgs.item_feature_name = 'it' 'em'
BenchmarkDatasetArgs.contextual_feature_names = []
"""


def test_macros_blocks_scopes_and_later_bindings_mean_what_gin_has_them_mean(
    tmp_path: Path, gins_own: dict[str, Any]
) -> None:
    file = read(tmp_path, RULES)
    gin.clear_config()
    gin.parse_config_file(str(file.path))
    trainer, data = file.get(TrainerArgs), file.get(BenchmarkDatasetArgs)
    assert trainer == gins_own["TrainerArgs"]() and (trainer.train_batch_size, trainer.eval_batch_size) == (6, 8)
    assert data == gins_own["BenchmarkDatasetArgs"]()
    assert [feature.feature_names for feature in data.feature_args] == [["x"], ["y"], ["x"]]


def test_a_field_knows_where_it_was_bound(tmp_path: Path) -> None:
    (tmp_path / "below.gin").write_text("\n\nTrainerArgs.seed = 5\n")
    file = read(tmp_path, f"include 'below.gin'\n{TWO}")
    trainer = file.get(TrainerArgs)
    assert file.origin(trainer, "eval_batch_size") == f"{tmp_path}/f.gin:3: TrainerArgs.eval_batch_size"
    assert file.origin(trainer, "seed") == f"{tmp_path}/below.gin:3: TrainerArgs.seed" and trainer.seed == 5
    assert file.given(trainer, "seed") and not file.given(trainer, "profile")


def test_an_included_file_is_looked_for_where_gin_runs_first(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "one.gin").write_text("TrainerArgs.seed = 1\n")
    (tmp_path / "here" / "one.gin").write_text("TrainerArgs.seed = 2\n")
    monkeypatch.chdir(tmp_path / "here")
    assert read(tmp_path, f"include 'one.gin'\n{TWO}").get(TrainerArgs).seed == 2
    monkeypatch.chdir("/")
    assert read(tmp_path, f"include 'one.gin'\n{TWO}").get(TrainerArgs).seed == 1


BAD = {
    "TrainrArgs.seed = 1": ":1: unknown class 'TrainrArgs'. did you mean 'TrainerArgs'?",
    "\nTrainerArgs.train_batchsize = 1": ":2: TrainerArgs has no field 'train_batchsize'. "
    "did you mean 'train_batch_size'?",
    "\nTrainerArgs.train_batch_size = 1": ":2: TrainerArgs.eval_batch_size is missing",
    f"{TWO}TrainerArgs.seed = 1.5": ":3: TrainerArgs.seed: 1.5 is not a whole number",
    f"{TWO}TrainerArgs.seed = True": ":3: TrainerArgs.seed: True is not a whole number",
    f"{TWO}TrainerArgs.profile = 1": ":3: TrainerArgs.profile: 1 is not True or False",
    f"{TWO}TrainerArgs.max_eval_iters = 'x'": ":3: TrainerArgs.max_eval_iters: 'x' is not a whole number or None",
    f"{TWO}TrainerArgs.pipeline_type = 'fast'": ":3: TrainerArgs.pipeline_type: 'fast' is not one of none, native",
    f"{TWO}TrainerArgs.seed = %number": ":3: unknown macro '%number'",
    f"{TWO}x = %y\ny = %x\nTrainerArgs.seed = %x": "stands for itself",
    f"{TWO}TrainerArgs.seed = @NetworkArgs": ":3: @NetworkArgs is a class, not an object. write @NetworkArgs()",
    f"{TWO}TrainerArgs.seed = @a/NetworkArg()": ":3: unknown class 'NetworkArg'",
    f"{TWO}TrainerArgs.seed = @TrainerArgs()": "refer to each other in a ring",
    "TrainerArgs.seed =": ":1: not valid gin: Unable to parse value",
    "TrainerArgs.seed = [1,": "not valid gin",
    "TrainerArgs.seed 5": ":1: not valid gin: Couldn't parse statement",
    "TrainerArgs.seed = abc": ":1: not valid gin: Failed to parse token 'abc'",
    "TrainerArg:\n  seed = 1": ":1: unknown class 'TrainerArg'",
    "import os": ":1: modules are not imported ('os')",
    "include 'nowhere.gin'": ":1: there is no 'nowhere.gin' to include",
    "include 'f.gin'": "include each other in a ring",
}


@pytest.mark.parametrize("text", BAD)
def test_a_mistake_is_one_line_with_file_and_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text).get(TrainerArgs)
    assert BAD[text] in str(caught.value) and "\n" not in str(caught.value)
    assert str(tmp_path / "f.gin") in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent.gin: cannot be read"):
        read_gin(tmp_path / "absent.gin")
    (tmp_path / "binary.gin").write_bytes(b"\xff\xfe\x00")
    marked = tmp_path / "marked.gin"
    marked.write_bytes(b"\xef\xbb\xbfNetworkArgs.num_layers = 3\r\n")  # as Windows editors write it
    assert read_gin(marked).bindings["", "NetworkArgs", "num_layers"].value == 3
    with pytest.raises(ConfigError, match="binary.gin: is not UTF-8"):
        read_gin(tmp_path / "binary.gin")


def test_values_take_the_types_that_the_scripts_take(tmp_path: Path) -> None:
    text = f"{TWO}TrainerArgs.max_train_iters = '12'\nNetworkArgs.num_layers = 1\nNetworkArgs.hidden_size = 2\n"
    text += "NetworkArgs.num_attention_heads = 1\nNetworkArgs.kv_channels = 2\nNetworkArgs.hidden_dropout = 0\n"
    text += "NetworkArgs.kernel_backend = 'CUTLASS'\nRankingArgs.prediction_head_arch = (4, 5)\n"
    text += "RankingArgs.eval_metrics = ['AUC']\n"
    file = read(tmp_path, text)
    assert file.get(TrainerArgs).max_train_iters == 12
    network, ranking = file.get(NetworkArgs), file.get(RankingArgs)
    assert isinstance(network.hidden_dropout, float) and network.kernel_backend == "cutlass"
    assert ranking.prediction_head_arch == [4, 5] and ranking.eval_metrics == ("AUC",)


def test_what_nothing_refers_to_is_named(tmp_path: Path) -> None:
    file = read(tmp_path, f"{TWO}lost/FeatureArgs.feature_names = ['x']\n")
    file.get(TrainerArgs)
    assert file.unused() == [f"{tmp_path}/f.gin:3: lost/FeatureArgs is not used: nothing refers to it"]


def test_one_object_stands_for_one_scope(tmp_path: Path) -> None:
    text = "a/FeatureArgs.feature_names = ['x']\na/FeatureArgs.max_sequence_length = 2\n"
    text += "BenchmarkDatasetArgs.feature_args = [@a/FeatureArgs()]\nBenchmarkDatasetArgs.embedding_args = []\n"
    text += "BenchmarkDatasetArgs.item_feature_name = 'x'\nBenchmarkDatasetArgs.contextual_feature_names = []\n"
    file = read(tmp_path, text)
    feature = file.get(BenchmarkDatasetArgs).feature_args[0]
    assert isinstance(feature, FeatureArgs)
    assert file.origin(feature, "max_sequence_length") == f"{tmp_path}/f.gin:2: a/FeatureArgs.max_sequence_length"
