"""The retrieval task of the HSTU scripts as options of the model ``hstu``."""

from __future__ import annotations

import re

from models.losses.options import ALL_OF_STEP
from pipelines.compat.hstu.gin_classes import NetworkArgs, RetrievalArgs
from pipelines.compat.hstu.translation import Translation
from pipelines.errors import ConfigError

_METRIC = re.compile(r"(HR|NDCG|MRR)@([1-9][0-9]*)", re.IGNORECASE)


def put_retrieval(made: Translation, network: NetworkArgs, task: RetrievalArgs, length: int) -> None:
    """Model, loss and metrics of retrieval over histories of ``length`` items.

    Raises:
        ConfigError: a field that cannot be honoured.
    """
    made.set(model__name="hstu", model__query_time="blind", model__similarity="cosine", model__positions="oldest")
    for name in ("item_embedding_dim", "contextual_embedding_dim"):
        if getattr(network, name) > 0 and getattr(network, name) != network.hidden_size:
            made.refuse(network, name, "retrieval compares states of hidden_size with item vectors", fix="leave it out")
    if network.disable_contextual_mask or network.target_group_size != 1:
        name = "disable_contextual_mask" if network.disable_contextual_mask else "target_group_size"
        made.refuse(network, name, "retrieval has neither contextual tokens nor targets to group", fix="leave it out")
    if network.num_position_buckets < length:
        what = f"a history of {length} items has more positions"
        made.refuse(network, "num_position_buckets", what, fix=f"write at least {length}")
    made.set(model__max_length=length)
    made.put_all(task, {"temperature": "model.temperature", "l2_norm_eps": "model.l2_norm_eps"})
    _put_negatives(made, task)
    metrics = [_metric(made, task, text) for text in task.eval_metrics]
    if not metrics:
        made.refuse(task, "eval_metrics", "nothing would choose the checkpoint")
    made.put("evaluation.ks", sorted({k for _, k in metrics}), task, "eval_metrics")
    made.put("training.select", f"{metrics[0][0]}@{metrics[0][1]}", task, "eval_metrics")
    made.set(evaluation__protocol="loo-full", evaluation__also=["loo-full-masked"])


def _put_negatives(made: Translation, task: RetrievalArgs) -> None:
    if task.num_negatives < 1 and task.num_negatives != ALL_OF_STEP:
        made.refuse(task, "num_negatives", "it is less than 1", fix="write -1 for all other targets of the batch")
    made.set(model__loss__name="sampled_softmax", model__loss__sampler="in_batch")
    made.put("model.loss.num_negatives", task.num_negatives, task, "num_negatives")


def _metric(made: Translation, task: RetrievalArgs, text: str) -> tuple[str, int]:
    found = _METRIC.fullmatch(text)
    if found is None:
        where = made.file.origin(task, "eval_metrics")
        raise ConfigError(f"unknown metric '{text}'", where=where, fix="write such as 'HR@10', 'NDCG@20' or 'MRR@10'")
    return found[1].upper(), int(found[2])
