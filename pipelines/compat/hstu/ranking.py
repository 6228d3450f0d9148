"""The ranking task of the HSTU scripts as options of the model ``hstu-ranking``."""

from __future__ import annotations

from pipelines.compat.hstu.gin_classes import BenchmarkDatasetArgs, DatasetArgs, NetworkArgs, RankingArgs
from pipelines.compat.hstu.translation import Translation
from pipelines.data.datasets import load_dataset_spec

ACTION_BITS = 8
"""Of an event of KuaiRand."""


def put_ranking(
    made: Translation,
    network: NetworkArgs,
    task: RankingArgs,
    data: DatasetArgs | BenchmarkDatasetArgs,
    history: int,
) -> None:
    """Model and metrics of ranking: ``history`` events, and behind them the candidates that ``data`` asks for.

    Raises:
        ConfigError: a field that cannot be honoured.
    """
    made.set(model__name="hstu-ranking", model__max_length=history)
    made.put("model.candidates", data.max_num_candidates, data, "max_num_candidates")
    made.put("model.target_group_size", network.target_group_size, network, "target_group_size")
    made.put("model.context_mask", not network.disable_contextual_mask, network, "disable_contextual_mask")
    for name, key in (("item_embedding_dim", "item_dim"), ("contextual_embedding_dim", "context_dim")):
        if getattr(network, name) > 0:
            made.put(f"model.{key}", getattr(network, name), network, name)
    if network.num_position_buckets <= history:
        what = f"a history of {history} events and a candidate have more positions"
        made.refuse(network, "num_position_buckets", what, fix=f"write at least {history + 1}")
    _put_head(made, task, data)
    if [metric.upper() for metric in task.eval_metrics] != ["AUC"]:
        made.refuse(task, "eval_metrics", "ranking is measured by the AUC of each task", fix="write ('AUC',)")
    made.put("training.select", "AUC", task, "eval_metrics")
    made.set(evaluation__protocol="ranking-users")


def _put_head(made: Translation, task: RankingArgs, data: DatasetArgs | BenchmarkDatasetArgs) -> None:
    """The prediction head; its last width says whether labels are bits or classes.

    Raises:
        ConfigError: it is neither as wide as the tasks are many nor one task of several classes.
    """
    if not task.prediction_head_arch:
        made.refuse(task, "prediction_head_arch", "it has no layer")
    width = task.prediction_head_arch[-1]
    if isinstance(data, DatasetArgs) and data.dataset_name.startswith("kuairand"):
        if width != ACTION_BITS or task.num_tasks not in (1, ACTION_BITS):
            name = "prediction_head_arch" if width != ACTION_BITS else "num_tasks"
            made.refuse(task, name, f"an event of KuaiRand has {ACTION_BITS} labels, each yes or no")
        if task.num_tasks == 1:  # older versions of the scripts had no such field
            made.note(task, "num_tasks", f"taken for {ACTION_BITS}: an event of KuaiRand has so many labels")
    elif isinstance(data, DatasetArgs):
        _check_ratings(made, task, data)
    elif task.num_tasks not in (1, width):
        what = f"the head has {width} outputs: one a task, or one task of {width} classes"
        made.refuse(task, "num_tasks", what, fix=f"write {width} or 1")
    keys = {"prediction_head_arch": "head", "prediction_head_act_type": "head_activation"}
    made.put_all(task, {name: f"model.{key}" for name, key in {**keys, "prediction_head_bias": "head_bias"}.items()})


def _check_ratings(made: Translation, task: RankingArgs, data: DatasetArgs) -> None:
    """An event of MovieLens has one label, its rating, which is one of several classes.

    Raises:
        ConfigError: the head is made for another number of classes, or for several labels.
    """
    classes = len(load_dataset_spec(f"{data.dataset_name}-context").prepare.rating_levels)
    if task.prediction_head_arch[-1] != classes:
        what = f"a rating of {data.dataset_name} is one of {classes} classes"
        made.refuse(task, "prediction_head_arch", what, fix=f"end it with {classes}")
    if task.num_tasks != 1:
        what = f"an event of {data.dataset_name} has one label, its rating"
        made.refuse(task, "num_tasks", what, fix="write 1")
