"""The classes that a gin file of the HSTU training scripts may bind, with their defaults.

Names, types and defaults are those of the scripts. A field without a default is required. Fields that only some
published versions of the scripts have say so; what becomes of each is the table of fates.py.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any


def _one_of(*values: str, default: Any = MISSING) -> Any:
    """A field with one of these values, in upper or lower case."""
    return field(default=default, metadata={"one_of": values})


@dataclass(kw_only=True)
class TrainerArgs:
    """How long to train, when to look, what to keep."""

    train_batch_size: int
    """Users in a training batch of one data-parallel process."""
    eval_batch_size: int
    """Users in an evaluation batch of one data-parallel process."""
    eval_interval: int = 100
    """Iterations between evaluations; 0: at the end alone."""
    log_interval: int = 100
    """Iterations between log lines."""
    max_train_iters: int | None = field(default=None, metadata={"digits": True})
    """Iterations at most, over as many epochs as that takes; None: one epoch."""
    max_eval_iters: int | None = None
    """Batches of an evaluation at most; None: all."""
    seed: int = 1234
    """Of weights, dropout and order."""
    profile: bool = False
    """Profile a window of iterations."""
    profile_step_start: int = 100
    """Its first iteration, from 0."""
    profile_step_end: int = 200
    """The iteration before which it ends."""
    ckpt_save_interval: int = -1
    """Iterations between checkpoints; -1: the scripts keep none."""
    ckpt_save_dir: str = "./checkpoints"
    """Where they go."""
    ckpt_load_dir: str = ""
    """A checkpoint to begin with."""
    pipeline_type: str = _one_of("none", "native", "prefetch", default="native")
    """What overlaps with computing: nothing, the copy of the next batch, or the copies of two."""
    enable_balanced_shuffler: bool = False
    """Deal the users of a batch to processes so that their attention costs the same."""


@dataclass(kw_only=True)
class EmbeddingArgs:
    """An embedding table with a fixed number of rows."""

    feature_names: list[str]
    """The features that are looked up in it."""
    table_name: str
    """Its name."""
    item_vocab_size_or_capacity: int
    """Its rows."""
    sharding_type: str = _one_of("data_parallel", "model_parallel", default="data_parallel")
    """A whole copy in each process, or a part."""


@dataclass(kw_only=True)
class DynamicEmbeddingArgs:
    """A table of ids without bounds, from which ids are evicted; always model-parallel."""

    feature_names: list[str]
    """The features that are looked up in it."""
    table_name: str
    """Its name."""
    item_vocab_size_or_capacity: int
    """Rows at most, over all processes."""
    sharding_type: str = _one_of("data_parallel", "model_parallel", default="model_parallel")
    """``model_parallel``, whatever is written."""
    global_hbm_for_values: int | None = None
    """Bytes of GPU memory for it, over all processes."""
    item_vocab_gpu_capacity: float | None = None
    """Rows in GPU memory, where the bytes are not given."""
    item_vocab_gpu_capacity_ratio: float | None = None
    """Share of the rows in GPU memory, where neither is given."""
    evict_strategy: str = _one_of("lru", "lfu", default="lru")
    """Which ids leave a full table: those not seen for longest, or those seen least."""
    caching: bool = False
    """Whether GPU memory is a cache of the table."""
    dist_type: str = _one_of("continuous", "roundrobin", "hash_roundrobin", default="roundrobin")
    """How ids are dealt to processes."""


@dataclass(kw_only=True)
class DatasetArgs:
    """A published dataset."""

    dataset_name: str = _one_of("ml-1m", "ml-20m", "kuairand-pure", "kuairand-1k", "kuairand-27k")
    """Its name; required."""
    max_history_seqlen: int | None = None
    """Items of a history at most, candidates apart; this or ``max_sequence_length`` is required."""
    max_sequence_length: int | None = None
    """Older name: items at most, candidates among them."""
    dataset_path: str | None = None
    """Where its files are."""
    max_num_candidates: int = 0
    """Newest items that are candidates of ranking; 0: every item is ranked where it stands."""
    shuffle: bool = False
    """Users in random order, or in the order of the data."""


@dataclass(kw_only=True)
class RandomDistribution:
    """A distribution of whole numbers for made-up data."""

    dist_type: str = _one_of("uniform", "normal", "zipf", "lognormal")
    """Its kind; required."""
    low: int = 0
    """Smallest number."""
    high: int | None = None
    """Numbers are below it; None: no bound, or that of the feature."""
    mean: float | None = None
    """Of ``normal`` and ``lognormal``, of the numbers themselves."""
    std: float | None = None
    """Their standard deviation; ``lognormal``: half the mean where None."""
    alpha: float | None = None
    """Exponent of ``zipf``, above 1; None: 1.5."""


@dataclass(kw_only=True)
class FeatureArgs:
    """Features of made-up data that share one length."""

    feature_names: list[str]
    """Their names."""
    max_sequence_length: int
    """Values of a user at most; 1 for a feature of the user."""
    is_jagged: bool = False
    """Whether users have different numbers of values."""
    seqlen_dist: RandomDistribution | None = None
    """Distribution of the lengths, where jagged; None: uniform."""
    value_dists: dict[str, RandomDistribution] | None = None
    """Distributions of the values by feature; uniform over the table where none is given."""


@dataclass(kw_only=True)
class BenchmarkDatasetArgs:
    """Made-up data."""

    feature_args: list[FeatureArgs]
    """Its features."""
    embedding_args: list[EmbeddingArgs | DynamicEmbeddingArgs]
    """Their tables."""
    item_feature_name: str
    """The feature that names items."""
    contextual_feature_names: list[str]
    """The features of users."""
    action_feature_name: str | None = None
    """The feature that says what a user did."""
    max_num_candidates: int = 0
    """As in :class:`DatasetArgs`."""
    num_generated_batches: int = 100
    """Different batches at most."""


@dataclass(kw_only=True)
class NetworkArgs:
    """The HSTU blocks."""

    num_layers: int
    """How many."""
    hidden_size: int
    """Width of the states."""
    num_attention_heads: int
    """Heads."""
    kv_channels: int
    """Width of a head: of query, key and value."""
    hidden_dropout: float = 0.2
    """Before the output projection."""
    norm_epsilon: float = 1e-5
    """Of the norms."""
    is_causal: bool = True
    """Whether a token sees only what came before."""
    dtype_str: str = _one_of("bfloat16", "float16", default="bfloat16")
    """Number format of the blocks."""
    kernel_backend: str = _one_of("cutlass", "triton", "pytorch", default="cutlass")
    """Which kernels compute attention."""
    target_group_size: int = 1
    """Candidates that see each other."""
    num_position_buckets: int = 8192
    """Rows of the position table."""
    recompute_input_layernorm: bool = False
    """Compute the input norm again in the backward pass."""
    recompute_input_silu: bool = False
    """Compute SiLU again in the backward pass."""
    item_embedding_dim: int = -1
    """Width of item and action vectors; -1: ``hidden_size``."""
    contextual_embedding_dim: int = -1
    """Width of the vectors of contextual features; -1: ``hidden_size``."""
    scaling_seqlen: int = -1
    """What attention weights are divided by; -1: the longest sequence of the batch."""
    embedding_backend: str | None = None
    """Which library holds the tables."""
    disable_contextual_mask: bool = False
    """Contextual features are tokens like others: they see what came before alone."""
    layer_type: str = _one_of("fused", "native", default="fused")
    """Older versions: one kernel a layer, or torch's operations."""
    dense_initializer_type: str | None = field(
        default=None,
        metadata={"one_of": ("normal", "uniform", "constant", "xavier_uniform", "xavier_normal")},
    )
    """Older versions: distribution of the first weights."""
    dense_initializer_normal_std: float | None = None
    """Older versions: its standard deviation."""
    backbone: str = _one_of("hstu", "transformer", default="hstu")
    """Of inference; the training scripts know ``hstu`` alone."""
    transformer_ffn_dim: int | None = None
    """Of the backbone ``transformer``."""


