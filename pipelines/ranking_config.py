"""What the recipe of a ranking model must not say: refused before anything costs time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipelines.errors import ConfigError, nearest
from pipelines.evaluation.ranking_metrics import is_ranking_metric
from pipelines.evaluation.ranking_protocols import RANKING_PROTOCOLS

if TYPE_CHECKING:
    from pipelines.config import RunConfig

_FOR_RETRIEVAL = ("also", "shuffle_ties", "shuffle_order")


def check_ranking_run(config: RunConfig, origin: Callable[[tuple[str, ...]], str]) -> None:
    """Refuse protocols, metrics and options that belong to retrieval.

    Args:
        config: of a ranking model.
        origin: file and line of a key.

    Raises:
        ConfigError: the first of them, by name.
    """
    evaluation = config.evaluation
    if evaluation.protocol not in RANKING_PROTOCOLS:
        what = f"protocol '{evaluation.protocol}' is not one of a ranking model"
        fix = nearest(evaluation.protocol, RANKING_PROTOCOLS)
        raise ConfigError(what, where=origin(("evaluation", "protocol")), fix=fix)
    if config.engine.name != "recpod":
        what = f"{config.engine.name} trains no ranking model of ours"
        raise ConfigError(what, where=origin(("engine", "name")), fix="set engine.name=recpod")
    for key in _FOR_RETRIEVAL:
        if getattr(evaluation, key):
            what = f"evaluation.{key} is for retrieval, {config.model['name']} ranks"
            raise ConfigError(what, where=origin(("evaluation", key)), fix="leave it out")
    for gate in config.gates:
        if gate.times_popularity is not None:
            what = f"the gate on {gate.metric} compares with popularity, which predicts no actions"
            raise ConfigError(what, where=origin(("gates",)), fix="give above")
    named = [("gates", gate.metric) for gate in config.gates] + [("training", config.training.select)]
    for key, metric in named:
        if not is_ranking_metric(metric):
            what = f"'{metric}' is no metric of a ranking model to select or gate by"
            raise ConfigError(what, where=origin((key,)), fix="AUC, GAUC, or one task's, such as AUC:click")
