"""The retrieval task of the HSTU scripts as options of the model ``hstu``."""

from __future__ import annotations

import re

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
    _put_divisor(made, network, length)
    made.put_all(task, {"temperature": "model.temperature", "l2_norm_eps": "model.l2_norm_eps"})
    _put_negatives(made, task)
    metrics = [_metric(made, task, text) for text in task.eval_metrics]
    if not metrics:
        made.refuse(task, "eval_metrics", "nothing would choose the checkpoint")
    made.put("evaluation.ks", sorted({k for _, k in metrics}), task, "eval_metrics")
    made.put("training.select", f"{metrics[0][0]}@{metrics[0][1]}", task, "eval_metrics")
    made.set(evaluation__protocol="loo-full", evaluation__also=["loo-full-masked"])


def divisor_of(made: Translation, network: NetworkArgs) -> int:
    """What a file that binds ``scaling_seqlen`` divides attention weights by.

    Raises:
        ConfigError: a divisor that depends on the batch, or none.
    """
    if network.scaling_seqlen == -1:
        what = "the longest sequence of a batch would make results depend on how users are batched"
        made.refuse(network, "scaling_seqlen", what, fix="leave it out for the longest sequence of all")
    if network.scaling_seqlen < 1:
        made.refuse(network, "scaling_seqlen", "it is less than 1")
    return network.scaling_seqlen


def _put_divisor(made: Translation, network: NetworkArgs, length: int) -> None:
    """Retrieval's is the number of positions that the model knows."""
    if not made.file.given(network, "scaling_seqlen"):
        made.set(model__max_length=length)
    elif divisor_of(made, network) < length:
        what = f"histories have up to {length} items"
        made.refuse(network, "scaling_seqlen", what, fix=f"write at least {length}")
    else:
        made.put("model.max_length", network.scaling_seqlen, network, "scaling_seqlen")


def _put_negatives(made: Translation, task: RetrievalArgs) -> None:
    made.set(model__loss__name="sampled_softmax", model__loss__sampler="in_batch")
    if task.num_negatives > 0:
        made.put("model.loss.num_negatives", task.num_negatives, task, "num_negatives")
    elif made.file.given(task, "num_negatives"):
        what = "negatives are a number of draws from the targets of the step, not all of them"
        made.refuse(task, "num_negatives", what, fix="write how many, such as 1024")
    else:
        made.note(task, "num_negatives", "1024 draws from the targets of the step; the scripts take all of them")


def _metric(made: Translation, task: RetrievalArgs, text: str) -> tuple[str, int]:
    found = _METRIC.fullmatch(text)
    if found is None:
        where = made.file.origin(task, "eval_metrics")
        raise ConfigError(f"unknown metric '{text}'", where=where, fix="write such as 'HR@10', 'NDCG@20' or 'MRR@10'")
    return found[1].upper(), int(found[2])
