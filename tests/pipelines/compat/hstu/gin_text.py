"""Gin files for the tests: a small one of each kind, to which a test adds its lines."""

from __future__ import annotations

from pathlib import Path

COMMON = """
TrainerArgs.train_batch_size = 4
TrainerArgs.eval_batch_size = 3
NetworkArgs.num_layers = 1
NetworkArgs.hidden_size = 8
NetworkArgs.num_attention_heads = 2
NetworkArgs.kv_channels = 4
OptimizerArgs.optimizer_str = 'adam'
OptimizerArgs.learning_rate = 0.01
"""
RETRIEVAL = f"""{COMMON}
DatasetArgs.dataset_name = 'ml-1m'
DatasetArgs.max_history_seqlen = 20
RetrievalArgs.num_negatives = 16
"""
RANKING = f"""{COMMON}
DatasetArgs.dataset_name = 'kuairand-1k'
DatasetArgs.max_history_seqlen = 20
DatasetArgs.max_num_candidates = 2
RankingArgs.prediction_head_arch = [8, 8]
RankingArgs.num_tasks = 8
"""
TABLES = """
item/EmbeddingArgs.feature_names = ['item']
item/EmbeddingArgs.table_name = 'item'
item/EmbeddingArgs.item_vocab_size_or_capacity = 40
item/EmbeddingArgs.sharding_type = 'data_parallel'
rest/DynamicEmbeddingArgs.feature_names = ['action', 'age']
rest/DynamicEmbeddingArgs.table_name = 'rest'
rest/DynamicEmbeddingArgs.item_vocab_size_or_capacity = 9
rest/DynamicEmbeddingArgs.item_vocab_gpu_capacity_ratio = 1.0
"""
MADE_UP = f"""{TABLES}
TrainerArgs.max_train_iters = 6
events/FeatureArgs.feature_names = ['item', 'action']
events/FeatureArgs.max_sequence_length = 12
user/FeatureArgs.feature_names = ['age']
user/FeatureArgs.max_sequence_length = 1
BenchmarkDatasetArgs.feature_args = [@events/FeatureArgs(), @user/FeatureArgs()]
BenchmarkDatasetArgs.embedding_args = [@item/EmbeddingArgs(), @rest/DynamicEmbeddingArgs()]
BenchmarkDatasetArgs.num_generated_batches = 6
BenchmarkDatasetArgs.item_feature_name = 'item'
BenchmarkDatasetArgs.contextual_feature_names = ['age']
BenchmarkDatasetArgs.action_feature_name = 'action'
"""
BENCHMARK = f"""{COMMON}{MADE_UP}
RankingArgs.prediction_head_arch = [4, 3]
RankingArgs.num_tasks = 3
"""
KINDS = {"retrieval": RETRIEVAL, "ranking": RANKING, "benchmark": BENCHMARK}


def gin_file(folder: Path, kind: str, *lines: str, name: str = "f.gin") -> Path:
    """A file of the kind with further lines at its end."""
    path = folder / name
    path.write_text("\n".join([KINDS[kind], *lines, ""]), encoding="utf-8")
    return path


def line_of(path: Path, line: str) -> str:
    """``file:line`` of a line."""
    return f"{path}:{path.read_text(encoding='utf-8').splitlines().index(line) + 1}"
