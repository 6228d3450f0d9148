"""Made-up data as BenchmarkDatasetArgs describes them, as a dataset of this project.

The description and the dataset's YAML file go to ``synthetic/`` of the data folder under a name that tells their
content; the events are drawn when the dataset is prepared, once.
"""

from __future__ import annotations

import hashlib
import os

import yaml

from pipelines.compat.hstu.gin_classes import (
    BenchmarkDatasetArgs,
    DynamicEmbeddingArgs,
    EmbeddingArgs,
    FeatureArgs,
    RandomDistribution,
    RankingArgs,
    TrainerArgs,
)
from pipelines.compat.hstu.translation import Translation
from pipelines.data.datasets import data_folder
from pipelines.data.synthetic import Description, Distribution
from pipelines.data.user_features import USER_ID
from pipelines.errors import ConfigError, nearest
from pipelines.run_folder import write_text

Table = EmbeddingArgs | DynamicEmbeddingArgs
_ADAGRAD = "row-wise Adagrad trains it, with OptimizerArgs.learning_rate"


def describe_benchmark(
    made: Translation, data: BenchmarkDatasetArgs, trainer: TrainerArgs, replicas: int, ranking: bool
) -> int:
    """Write the dataset and put it into the recipe; the longest history, candidates apart.

    Raises:
        ConfigError: features, tables and distributions that do not fit each other, ids outside a table among them.
    """
    tables = _tables(made, data)
    _check_distributions(made, data)
    item = _feature(made, data, data.item_feature_name, "item_feature_name")
    if data.num_generated_batches < 1:
        made.refuse(data, "num_generated_batches", "it is less than 1")
    context = {
        name: _values(made, data, _user_feature(made, data, name), name, tables, "contextual_feature_names")
        for name in data.contextual_feature_names
        if name != USER_ID  # which every store has of its own
    }
    described = Description(
        users=max(2, trainer.train_batch_size * replicas * data.num_generated_batches),
        lengths=_lengths(made, item),
        items=_values(made, data, item, data.item_feature_name, tables, "item_feature_name"),
        actions=_actions(made, data, tables) if ranking else None,
        action_column="actions" if _tasks(made, ranking) else "rating",
        context=context or None,
        seed=trainer.seed,
    )
    _put_table(made, tables[data.item_feature_name], described)
    made.put("dataset.name", _write(made, data, described, ranking), data, "item_feature_name")
    history = item.max_sequence_length - data.max_num_candidates
    if history < 1:
        made.refuse(data, "max_num_candidates", "no item is left for the history")
    made.put("loader.max_length", history, item, "max_sequence_length")
    return history


def _tables(made: Translation, data: BenchmarkDatasetArgs) -> dict[str, Table]:
    """The table of each feature.

    Raises:
        ConfigError: two tables claim one feature.
    """
    tables: dict[str, Table] = {}
    for table in data.embedding_args:
        for name in table.feature_names:
            if tables.setdefault(name, table) is not table:
                made.refuse(table, "feature_names", f"another table has the feature '{name}' already")
    return tables


def _check_distributions(made: Translation, data: BenchmarkDatasetArgs) -> None:
    """Refuse a distribution of values that no feature would be drawn from.

    Raises:
        ConfigError: it is of a feature that its FeatureArgs does not have.
    """
    for feature in data.feature_args:
        for name in feature.value_dists or {}:
            if name not in feature.feature_names:
                where = made.file.origin(feature, "value_dists")
                what = f"there is no feature '{name}' in feature_names"
                raise ConfigError(what, where=where, fix=nearest(name, feature.feature_names))


def _put_table(made: Translation, table: Table, described: Description) -> None:
    """Where the item table lies, and what it gives up once it is full.

    In one process it lies there whole and nothing is left to say, unless more ids can come up than a dynamic table
    holds: ids that are drawn below a bound cannot, nor can more than there are events.
    """
    dynamic, bound = isinstance(table, DynamicEmbeddingArgs), described.items.high
    events = described.users * ((described.lengths.high or 1) - 1)
    most = events if bound is None else min(bound, events)
    if isinstance(table, DynamicEmbeddingArgs) and most > table.item_vocab_size_or_capacity:
        rows = table.item_vocab_size_or_capacity // made.processes * made.processes
        if not rows:
            made.refuse(table, "item_vocab_size_or_capacity", f"it is less than {made.processes} processes")
        made.set(embedding__sharding="row_wise")
        made.put("embedding.capacity", rows, table, "item_vocab_size_or_capacity")
        made.put("embedding.eviction", table.evict_strategy, table, "evict_strategy")
        made.note(table, "item_vocab_size_or_capacity", f"up to {most:,} ids share {rows:,} rows; {_ADAGRAD}")
    elif made.processes > 1 and (dynamic or table.sharding_type == "model_parallel"):
        made.put("embedding.sharding", "auto", table, "sharding_type")
        made.note(table, "sharding_type", f"the item table is spread over the processes; {_ADAGRAD}")


