"""Every field of every class becomes a key, is named as not used, or is refused: with file, line and field."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipelines.compat.hstu.fates import FATES
from pipelines.compat.hstu.gin_classes import CLASSES
from pipelines.compat.hstu.translate import load_gin, to_config, translate
from pipelines.config import RunConfig
from pipelines.errors import ConfigError
from tests.pipelines.compat.hstu.gin_text import gin_file, line_of


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "data"))


def config_of(folder: Path, kind: str, *lines: str, processes: int = 1) -> RunConfig:
    return to_config(translate(gin_file(folder, kind, *lines), processes=processes))


def value_of(config: RunConfig, key: str) -> Any:
    found: Any = config.resolved()
    for part in key.split("."):
        found = found[part]
    return found


def test_every_field_has_a_fate() -> None:
    fields = {f"{name}.{entry.name}" for name, kind in CLASSES.items() for entry in dataclasses.fields(kind)}
    assert set(FATES) == fields


# Field -> (kind of file, the value as gin has it, key, what the key says then).
KEYS: dict[str, tuple[str, str, str, Any]] = {
    "TrainerArgs.train_batch_size": ("retrieval", "7", "loader.rows_per_batch", 7),
    "TrainerArgs.eval_interval": ("retrieval", "9", "training.eval_steps", 9),
    "TrainerArgs.log_interval": ("retrieval", "8", "training.log_every", 8),
    "TrainerArgs.max_train_iters": ("retrieval", "33", "training.max_steps", 33),
    "TrainerArgs.max_eval_iters": ("retrieval", "5", "training.valid_queries", 15),
    "TrainerArgs.seed": ("retrieval", "7", "seed", 7),
    "TrainerArgs.profile": ("retrieval", "True", "training.profile_until", 200),
    "TrainerArgs.profile_step_start": ("retrieval", "6\nTrainerArgs.profile = True", "training.profile_from", 6),
    "TrainerArgs.profile_step_end": ("retrieval", "150\nTrainerArgs.profile = True", "training.profile_until", 150),
    "TrainerArgs.ckpt_save_interval": ("retrieval", "70", "training.checkpoint_steps", 70),
    "TrainerArgs.ckpt_save_dir": ("retrieval", "'mine'", "runs", "mine"),
    "TrainerArgs.pipeline_type": ("retrieval", "'prefetch'", "training.prefetch", 2),
    "DatasetArgs.dataset_name": ("retrieval", "'ml-20m'", "dataset.name", "ml-20m"),
    "DatasetArgs.max_history_seqlen": ("ranking", "30", "model.max_length", 30),
    "DatasetArgs.dataset_path": ("retrieval", "'/'", "dataset.cache", "/"),
    "DatasetArgs.max_num_candidates": ("ranking", "5", "model.candidates", 5),
    "DatasetArgs.shuffle": ("retrieval", "True", "loader.shuffle", True),
    "BenchmarkDatasetArgs.max_num_candidates": ("benchmark", "5", "model.candidates", 5),
    "NetworkArgs.num_layers": ("retrieval", "3", "model.blocks", 3),
    "NetworkArgs.hidden_size": ("ranking", "16", "model.hidden", 16),
    "NetworkArgs.num_attention_heads": ("ranking", "4", "model.heads", 4),
    "NetworkArgs.kv_channels": ("retrieval", "6", "model.linear_dim", 6),
    "NetworkArgs.hidden_dropout": ("retrieval", "0.5", "model.dropout", 0.5),
    "NetworkArgs.norm_epsilon": ("ranking", "1e-4", "model.norm_eps", 1e-4),
    "NetworkArgs.dtype_str": ("retrieval", "'bfloat16'", "training.precision", "bfloat16"),
    "NetworkArgs.target_group_size": ("ranking", "2", "model.target_group_size", 2),
    "NetworkArgs.recompute_input_layernorm": ("ranking", "True", "model.recompute_norm", True),
    "NetworkArgs.recompute_input_silu": ("retrieval", "True", "model.recompute_silu", True),
    "NetworkArgs.item_embedding_dim": ("ranking", "5", "model.item_dim", 5),
    "NetworkArgs.contextual_embedding_dim": ("ranking", "6", "model.context_dim", 6),
    "NetworkArgs.scaling_seqlen": ("ranking", "77", "model.scaling_length", 77),
    "NetworkArgs.dense_initializer_type": ("retrieval", "'normal'", "model.dense_init_std", 1.0),
    "NetworkArgs.dense_initializer_normal_std": (
        "ranking",
        "0.02\nNetworkArgs.dense_initializer_type = 'normal'",
        "model.dense_init_std",
        0.02,
    ),
    "TrainerArgs.enable_balanced_shuffler": ("ranking", "True", "loader.deal", "attention"),
    "NetworkArgs.disable_contextual_mask": ("ranking", "True", "model.context_mask", False),
    "OptimizerArgs.optimizer_str": ("retrieval", "'Adam'", "optimizer.name", "adam"),
    "OptimizerArgs.learning_rate": ("retrieval", "0.5", "optimizer.lr", 0.5),
    "OptimizerArgs.adam_beta1": ("retrieval", "0.5", "optimizer.beta1", 0.5),
    "OptimizerArgs.adam_beta2": ("retrieval", "0.5", "optimizer.beta2", 0.5),
    "OptimizerArgs.adam_eps": ("retrieval", "1e-5", "optimizer.eps", 1e-5),
    "RankingArgs.prediction_head_arch": ("ranking", "[5, 8]", "model.head", [5, 8]),
    "RankingArgs.prediction_head_act_type": ("ranking", "'gelu'", "model.head_activation", "gelu"),
    "RankingArgs.prediction_head_bias": ("ranking", "False", "model.head_bias", False),
    "RetrievalArgs.num_negatives": ("retrieval", "99", "model.loss.num_negatives", 99),
    "RetrievalArgs.temperature": ("retrieval", "0.1", "model.temperature", 0.1),
    "RetrievalArgs.l2_norm_eps": ("retrieval", "1e-3", "model.l2_norm_eps", 1e-3),
    "RetrievalArgs.eval_metrics": ("retrieval", "('HR@5', 'NDCG@20')", "training.select", "HR@5"),
}
# Where the value is the default's: what is bound with it must not change.
SAME_AS_BEFORE = {"OptimizerArgs.optimizer_str"}
ELSEWHERE = {
    "TrainerArgs.ckpt_load_dir",
    "DatasetArgs.max_sequence_length",
    "RankingArgs.num_tasks",
    "RankingArgs.eval_metrics",
    "EmbeddingArgs.sharding_type",
    "DynamicEmbeddingArgs.item_vocab_size_or_capacity",
    "DynamicEmbeddingArgs.evict_strategy",
    "TensorModelParallelArgs.tensor_model_parallel_size",
}


@pytest.mark.parametrize("field", KEYS)
def test_a_field_becomes_a_key(field: str, tmp_path: Path) -> None:
    kind, value, key, expected = KEYS[field]
    before = value_of(config_of(tmp_path, kind), key)
    assert value_of(config_of(tmp_path, kind, f"{field} = {value}"), key) == expected
    assert (before == expected) == (field in SAME_AS_BEFORE)


def test_every_field_that_becomes_a_key_is_tried() -> None:
    assert {name for name, fate in FATES.items() if fate.kind == "key"} == {*KEYS, *ELSEWHERE}


SAME = {
    "TrainerArgs.eval_batch_size": ("retrieval", "9"),
    "item/EmbeddingArgs.table_name": ("benchmark", "'other'"),
    "rest/DynamicEmbeddingArgs.table_name": ("benchmark", "'other'"),
    "rest/DynamicEmbeddingArgs.sharding_type": ("benchmark", "'model_parallel'"),
    "rest/DynamicEmbeddingArgs.global_hbm_for_values": ("benchmark", "1000"),
    "rest/DynamicEmbeddingArgs.item_vocab_gpu_capacity": ("benchmark", "10"),
    "rest/DynamicEmbeddingArgs.item_vocab_gpu_capacity_ratio": ("benchmark", "0.5"),
    "rest/DynamicEmbeddingArgs.caching": ("benchmark", "True"),
    "rest/DynamicEmbeddingArgs.dist_type": ("benchmark", "'continuous'"),
    "NetworkArgs.kernel_backend": ("ranking", "'pytorch'"),
    "NetworkArgs.num_position_buckets": ("retrieval", "4096"),
    "NetworkArgs.embedding_backend": ("retrieval", "'nve'"),
    "NetworkArgs.layer_type": ("ranking", "'native'"),
}


@pytest.mark.parametrize("field", SAME)
def test_a_field_that_changes_no_number_is_named_as_not_used(field: str, tmp_path: Path) -> None:
    kind, value = SAME[field]
    name, line = field.rpartition("/")[2], f"{field} = {value}"
    path = gin_file(tmp_path, kind, line)
    made = translate(path)
    notes = [note for note in made.notes if f": {name} is not used: {FATES[name].text}" in note]
    assert len(notes) == 1 and notes[0].startswith(line_of(path, line))
    assert to_config(made) == config_of(tmp_path, kind)


def test_every_field_that_is_not_used_is_tried() -> None:
    assert {name for name, fate in FATES.items() if fate.kind == "same"} == {f.rpartition("/")[2] for f in SAME}


REFUSED = {
    "NetworkArgs.is_causal = False": "a token would see",
    "NetworkArgs.dense_initializer_type = 'uniform'": "there is 'normal'",
    "NetworkArgs.dense_initializer_normal_std = 0.02": "it is of dense_initializer_type",
    "NetworkArgs.backbone = 'transformer'": "of inference alone",
    "NetworkArgs.transformer_ffn_dim = 64": "of the backbone transformer",
    "NetworkArgs.dtype_str = 'float16'": "there are bfloat16 and float32",
    "NetworkArgs.scaling_seqlen = 0": "less than 1",
    "NetworkArgs.scaling_seqlen = -2": "less than 1",
    "OptimizerArgs.optimizer_str = 'sgd'": "there are adam and adamw",
    "MixedPrecisionArgs.linear_recipe = 'tensorwise'": "8-bit products",
    "MixedPrecisionArgs.mixed_precision_dtype = 'fp8'": "8-bit products",
    "AttnBalancedBenchmarkArgs.batch_size = 32": "trains nothing",
    "TrainerArgs.train_batch_size = 0": "less than 1",
    "TrainerArgs.max_eval_iters = -1": "-1 cannot be honoured: it is negative",
    "TensorModelParallelArgs.tensor_model_parallel_size = 3": "does not divide the 2 attention heads",
    "TensorModelParallelArgs.tensor_model_parallel_size = 0": "less than 1",
}
REFUSED_RETRIEVAL = {
    "NetworkArgs.num_position_buckets = 19": "a history of 20 items has more positions",
    "NetworkArgs.item_embedding_dim = 4": "compares states of hidden_size with item vectors",
    "NetworkArgs.target_group_size = 2": "neither contextual tokens nor targets",
    "NetworkArgs.disable_contextual_mask = True": "neither contextual tokens nor targets",
    "DatasetArgs.max_num_candidates = 3": "every item of the catalogue is one",
    "DatasetArgs.max_sequence_length = 30": "max_history_seqlen says another thing",
    "DatasetArgs.dataset_path = '/no/such/folder'": "it is no folder",
    "RetrievalArgs.num_negatives = 0": "less than 1",
    "RetrievalArgs.num_negatives = -2": "less than 1",
    "RetrievalArgs.eval_metrics = ('AUC',)": "unknown metric 'AUC'",
    "RetrievalArgs.eval_metrics = ()": "nothing would choose the checkpoint",
}
REFUSED_RANKING = {
    "NetworkArgs.num_position_buckets = 20": "have more positions",
    "RankingArgs.eval_metrics = ('NDCG',)": "measured by the AUC",
    "RankingArgs.prediction_head_arch = [8, 5]": "an event of KuaiRand has 8 labels",
    "RankingArgs.prediction_head_arch = []": "it has no layer",
    "RankingArgs.num_tasks = 3": "an event of KuaiRand has 8 labels",
    "DatasetArgs.max_num_candidates = -1": "negative",
}
REFUSED_BENCHMARK = {
    "RankingArgs.num_tasks = 2": "one a task, or one task of 3 classes",
    "BenchmarkDatasetArgs.max_num_candidates = 12": "no item is left for the history",
    "BenchmarkDatasetArgs.num_generated_batches = 0": "less than 1",
    "BenchmarkDatasetArgs.item_feature_name = 'other'": "no FeatureArgs has the feature 'other'",
    "BenchmarkDatasetArgs.action_feature_name = None": "ranking reads and predicts what users did",
    "BenchmarkDatasetArgs.embedding_args = []": "no table in embedding_args has the feature",
    "user/FeatureArgs.max_sequence_length = 2": "the contextual feature 'age' has one value",
    "item/EmbeddingArgs.item_vocab_size_or_capacity = 0": "less than 1",
}
EACH = {
    **{(kind, line): text for line, text in REFUSED.items() for kind in ("retrieval", "ranking")},
    **{("retrieval", line): text for line, text in REFUSED_RETRIEVAL.items()},
    **{("ranking", line): text for line, text in REFUSED_RANKING.items()},
    **{("benchmark", line): text for line, text in REFUSED_BENCHMARK.items()},
}


@pytest.mark.parametrize(("kind", "line"), EACH)
def test_what_cannot_be_honoured_is_refused_by_name(kind: str, line: str, tmp_path: Path) -> None:
    path = gin_file(tmp_path, kind, line)
    with pytest.raises(ConfigError) as caught:
        to_config(translate(path))
    message = str(caught.value)
    assert EACH[kind, line] in message and "\n" not in message
    field = line.split(" = ")[0]
    if "embedding_args" not in field:  # there the feature without a table is named
        assert message.startswith(line_of(path, line)) and field.rpartition("/")[2] in message


@pytest.mark.parametrize(("dataset", "classes"), [("ml-1m", 5), ("ml-20m", 10)])
def test_a_rating_is_one_label_of_as_many_classes_as_there_are(dataset: str, classes: int, tmp_path: Path) -> None:
    named = f"DatasetArgs.dataset_name = '{dataset}'"
    lines = [named, f"RankingArgs.prediction_head_arch = [8, {classes}]", "RankingArgs.num_tasks = 1"]
    assert config_of(tmp_path, "ranking", *lines).model["head"] == [8, classes]
    for line, why in (
        ("RankingArgs.prediction_head_arch = [4, 8]", f"a rating of {dataset} is one of {classes} classes"),
        (f"RankingArgs.num_tasks = {classes}", f"an event of {dataset} has one label"),
    ):
        path = gin_file(tmp_path, "ranking", *lines, line)
        with pytest.raises(ConfigError) as caught:
            translate(path)
        message = str(caught.value)
        assert message.startswith(f"{line_of(path, line)}: {line.split(' = ')[0]}") and why in message


def test_every_field_that_is_refused_is_tried() -> None:
    tried = {line.split(" = ")[0] for line in REFUSED}
    refused = {name for name, fate in FATES.items() if fate.kind == "refused"}
    assert {name for name in refused if name.split(".")[0] == "NetworkArgs"} <= tried
    assert {name.split(".")[0] for name in refused} == {name.split(".")[0] for name in tried & refused}


def test_a_value_that_the_recipe_refuses_names_the_gin_line(tmp_path: Path) -> None:
    for line in ("OptimizerArgs.learning_rate = -1.0", "TrainerArgs.seed = -3", "NetworkArgs.hidden_dropout = 1.5"):
        path = gin_file(tmp_path, "retrieval", line)
        with pytest.raises(ConfigError) as caught:
            to_config(translate(path))
        assert str(caught.value).startswith(f"{line_of(path, line)}: {line.split(' = ')[0]}"), line


def test_batches_are_those_of_all_data_parallel_processes(tmp_path: Path) -> None:
    lines = "TrainerArgs.max_eval_iters = 2", "TensorModelParallelArgs.tensor_model_parallel_size = 2"
    alone, shared = config_of(tmp_path, "ranking", lines[0]), config_of(tmp_path, "ranking", *lines, processes=4)
    assert (alone.loader.rows_per_batch, alone.training.valid_queries) == (4, 6)
    assert (shared.loader.rows_per_batch, shared.training.valid_queries) == (8, 12)  # 4 processes, 2 replicas
    with pytest.raises(ConfigError, match=r"tensor_model_parallel_size: 2 .* does not divide the 3 processes"):
        config_of(tmp_path, "ranking", *lines, processes=3)


def test_without_max_train_iters_there_is_one_epoch(tmp_path: Path) -> None:
    config = config_of(tmp_path, "retrieval")
    assert (config.training.epochs, config.training.max_steps, config.training.patience) == (1, 0, 0)
    config = config_of(tmp_path, "retrieval", "TrainerArgs.max_train_iters = 40", "TrainerArgs.eval_interval = 0")
    assert (config.training.epochs, config.training.eval_steps, config.training.eval_every) == (40, 0, 40)


def test_the_blocks_are_the_scripts_variant(tmp_path: Path) -> None:
    for kind in ("retrieval", "ranking"):
        options = config_of(tmp_path, kind).model_options()
        assert (options.scale_by_dim, options.norm_affine, options.relative_bias) == (True, True, "none")
        assert (options.attention_dim, options.linear_dim, options.dropout, options.norm_eps) == (4, 4, 0.2, 1e-5)


def test_the_older_length_counts_the_candidates(tmp_path: Path) -> None:
    path = gin_file(tmp_path, "ranking")
    old = path.read_text(encoding="utf-8").replace("max_history_seqlen = 20", "max_sequence_length = 22")
    path.write_text(old, encoding="utf-8")
    assert to_config(translate(path)) == config_of(tmp_path, "ranking")
    path.write_text(old.replace("= 22", "= 2"), encoding="utf-8")
    with pytest.raises(ConfigError, match="max_sequence_length: 2 .* no item is left for the history"):
        translate(path)
    path.write_text(old.replace("DatasetArgs.max_sequence_length = 22", ""), encoding="utf-8")
    with pytest.raises(ConfigError, match="DatasetArgs.max_history_seqlen is missing"):
        translate(path)


def test_older_kuairand_files_name_no_tasks(tmp_path: Path) -> None:
    path = gin_file(tmp_path, "ranking")
    named = to_config(translate(path))
    path.write_text(path.read_text(encoding="utf-8").replace("RankingArgs.num_tasks = 8", ""), encoding="utf-8")
    made = translate(path)
    assert to_config(made) == named and any("num_tasks: taken for 8" in note for note in made.notes)


def test_what_is_trained_is_told_by_the_file_or_by_the_command(tmp_path: Path) -> None:
    both = gin_file(tmp_path, "retrieval", "RankingArgs.prediction_head_arch = [8, 5]")
    with pytest.raises(ConfigError, match="binds RetrievalArgs and RankingArgs"):
        translate(both)
    made = translate(both, "retrieval")
    assert to_config(made).model["name"] == "hstu"
    assert any("RankingArgs.prediction_head_arch is not used: this command reads no" in note for note in made.notes)
    ranking = to_config(translate(both, "ranking"))
    assert (ranking.model["name"], ranking.dataset.name) == ("hstu-ranking", "ml-1m-context")


def test_published_and_made_up_data_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="binds both DatasetArgs and BenchmarkDatasetArgs"):
        translate(gin_file(tmp_path, "retrieval", "BenchmarkDatasetArgs.item_feature_name = 'item'"))
    path = gin_file(tmp_path, "retrieval")
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if "DatasetArgs" not in line]
    path.write_text("\n".join(kept), encoding="utf-8")
    with pytest.raises(ConfigError, match="DatasetArgs.dataset_name is missing"):  # never a silent benchmark
        translate(path)


def test_a_gin_file_is_a_recipe_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = gin_file(tmp_path, "retrieval", "NetworkArgs.kernel_backend = 'triton'", name="my file.gin")
    config = load_gin(path, ["model.blocks=2", "name=mine"])
    assert (config.name, config.recipe, config.model_options().blocks) == ("mine", "my file", 2)
    assert load_gin(path).name == "my_file"
    assert "kernel_backend is not used" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"--set model.blocks=0"):
        load_gin(path, ["model.blocks=0"])
    path = gin_file(tmp_path, "retrieval", "TrainerArgs.ckpt_load_dir = 'there'")
    with pytest.raises(ConfigError, match=r"ckpt_load_dir: is read by .* take it out and give --resume there"):
        load_gin(path)


@pytest.mark.parametrize("kind", ["retrieval", "ranking"])
def test_attention_may_be_divided_by_the_longest_of_the_batch(kind: str, tmp_path: Path) -> None:
    """A file that says nothing is not taken at the scripts' default: a result shall not depend on the batch."""
    usual = config_of(tmp_path, kind).model_options()
    assert (usual.scaling_length, usual.max_length) == (None, 20)
    for length in (-1, 7, 300):
        line = f"NetworkArgs.scaling_seqlen = {length}"
        path = gin_file(tmp_path, kind, line)
        made = translate(path)
        options = to_config(made).model_options()
        assert (options.scaling_length, options.max_length) == (length, 20)
        said = [note for note in made.notes if "depends on who else is in the batch" in note]
        assert bool(said) == (length == -1) and all(note.startswith(line_of(path, line)) for note in said)


