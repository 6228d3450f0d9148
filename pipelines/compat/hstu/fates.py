"""What becomes of every field of a gin file: the table that the translation follows and the documentation shows.

A field becomes a key of a recipe; or it is *not used*, because the numbers are the same without it; or it is *refused*,
because they would not be. Nothing is dropped in silence: a bound field that is not used is named, one that is refused
ends the run with exit code 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Fate:
    """What becomes of a field.

    Attributes:
        kind: ``key``, ``data`` (it describes made-up data), ``same`` (not used, same numbers) or ``refused``.
        text: the keys, the reason, or what is taken instead.
    """

    kind: Literal["key", "data", "same", "refused"]
    text: str


def _key(text: str) -> Fate:
    return Fate("key", text)


def _same(text: str) -> Fate:
    return Fate("same", text)


def _data(text: str) -> Fate:
    return Fate("data", text)


def _refused(text: str) -> Fate:
    return Fate("refused", text)


_ROWS = "a table has a row for each id that occurs"
_SHARDED = "embedding.sharding: auto for model_parallel items in several processes; row-wise Adagrad trains them"
_MEMORY = "where a table lies changes no number"
_MIXED = "8-bit products: what there is is bfloat16 and float32"
_ATTENTION = "of a benchmark of attention alone, which trains nothing: see benchmarks/hstu_attention.py"

FATES: dict[str, Fate] = {
    "TrainerArgs.train_batch_size": _key("loader.rows_per_batch, times the data-parallel processes"),
    "TrainerArgs.eval_batch_size": _same("evaluation is batched by tokens; counts with max_eval_iters"),
    "TrainerArgs.eval_interval": _key("training.eval_steps"),
    "TrainerArgs.log_interval": _key("training.log_every"),
    "TrainerArgs.max_train_iters": _key("training.max_steps; unset: training.epochs = 1"),
    "TrainerArgs.max_eval_iters": _key("training.valid_queries, times eval_batch_size and the data-parallel processes"),
    "TrainerArgs.seed": _key("seed"),
    "TrainerArgs.profile": _key("training.profile_until: 0 without it"),
    "TrainerArgs.profile_step_start": _key("training.profile_from"),
    "TrainerArgs.profile_step_end": _key("training.profile_until"),
    "TrainerArgs.ckpt_save_interval": _key("training.checkpoint_steps; -1: 0, by the clock alone"),
    "TrainerArgs.ckpt_save_dir": _key("runs: the run's folder, checkpoints in it, lies there"),
    "TrainerArgs.ckpt_load_dir": _key("--resume, where the run has no checkpoint of its own"),
    "TrainerArgs.pipeline_type": _key("training.prefetch: 0, 1 or 2 batches"),
    "TrainerArgs.enable_balanced_shuffler": _key("loader.deal: attention instead of tokens"),
    "EmbeddingArgs.feature_names": _data("which table a feature has"),
    "EmbeddingArgs.table_name": _same("tables have the names of their features"),
    "EmbeddingArgs.item_vocab_size_or_capacity": _data(f"values are drawn below it; {_ROWS}"),
    "EmbeddingArgs.sharding_type": _key(_SHARDED),
    "DynamicEmbeddingArgs.feature_names": _data("which table a feature has"),
    "DynamicEmbeddingArgs.table_name": _same("tables have the names of their features"),
    "DynamicEmbeddingArgs.item_vocab_size_or_capacity": _key(
        "embedding.capacity of items, where more ids can come up; else values are drawn below it"
    ),
    "DynamicEmbeddingArgs.sharding_type": _same("such a table is model_parallel whatever is written"),
    "DynamicEmbeddingArgs.global_hbm_for_values": _same(_MEMORY),
    "DynamicEmbeddingArgs.item_vocab_gpu_capacity": _same(_MEMORY),
    "DynamicEmbeddingArgs.item_vocab_gpu_capacity_ratio": _same(_MEMORY),
    "DynamicEmbeddingArgs.evict_strategy": _key(
        "embedding.eviction of items, where more ids can come up than fit; else nothing is evicted"
    ),
    "DynamicEmbeddingArgs.caching": _same(_MEMORY),
    "DynamicEmbeddingArgs.dist_type": _same("how ids are dealt to processes changes no number"),
    "DatasetArgs.dataset_name": _key("dataset.name"),
    "DatasetArgs.max_history_seqlen": _key("loader.max_length and model.max_length"),
    "DatasetArgs.max_sequence_length": _key("the same, max_num_candidates taken off"),
    "DatasetArgs.dataset_path": _key("dataset.cache: the folder in which the published files are looked for"),
    "DatasetArgs.max_num_candidates": _key("model.candidates of ranking; retrieval takes 0 alone"),
    "DatasetArgs.shuffle": _key("loader.shuffle"),
    "RandomDistribution.dist_type": _data("kind"),
    "RandomDistribution.low": _data("smallest number"),
    "RandomDistribution.high": _data("numbers are below it"),
    "RandomDistribution.mean": _data("mean of normal and lognormal"),
    "RandomDistribution.std": _data("their standard deviation"),
    "RandomDistribution.alpha": _data("exponent of zipf"),
    "FeatureArgs.feature_names": _data("features that are drawn"),
    "FeatureArgs.max_sequence_length": _data("longest history; loader.max_length and model.max_length"),
    "FeatureArgs.is_jagged": _data("whether lengths differ"),
    "FeatureArgs.seqlen_dist": _data("distribution of the lengths"),
    "FeatureArgs.value_dists": _data("distributions of the values"),
    "BenchmarkDatasetArgs.feature_args": _data("the features"),
    "BenchmarkDatasetArgs.embedding_args": _data("their tables"),
    "BenchmarkDatasetArgs.item_feature_name": _data("which of them is the item"),
    "BenchmarkDatasetArgs.contextual_feature_names": _data("which of them are known of the user"),
    "BenchmarkDatasetArgs.action_feature_name": _data("which of them is the action"),
    "BenchmarkDatasetArgs.max_num_candidates": _key("model.candidates of ranking; retrieval takes 0 alone"),
    "BenchmarkDatasetArgs.num_generated_batches": _data("users: so many training batches of them"),
    "NetworkArgs.num_layers": _key("model.blocks"),
    "NetworkArgs.hidden_size": _key("model.hidden"),
    "NetworkArgs.num_attention_heads": _key("model.heads"),
    "NetworkArgs.kv_channels": _key("model.attention_dim and model.linear_dim"),
    "NetworkArgs.hidden_dropout": _key("model.dropout"),
    "NetworkArgs.norm_epsilon": _key("model.norm_eps"),
    "NetworkArgs.is_causal": _refused("False: a token would see the item that it is to predict"),
    "NetworkArgs.dtype_str": _key("training.precision, where bound; float16 is refused"),
    "NetworkArgs.kernel_backend": _same("the kernel is this machine's, its numbers those of the reference"),
    "NetworkArgs.target_group_size": _key("model.target_group_size of ranking; retrieval has no targets to group"),
    "NetworkArgs.num_position_buckets": _same("a position has a row of its own; fewer than positions are refused"),
    "NetworkArgs.recompute_input_layernorm": _key("model.recompute_norm"),
    "NetworkArgs.recompute_input_silu": _key("model.recompute_silu"),
    "NetworkArgs.item_embedding_dim": _key("model.item_dim of ranking; retrieval takes hidden_size alone"),
    "NetworkArgs.contextual_embedding_dim": _key("model.context_dim of ranking; retrieval reads no such feature"),
    "NetworkArgs.scaling_seqlen": _key(
        "model.scaling_length, -1 (the longest of the batch) too; unset: the longest possible sequence"
    ),
    "NetworkArgs.embedding_backend": _same(_MEMORY),
    "NetworkArgs.disable_contextual_mask": _key("model.context_mask of ranking"),
    "NetworkArgs.layer_type": _same("how many kernels compute a layer changes no number"),
    "NetworkArgs.dense_initializer_type": _key("model.dense_init_std for normal; others are refused"),
    "NetworkArgs.dense_initializer_normal_std": _key("model.dense_init_std, with the type normal; unset: 1.0"),
    "NetworkArgs.backbone": _refused("transformer: of inference alone"),
    "NetworkArgs.transformer_ffn_dim": _refused("of the backbone transformer"),
    "OptimizerArgs.optimizer_str": _key("optimizer.name; sgd is refused"),
    "OptimizerArgs.learning_rate": _key("optimizer.lr"),
    "OptimizerArgs.adam_beta1": _key("optimizer.beta1"),
    "OptimizerArgs.adam_beta2": _key("optimizer.beta2"),
    "OptimizerArgs.adam_eps": _key("optimizer.eps"),
    "TensorModelParallelArgs.tensor_model_parallel_size": _key("parallel.tensor; one process holds whole layers"),
    "RankingArgs.prediction_head_arch": _key("model.head"),
    "RankingArgs.prediction_head_act_type": _key("model.head_activation"),
    "RankingArgs.prediction_head_bias": _key("model.head_bias"),
    "RankingArgs.num_tasks": _key("1 for classes, else one for each output of the head"),
    "RankingArgs.eval_metrics": _key("AUC alone, of each task"),
    "RetrievalArgs.num_negatives": _key("model.loss.num_negatives; -1, and unset: every other target of the batch"),
    "RetrievalArgs.temperature": _key("model.temperature"),
    "RetrievalArgs.l2_norm_eps": _key("model.l2_norm_eps"),
    "RetrievalArgs.eval_metrics": _key("evaluation.ks; the first is training.select"),
    "MixedPrecisionArgs.mixed_precision_dtype": _refused(_MIXED),
    "MixedPrecisionArgs.linear_recipe": _refused(_MIXED),
    "MixedPrecisionArgs.linear_scaling_precision": _refused(_MIXED),
    "MixedPrecisionArgs.hstu_attn_quantization_mode": _refused(_MIXED),
    **{
        f"AttnBalancedBenchmarkArgs.{name}": _refused(_ATTENTION)
        for name in ("batch_size", "max_seqlen", "seqlen_dist", "warmup_iters", "bench_iters", "seed")
    },
}
"""By ``Class.field``."""
