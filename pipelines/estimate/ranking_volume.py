"""How much a ranking run has to go through, from the store or from published counts.

From a store everything is counted with the loader's own functions. From counts it is so for no number but users and
items: who trains is a draw, and lengths of histories are supposed as in :mod:`pipelines.estimate.volume`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from models.ranking import RankingData
from pipelines import ranking_stages
from pipelines.config import RunConfig
from pipelines.data.datasets import DatasetSpec
from pipelines.data.prepare import PrepareOptions
from pipelines.data.ranking_loader import ranking_windows
from pipelines.data.store import SequenceStore
from pipelines.data.user_features import USER_ID
from pipelines.errors import ConfigError
from pipelines.estimate.lengths import Lengths
from pipelines.estimate.ranking_layers import shape_of
from pipelines.estimate.volume import Volume, volume_of_windows
from pipelines.evaluation.ranking_protocols import RankingProtocol, get_ranking_protocol

TRAIN, VALID = 0.8, 0.1  # of the users, where users are split


def protocol_of(config: RunConfig) -> RankingProtocol:
    """How the recipe asks."""
    return get_ranking_protocol(config.evaluation.protocol, config.model_options().candidates)


def ranking_from_store(config: RunConfig, store: SequenceStore) -> Volume:
    """Everything counted by the loader itself.

    Raises:
        ConfigError: the data name no actions.
    """
    loader, candidates, protocol = config.loader, config.model_options().candidates, protocol_of(config)
    if store.actions is None:
        what = f"dataset '{config.dataset.name}' names no actions, which {config.model['name']} predicts"
        raise ConfigError(what, where="dataset.name")
    split, data = protocol.divide(store), ranking_stages.ranking_data(store)
    windows = ranking_windows(store, split.train, loader.max_length, candidates, loader.windows)
    lengths = windows.lengths
    total = int(lengths.sum())
    targets = int(np.minimum(lengths, candidates).sum()) if candidates else total
    return replace(
        volume_of_windows(config, store, windows),
        targets=targets,
        queries=len(split.valid),
        query_tokens=int(ranking_windows(store, split.valid, loader.max_length, protocol.asked).lengths.sum()),
        ranking=shape_of(data, total / len(lengths), targets / total),
    )


def ranking_from_counts(config: RunConfig, spec: DatasetSpec, counts: Mapping[str, int], fix: str) -> Volume:
    """From published counts: see the module docstring.

    Args:
        config: of a ranking model.
        spec: its dataset.
        counts: users, items, events and the fewest events of a user.
        fix: what to do where they do not decide.

    Raises:
        ConfigError: they do not, or the data name no actions.
    """
    loader, candidates, protocol = config.loader, config.model_options().candidates, protocol_of(config)
    if not (spec.prepare.rating_levels or spec.prepare.action_bits):
        what = f"dataset '{spec.name}' names no actions, which {config.model['name']} predicts"
        raise ConfigError(what, where="dataset.name")
    every = loader.windows == "all"
    if every and candidates:
        raise ConfigError("windows that overlap cannot be told from counts", where="loader.windows", fix=fix)
    users, mean, held_out = counts["users"], counts["events"] / counts["users"], 0
    train, asked = (round(TRAIN * users), round(VALID * users)) if protocol.split == "users" else (users, users)
    if protocol.split != "users":
        held_out = 2 * protocol.asked
        if counts["least"] <= held_out:
            what = f"users of '{spec.name}' may be too short to be tested on {protocol.asked} events"
            raise ConfigError(f"{what}: counts do not decide", where="evaluation.protocol", fix=fix)
    limit = loader.max_length + candidates
    lengths = Lengths(counts["least"] - held_out, mean - held_out)
    windows = round(train * lengths.pieces(limit)) if every else train
    total = round(train * (lengths.mean if every else lengths.capped(limit)))
    targets = round(train * lengths.capped(candidates)) if candidates else total
    rows = loader.batch == "rows"
    return Volume(
        source=f"published counts of {spec.name} (configs/datasets); features of users not counted, their ids apart",
        exact=False,
        users=users,
        items=counts["items"],
        events=counts["events"],
        windows=windows,
        targets=targets,
        batches=-(-windows // loader.rows_per_batch) if rows else -(-total // loader.tokens_per_batch),
        longest=limit,
        shared_length=lengths.shared(limit, every),
        largest_batch=min(total, loader.rows_per_batch * limit if rows else loader.tokens_per_batch + limit - 1),
        queries=asked,
        query_tokens=round(asked * Lengths(counts["least"], mean).capped(loader.max_length + protocol.candidates)),
        seen=0,
        ranking=shape_of(_published(spec.prepare, users), total / windows, targets / total),
    )


def _published(prepare: PrepareOptions, users: int) -> RankingData:
    """What a dataset's YAML file says of actions and users; codes of features are known of ids alone."""
    context = {name: users + 1 if name == USER_ID else 0 for name in prepare.user_features}
    if prepare.action_bits:
        return RankingData("bits", tuple(prepare.action_bits), context)
    return RankingData("classes", tuple(map(str, prepare.rating_levels)), context)