def test_all_other_targets_of_the_batch_are_the_default_negatives(tmp_path: Path) -> None:
    path = gin_file(tmp_path, "retrieval")
    path.write_text(path.read_text(encoding="utf-8").replace("RetrievalArgs.num_negatives = 16", ""), encoding="utf-8")
    both = config_of(tmp_path, "retrieval", "RetrievalArgs.num_negatives = -1"), to_config(translate(path, "retrieval"))
    for config in both:
        loss = config.model_options().loss
        assert (loss.name, loss.sampler, loss.num_negatives, loss.takes_all_of_step) == (
            "sampled_softmax",
            "in_batch",
            -1,
            True,
        )


def test_layers_are_spread_over_the_processes_that_there_are(tmp_path: Path) -> None:
    line = "TensorModelParallelArgs.tensor_model_parallel_size = 2"
    for kind in ("retrieval", "ranking"):
        assert config_of(tmp_path, kind, line, processes=4).parallel.tensor == 2
        assert config_of(tmp_path, kind, processes=4).parallel.tensor == 1
        path = gin_file(tmp_path, kind, line)
        made = translate(path)
        assert to_config(made).parallel.tensor == 1  # as a whole
        assert any(note.startswith(line_of(path, line)) and "the same numbers" in note for note in made.notes)
