"""A gin file of the HSTU training scripts as a recipe of this project."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.layers.hstu import LONGEST_ROW
from pipelines.compat.hstu.benchmark_data import describe_benchmark
from pipelines.compat.hstu.gin_classes import (
    BenchmarkDatasetArgs,
    DatasetArgs,
    NetworkArgs,
    OptimizerArgs,
    RankingArgs,
    RetrievalArgs,
    TensorModelParallelArgs,
    TrainerArgs,
)
from pipelines.compat.hstu.gin_reader import GinFile, read_gin
from pipelines.compat.hstu.ranking import put_ranking
from pipelines.compat.hstu.retrieval import put_retrieval
from pipelines.compat.hstu.translation import Translation
from pipelines.compat.written import checked_recipe
from pipelines.config import RunConfig
from pipelines.config_files import Layered, parse_override
from pipelines.errors import ConfigError
from pipelines.training.distributed import this_world

TASKS = {"pretrain_gr_retrieval": "retrieval", "pretrain_gr_ranking": "ranking"}
"""What each of the scripts trains."""
_AHEAD = {"none": 0, "native": 1, "prefetch": 2}


def translate(path: Path, task: str | None = None, processes: int = 1) -> Translation:
    """The recipe that the file ``path`` means for ``task``, in so many processes.

    Args:
        path: the gin file.
        task: ``retrieval`` or ``ranking``; None: the one that the file binds.
        processes: that will train together; the scripts' batch sizes are those of one.

    Raises:
        ConfigError: anything that cannot be honoured, with file, line and field.
        MachineError: gin-config is not installed.
    """
    file = read_gin(path)
    made = Translation(file, processes)
    made.refuse_classes()
    ranking = (task or task_of(file)) == "ranking"
    name = re.sub(r"[^A-Za-z0-9._-]", "_", path.stem).lstrip("._-") or "gin"
    made.set(name=name, recipe=path.stem)
    parallel = file.get(TensorModelParallelArgs)
    network = file.get(NetworkArgs)
    replicas = _put_parallel(made, parallel, network)
    trainer = file.get(TrainerArgs)
    _put_trainer(made, trainer, replicas)
    _put_optimizer(made, file.get(OptimizerArgs))
    data = _data(made)
    history = _put_data(made, data, trainer, replicas, ranking)
    _put_network(made, network)
    if ranking:
        put_ranking(made, network, file.get(RankingArgs), data, history)
    else:
        put_retrieval(made, network, file.get(RetrievalArgs), history)
    made.name_what_is_not_used()
    return made


def task_of(file: GinFile) -> str:
    """What a file that is run without one of the scripts trains.

    Raises:
        ConfigError: it binds both tasks, or neither.
    """
    bound = [task for kind, task in ((RetrievalArgs, "retrieval"), (RankingArgs, "ranking")) if file.bound(kind)]
    if len(bound) != 1:
        what = "binds RetrievalArgs and RankingArgs" if bound else "binds neither RetrievalArgs nor RankingArgs"
        fix = f"python -m pipelines.compat.hstu {'|'.join(TASKS)} --gin-config-file {file.path}"
        raise ConfigError(f"{what}: what is to be trained?", where=str(file.path), fix=fix)
    return bound[0]


def to_config(made: Translation) -> RunConfig:
    """The recipe, checked; what the schema complains of names the gin file's line and field.

    Raises:
        ConfigError: see above.
    """
    return checked_recipe(made.layers)


def load_gin(path: Path, overrides: Sequence[str] = (), extra: Layered | None = None) -> RunConfig:
    """The run that a gin file means for this process, with ``--set`` overrides and other flags' values on top.

    Raises:
        ConfigError: see :func:`translate`; or the file names a checkpoint to begin with.
    """
    world = this_world()
    made = translate(path, None, world.size)
    if made.resume is not None:
        fix = f"take it out and give --resume {made.resume[0]}"
        raise ConfigError("is read by python -m pipelines.compat.hstu", where=made.resume[1], fix=fix)
    for note in made.notes if world.first else ():
        print(note, file=sys.stderr)
    layers = extra.over(made.layers) if extra is not None else made.layers
    for text in overrides:
        key, value = parse_override(text)
        layers.put(key, value, f"--set {text}")
    return to_config(replace(made, layers=layers))


def _put_parallel(made: Translation, parallel: TensorModelParallelArgs, network: NetworkArgs) -> int:
    """How layers are spread; data-parallel processes, as the scripts count them.

    Raises:
        ConfigError: the tensor-parallel size divides neither heads nor processes.
    """
    name, size = "tensor_model_parallel_size", parallel.tensor_model_parallel_size
    if size < 1:
        made.refuse(parallel, name, "it is less than 1")
    if network.num_attention_heads % size:
        made.refuse(parallel, name, f"it does not divide the {network.num_attention_heads} attention heads")
    if made.processes > 1 and made.processes % size:
        made.refuse(parallel, name, f"it does not divide the {made.processes} processes")
    if made.processes > 1:
        made.put("parallel.tensor", size, parallel, name)
    elif size > 1:
        made.note(parallel, name, f"one process holds whole layers, which {size} would share: the same numbers")
    return max(1, made.processes // size)


def _put_trainer(made: Translation, trainer: TrainerArgs, replicas: int) -> None:
    for name in ("train_batch_size", "eval_batch_size", "log_interval"):
        if getattr(trainer, name) < 1:
            made.refuse(trainer, name, "it is less than 1")
    made.set(loader__batch="rows", training__patience=0)
    made.put("loader.rows_per_batch", trainer.train_batch_size * replicas, trainer, "train_batch_size")
    made.put_all(trainer, {"log_interval": "training.log_every", "eval_interval": "training.eval_steps"})
    made.put_all(trainer, {"seed": "seed"})
    made.put("training.max_steps", trainer.max_train_iters or 0, trainer, "max_train_iters")
    epochs = trainer.max_train_iters or 1  # so many updates never take more epochs
    made.put("training.epochs", epochs, trainer, "max_train_iters")
    if not trainer.eval_interval:
        made.put("training.eval_every", epochs, trainer, "eval_interval")
    if trainer.max_eval_iters is not None:
        if trainer.max_eval_iters < 0:
            made.refuse(trainer, "max_eval_iters", "it is negative")
        asked = trainer.max_eval_iters * trainer.eval_batch_size * replicas
        made.put("training.valid_queries", asked, trainer, "max_eval_iters")
    if trainer.profile:
        made.put("training.profile_from", trainer.profile_step_start, trainer, "profile_step_start")
        made.put("training.profile_until", trainer.profile_step_end, trainer, "profile_step_end")
    made.put("training.checkpoint_steps", max(0, trainer.ckpt_save_interval), trainer, "ckpt_save_interval")
    if made.file.given(trainer, "ckpt_save_dir"):
        made.put("runs", trainer.ckpt_save_dir, trainer, "ckpt_save_dir")
    if trainer.ckpt_load_dir:
        made.resume = trainer.ckpt_load_dir, made.file.origin(trainer, "ckpt_load_dir")
    deal = "attention" if trainer.enable_balanced_shuffler else "tokens"
    made.put("loader.deal", deal, trainer, "enable_balanced_shuffler")
    made.put("training.prefetch", _AHEAD[trainer.pipeline_type], trainer, "pipeline_type")


def _put_optimizer(made: Translation, optimizer: OptimizerArgs) -> None:
    if optimizer.optimizer_str != "adam":
        made.refuse(optimizer, "optimizer_str", "there are adam and adamw", fix="write 'adam'")
    keys = {"learning_rate": "lr", "adam_beta1": "beta1", "adam_beta2": "beta2", "adam_eps": "eps"}
    made.put_all(optimizer, {name: f"optimizer.{key}" for name, key in keys.items()})
    made.put("optimizer.name", "adam", optimizer, "optimizer_str")


def _data(made: Translation) -> DatasetArgs | BenchmarkDatasetArgs:
    """What the file binds of the two.

    Raises:
        ConfigError: published and made-up data, or neither.
    """
    published, benchmark = made.file.bound(DatasetArgs), made.file.bound(BenchmarkDatasetArgs)
    if published == benchmark:
        what = "binds both DatasetArgs and BenchmarkDatasetArgs" if benchmark else "DatasetArgs.dataset_name is missing"
        raise ConfigError(what, where=str(made.file.path), fix="bind one of the two classes")
    return made.file.get(BenchmarkDatasetArgs) if benchmark else made.file.get(DatasetArgs)


def _put_data(
    made: Translation, data: DatasetArgs | BenchmarkDatasetArgs, trainer: TrainerArgs, replicas: int, ranking: bool
) -> int:
    """The dataset; the longest history, candidates apart."""
    if data.max_num_candidates < 0:
        made.refuse(data, "max_num_candidates", "it is negative")
    if data.max_num_candidates and not ranking:
        made.refuse(data, "max_num_candidates", "retrieval has no candidates: every item of the catalogue is one")
    if isinstance(data, BenchmarkDatasetArgs):
        return describe_benchmark(made, data, trainer, replicas, ranking)
    return _put_published(made, data, ranking)


def _put_published(made: Translation, data: DatasetArgs, ranking: bool) -> int:
    history, total = data.max_history_seqlen, data.max_sequence_length
    if history is not None and total is not None:
        made.refuse(data, "max_sequence_length", "max_history_seqlen says another thing", fix="bind one of them")
    if history is None and total is None:
        raise ConfigError("DatasetArgs.max_history_seqlen is missing", where=made.file.origin(data, "dataset_name"))
    name = "max_history_seqlen" if total is None else "max_sequence_length"
    length = total - data.max_num_candidates if total is not None else history or 0
    if length < 1:
        made.refuse(data, name, "no item is left for the history")
    context = ranking and data.dataset_name.startswith("ml-")  # there the plain dataset has neither users nor actions
    made.put("dataset.name", f"{data.dataset_name}-context" if context else data.dataset_name, data, "dataset_name")
    if data.dataset_path is not None:
        if not Path(data.dataset_path).is_dir():
            made.refuse(data, "dataset_path", "it is no folder; the published files are looked for in one")
        made.put("dataset.cache", data.dataset_path, data, "dataset_path")
    made.put("loader.shuffle", data.shuffle, data, "shuffle")
    made.put("loader.max_length", length, data, name)
    return length


def _put_network(made: Translation, network: NetworkArgs) -> None:
    """What both tasks share."""
    made.refuse_unless(network, "is_causal", True)
    made.refuse_unless(network, "backbone", "hstu")
    made.refuse_unless(network, "transformer_ffn_dim", None)
    _put_initializer(made, network)
    if network.dtype_str == "float16":
        made.refuse(network, "dtype_str", "there are bfloat16 and float32", fix="write 'bfloat16', or leave it out")
    if made.file.given(network, "dtype_str"):
        made.put("training.precision", "bfloat16", network, "dtype_str")
    keys = {"num_layers": "blocks", "hidden_size": "hidden", "num_attention_heads": "heads"}
    keys |= {"hidden_dropout": "dropout", "norm_epsilon": "norm_eps"}
    keys |= {"recompute_input_layernorm": "recompute_norm", "recompute_input_silu": "recompute_silu"}
    made.put_all(network, {name: f"model.{key}" for name, key in keys.items()})
    for key in ("attention_dim", "linear_dim"):
        made.put(f"model.{key}", network.kv_channels, network, "kv_channels")
    made.set(model__scale_by_dim=True, model__norm_affine=True, model__relative_bias="none")
    _put_divisor(made, network)


def _put_divisor(made: Translation, network: NetworkArgs) -> None:
    """What attention weights are divided by, where the file says."""
    if not made.file.given(network, "scaling_seqlen"):
        return
    if network.scaling_seqlen != LONGEST_ROW and network.scaling_seqlen < 1:
        made.refuse(network, "scaling_seqlen", "it is less than 1", fix="write -1 for the longest of the batch")
    if network.scaling_seqlen == LONGEST_ROW:
        what = "what a user gets depends on who else is in the batch, in training and in evaluation"
        made.note(network, "scaling_seqlen", what)
    made.put("model.scaling_length", network.scaling_seqlen, network, "scaling_seqlen")


def _put_initializer(made: Translation, network: NetworkArgs) -> None:
    """How the blocks' projections begin; only older versions let a file say it."""
    kind, std = network.dense_initializer_type, network.dense_initializer_normal_std
    if kind not in (None, "normal"):
        made.refuse(network, "dense_initializer_type", "there is 'normal'", fix="write it, or leave the line out")
    if kind == "normal":
        name = "dense_initializer_type" if std is None else "dense_initializer_normal_std"
        made.put("model.dense_init_std", 1.0 if std is None else std, network, name)
    elif std is not None:
        made.refuse(network, "dense_initializer_normal_std", "it is of dense_initializer_type = 'normal'")