@dataclass(kw_only=True)
class OptimizerArgs:
    """The optimiser, of the tables as of the rest."""

    optimizer_str: str = _one_of("adam", "sgd")
    """Its name; required."""
    learning_rate: float
    """Learning rate."""
    adam_beta1: float = 0.9
    """Decay of the gradient's running mean."""
    adam_beta2: float = 0.999
    """Decay of the squared gradient's running mean."""
    adam_eps: float = 1e-8
    """Added to the denominator."""


@dataclass(kw_only=True)
class TensorModelParallelArgs:
    """How a layer is shared out."""

    tensor_model_parallel_size: int = 1
    """Processes that share one layer."""


@dataclass(kw_only=True)
class RankingArgs:
    """The ranking task."""

    prediction_head_arch: list[int]
    """Widths of the head's layers; the last is the number of outputs."""
    prediction_head_act_type: str = _one_of("relu", "gelu", default="relu")
    """Between them."""
    prediction_head_bias: bool = True
    """Whether they have biases."""
    num_tasks: int = 1
    """Labels of an event."""
    eval_metrics: tuple[str, ...] = ("AUC",)
    """What is measured."""


@dataclass(kw_only=True)
class RetrievalArgs:
    """The retrieval task."""

    num_negatives: int = -1
    """Sampled negatives; -1: all other targets of the batch."""
    temperature: float = 0.05
    """What similarities are divided by."""
    l2_norm_eps: float = 1e-6
    """Smallest norm that vectors are divided by."""
    eval_metrics: tuple[str, ...] = ("HR@10", "NDCG@10")
    """What is measured."""


@dataclass(kw_only=True)
class MixedPrecisionArgs:
    """Older versions: 8-bit products. Refused where bound."""

    mixed_precision_dtype: str | None = None
    """Number format."""
    linear_recipe: str | None = None
    """Scaling of the linear layers."""
    linear_scaling_precision: str | None = None
    """Format of forward and backward."""
    hstu_attn_quantization_mode: str | None = None
    """Format of attention."""


@dataclass(kw_only=True)
class AttnBalancedBenchmarkArgs:
    """Of a benchmark of attention alone, which trains nothing. Refused where bound."""

    batch_size: int | None = None
    """Users in a batch."""
    max_seqlen: int | None = None
    """Tokens of a user at most."""
    seqlen_dist: RandomDistribution | None = None
    """Distribution of the lengths."""
    warmup_iters: int | None = None
    """Iterations that are not timed."""
    bench_iters: int | None = None
    """Iterations that are."""
    seed: int | None = None
    """Of the data."""


CLASSES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        TrainerArgs,
        EmbeddingArgs,
        DynamicEmbeddingArgs,
        DatasetArgs,
        FeatureArgs,
        RandomDistribution,
        BenchmarkDatasetArgs,
        NetworkArgs,
        OptimizerArgs,
        TensorModelParallelArgs,
        RankingArgs,
        RetrievalArgs,
        MixedPrecisionArgs,
        AttnBalancedBenchmarkArgs,
    )
}
"""By the name that gin files use."""
