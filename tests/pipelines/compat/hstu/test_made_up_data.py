"""Made-up data of a gin file: how they are drawn, and the tables that their features lie in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.compat.hstu.translate import to_config, translate
from pipelines.config import RunConfig
from pipelines.data.datasets import load_dataset_spec
from pipelines.data.synthetic import read_description
from pipelines.errors import ConfigError
from tests.pipelines.compat.hstu.gin_text import gin_file, line_of
from tests.pipelines.compat.hstu.test_translate import config_of


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "data"))


def test_a_model_parallel_item_table_is_spread_over_several_processes(tmp_path: Path) -> None:
    line = "item/EmbeddingArgs.sharding_type = 'model_parallel'"
    for lines, processes, sharding in (((), 2, "data_parallel"), ((line,), 1, "data_parallel"), ((line,), 2, "auto")):
        made = translate(gin_file(tmp_path, "benchmark", *lines), processes=processes)
        embedding = to_config(made).embedding
        assert (embedding.sharding, embedding.capacity) == (sharding, 0)
        assert any("row-wise Adagrad trains it" in note for note in made.notes) == (sharding == "auto")
    dynamic = [
        "many/DynamicEmbeddingArgs.feature_names = ['item']",
        "many/DynamicEmbeddingArgs.table_name = 'many'",
        "many/DynamicEmbeddingArgs.item_vocab_size_or_capacity = 50",
        "BenchmarkDatasetArgs.embedding_args = [@many/DynamicEmbeddingArgs(), @rest/DynamicEmbeddingArgs()]",
    ]
    for processes, sharding in ((1, "data_parallel"), (2, "auto")):
        embedding = config_of(tmp_path, "benchmark", *dynamic, processes=processes).embedding
        assert (embedding.sharding, embedding.capacity) == (sharding, 0)  # ids are drawn below the capacity


def test_a_dynamic_table_that_can_overflow_evicts(tmp_path: Path) -> None:
    """288 events at most: 51 rows are too few for ids without bounds, 288 are enough."""
    lines = [
        "v/RandomDistribution.dist_type = 'zipf'",
        "events/FeatureArgs.value_dists = {'item': @v/RandomDistribution()}",
        "many/DynamicEmbeddingArgs.feature_names = ['item']",
        "many/DynamicEmbeddingArgs.table_name = 'many'",
        "many/DynamicEmbeddingArgs.item_vocab_size_or_capacity = 51",
        "many/DynamicEmbeddingArgs.evict_strategy = 'lfu'",
        "BenchmarkDatasetArgs.embedding_args = [@many/DynamicEmbeddingArgs(), @rest/DynamicEmbeddingArgs()]",
    ]
    path = gin_file(tmp_path, "benchmark", *lines)
    made = translate(path)
    embedding = to_config(made).embedding
    assert (embedding.sharding, embedding.capacity, embedding.eviction) == ("row_wise", 51, "lfu")
    assert any(
        note.startswith(line_of(path, lines[4])) and "up to 288 ids share 51 rows" in note for note in made.notes
    )
    assert config_of(tmp_path, "benchmark", *lines, processes=2).embedding.capacity == 50  # rows divide
    enough = [lines[4].replace("51", "600"), "v/RandomDistribution.high = 51"]
    for line in enough:
        assert config_of(tmp_path, "benchmark", *lines, line).embedding.capacity == 0


# Field of made-up data -> (lines, attribute of the description, what it says).
DRAWN = {
    "RandomDistribution.dist_type": (["length/RandomDistribution.dist_type = 'zipf'"], "lengths.kind", "zipf"),
    "RandomDistribution.low": (["length/RandomDistribution.low = 3"], "lengths.low", 3),
    "RandomDistribution.high": (["length/RandomDistribution.high = 9"], "lengths.high", 9),
    "RandomDistribution.mean": (["length/RandomDistribution.mean = 6"], "lengths.mean", 6.0),
    "RandomDistribution.std": (["length/RandomDistribution.std = 2.5"], "lengths.std", 2.5),
    "RandomDistribution.alpha": (["length/RandomDistribution.alpha = 1.7"], "lengths.alpha", 1.7),
    "FeatureArgs.seqlen_dist": ([], "lengths.kind", "normal"),
    "FeatureArgs.value_dists": (["events/FeatureArgs.value_dists = {'item': @v/RandomDistribution()}"], "items.low", 2),
    "FeatureArgs.max_sequence_length": (["events/FeatureArgs.max_sequence_length = 11"], "lengths.high", 11),
    "EmbeddingArgs.item_vocab_size_or_capacity": (
        ["item/EmbeddingArgs.item_vocab_size_or_capacity = 33"],
        "items.high",
        33,
    ),
    "TrainerArgs.seed": (["TrainerArgs.seed = 9"], "seed", 9),
    "BenchmarkDatasetArgs.num_generated_batches": (["BenchmarkDatasetArgs.num_generated_batches = 3"], "users", 12),
}
LENGTHS = """
length/RandomDistribution.dist_type = 'normal'
length/RandomDistribution.mean = 5
length/RandomDistribution.std = 2
v/RandomDistribution.dist_type = 'zipf'
v/RandomDistribution.low = 2
events/FeatureArgs.is_jagged = True
events/FeatureArgs.seqlen_dist = @length/RandomDistribution()
"""


def description_of(config: RunConfig) -> Any:
    path = load_dataset_spec(config.dataset.name).path
    assert path is not None
    return read_description(path)


@pytest.mark.parametrize("field", DRAWN)
def test_made_up_data_are_drawn_as_described(field: str, tmp_path: Path) -> None:
    lines, attribute, expected = DRAWN[field]
    found = description_of(config_of(tmp_path, "benchmark", LENGTHS, *lines))
    for part in attribute.split("."):
        found = getattr(found, part)
    assert found == expected


def test_made_up_data_without_distributions(tmp_path: Path) -> None:
    config = config_of(tmp_path, "benchmark")
    found = description_of(config)
    assert (found.users, found.lengths.low, found.lengths.high) == (24, 12, 13)  # 6 batches of 4, all of one length
    assert (found.items.high, found.actions.high, found.context["age"].high) == (40, 8, 9)
    assert load_dataset_spec(config.dataset.name).prepare.action_bits == ("task_1", "task_2", "task_3")
    classes = config_of(tmp_path, "benchmark", "RankingArgs.num_tasks = 1")
    assert description_of(classes).actions.high == 3 and description_of(classes).action_column == "rating"
    jagged = description_of(config_of(tmp_path, "benchmark", "events/FeatureArgs.is_jagged = True"))
    assert (jagged.lengths.low, jagged.lengths.high) == (0, 12)


OUTSIDE = {
    "item": ("a/RandomDistribution.high = 41", "the table of 'item' has 40 rows, and no id lies outside it"),
    "age": ("a/RandomDistribution.high = 10", "the table of 'age' has 9 rows, and no id lies outside it"),
    "action": ("a/RandomDistribution.high = 9", "the 3 outputs of the head tell 8 actions apart"),
}


@pytest.mark.parametrize("feature", OUTSIDE)
def test_ids_outside_their_table_are_refused(feature: str, tmp_path: Path) -> None:
    line, why = OUTSIDE[feature]
    group = "user" if feature == "age" else "events"
    more = ["a/RandomDistribution.dist_type = 'uniform'"]
    more += [f"{group}/FeatureArgs.value_dists = {{'{feature}': @a/RandomDistribution()}}"]
    more += ["age/EmbeddingArgs.feature_names = ['age']", "age/EmbeddingArgs.table_name = 'age'"]
    more += [
        "age/EmbeddingArgs.item_vocab_size_or_capacity = 9",
        "rest/DynamicEmbeddingArgs.feature_names = ['action']",
    ]
    tables = "@item/EmbeddingArgs(), @rest/DynamicEmbeddingArgs(), @age/EmbeddingArgs()"
    more += [f"BenchmarkDatasetArgs.embedding_args = [{tables}]"]
    path = gin_file(tmp_path, "benchmark", *more, line)
    with pytest.raises(ConfigError) as caught:
        translate(path)
    assert str(caught.value).startswith(f"{line_of(path, line)}: {line.split(' = ')[0]}") and why in str(caught.value)
    inside = int(line.split(" = ")[1]) - 1
    translate(gin_file(tmp_path, "benchmark", *more, f"a/RandomDistribution.high = {inside}"))


def test_what_would_describe_nothing_is_refused(tmp_path: Path) -> None:
    more = "a/RandomDistribution.dist_type = 'uniform'"
    path = gin_file(tmp_path, "benchmark", more, "events/FeatureArgs.value_dists = {'itm': @a/RandomDistribution()}")
    with pytest.raises(ConfigError, match=r"value_dists: there is no feature 'itm' .* did you mean 'item'"):
        translate(path)
    path = gin_file(tmp_path, "benchmark", "rest/DynamicEmbeddingArgs.feature_names = ['action', 'age', 'item']")
    with pytest.raises(
        ConfigError, match=r"rest/DynamicEmbeddingArgs.feature_names: .* has the feature 'item' already"
    ):
        translate(path)


def test_lengths_beyond_the_longest_are_refused(tmp_path: Path) -> None:
    path = gin_file(tmp_path, "benchmark", LENGTHS, "length/RandomDistribution.high = 13")
    with pytest.raises(ConfigError, match="high: 13 cannot be honoured: max_sequence_length is 12"):
        translate(path)
    path = gin_file(tmp_path, "benchmark", LENGTHS, "length/RandomDistribution.std = -1")
    with pytest.raises(ConfigError, match=r"length/RandomDistribution.dist_type: a standard deviation is above 0"):
        translate(path)