def _write(made: Translation, data: BenchmarkDatasetArgs, described: Description, ranking: bool) -> str:
    """The dataset's YAML file and the description beside it; the path of the former."""
    prepare: dict[str, object] = {}
    if ranking:
        prepare["user_features"] = list(data.contextual_feature_names)
        tasks, actions = _tasks(made, ranking), described.actions
        if tasks:
            prepare["action_bits"] = [f"task_{number}" for number in range(1, tasks + 1)]
        elif actions is not None and actions.high is not None:
            prepare["rating_levels"] = list(range(actions.high))
    digest = hashlib.sha256(f"{described.to_json()} {prepare}".encode()).hexdigest()[:12]
    path = (data_folder() / "synthetic" / f"{digest}.json").absolute()
    spec = {"name": f"made-up-{digest}", "format": "synthetic", "path": str(path), "prepare": prepare}
    spec |= {"description": "made-up data", "note": "drawn at random: nothing can be learned from them"}
    dataset = path.with_suffix(".yaml")
    for target, text in ((path, described.to_json()), (dataset, yaml.safe_dump(spec, sort_keys=False))):
        if not target.is_file():
            own = target.with_name(f"{target.name}.{os.getpid()}")  # all processes of a run may be here at once
            write_text(own, text)
            own.replace(target)
    return str(dataset)


def _tasks(made: Translation, ranking: bool) -> int:
    """Binary labels of an event; 0 where its label is one class of several."""
    if not ranking:
        return 0
    task = made.file.get(RankingArgs)
    return task.num_tasks if task.prediction_head_arch[-1:] == [task.num_tasks] else 0


def _actions(made: Translation, data: BenchmarkDatasetArgs, tables: dict[str, Table]) -> Distribution:
    """What users do with items: any mask of the tasks, or any class, as likely as another unless described."""
    name = data.action_feature_name
    if name is None:
        made.refuse(data, "action_feature_name", "ranking reads and predicts what users did", fix="name a feature")
    task = made.file.get(RankingArgs)
    outputs = task.prediction_head_arch[-1] if task.prediction_head_arch else 1
    high = 1 << task.num_tasks if _tasks(made, True) else outputs
    feature = _feature(made, data, name, "action_feature_name")
    given = (feature.value_dists or {}).get(name)
    if given is not None:
        _check_below(made, given, high, f"the {outputs} outputs of the head tell {high} actions apart")
        return _distribution(made, given, high)
    made.note(data, "action_feature_name", f"actions are drawn below {high}; an event's action is its label too")
    return Distribution("uniform", high=high)


def _feature(made: Translation, data: BenchmarkDatasetArgs, name: str, field: str) -> FeatureArgs:
    found = next((feature for feature in data.feature_args if name in feature.feature_names), None)
    if found is None:
        made.refuse(data, field, f"no FeatureArgs has the feature '{name}'")
    return found


def _user_feature(made: Translation, data: BenchmarkDatasetArgs, name: str) -> FeatureArgs:
    feature = _feature(made, data, name, "contextual_feature_names")
    if feature.max_sequence_length != 1 or feature.is_jagged:
        made.refuse(feature, "max_sequence_length", f"the contextual feature '{name}' has one value", fix="write 1")
    return feature


def _lengths(made: Translation, item: FeatureArgs) -> Distribution:
    longest = item.max_sequence_length
    if longest < 1:
        made.refuse(item, "max_sequence_length", "it is less than 1")
    if not item.is_jagged:
        if item.seqlen_dist is not None:
            made.note(item, "seqlen_dist", "not used: is_jagged is False, so all histories have the same length")
        return Distribution("uniform", low=longest, high=longest + 1)
    if item.seqlen_dist is None:
        return Distribution("uniform", high=longest)
    if item.seqlen_dist.high is not None and item.seqlen_dist.high > longest:
        made.refuse(item.seqlen_dist, "high", f"max_sequence_length is {longest}")
    return _distribution(made, item.seqlen_dist, longest)


def _values(
    made: Translation,
    data: BenchmarkDatasetArgs,
    feature: FeatureArgs,
    name: str,
    tables: dict[str, Table],
    field: str,
) -> Distribution:
    """Distribution of a feature's values: its own, else uniform over its table."""
    if name not in tables:
        made.refuse(data, field, f"no table in embedding_args has the feature '{name}'")
    table = tables[name]
    rows = table.item_vocab_size_or_capacity
    if rows < 1:
        made.refuse(table, "item_vocab_size_or_capacity", "it is less than 1")
    given = (feature.value_dists or {}).get(name)
    if given is None:
        return Distribution("uniform", high=rows)
    if isinstance(table, EmbeddingArgs):
        _check_below(made, given, rows, f"the table of '{name}' has {rows:,} rows, and no id lies outside it")
    return _distribution(made, given, rows if isinstance(table, EmbeddingArgs) else None)


def _check_below(made: Translation, given: RandomDistribution, rows: int, why: str) -> None:
    """Refuse a distribution that reaches beyond ``rows``.

    Raises:
        ConfigError: with file, line and field.
    """
    if given.high is not None and given.high > rows:
        made.refuse(given, "high", why, fix=f"write at most {rows}")


def _distribution(made: Translation, given: RandomDistribution, below: int | None) -> Distribution:
    """``given``, its numbers below ``below`` where it has no bound of its own.

    Raises:
        ConfigError: nothing can be drawn from it.
    """
    high = below if given.high is None else given.high
    try:
        return Distribution(given.dist_type, given.low, high, given.mean, given.std, given.alpha)
    except ConfigError as error:
        raise ConfigError(error.what, where=made.file.origin(given, "dist_type"), fix=error.fix) from error
