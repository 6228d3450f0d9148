"""Evaluation of a retrieval task: encode every query's history, rank its target, keep every rank.

The evaluator knows a task's ``encode``, ``item_vectors`` and ``score_block``, nothing else. Ranks are kept by user, so
confidence intervals, paired tests and slices need no second run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.batch import Jagged, SequenceBatch
from pipelines.data.loader import AnyGather, evaluation_batches
from pipelines.data.splits import Queries
from pipelines.data.store import SequenceStore
from pipelines.errors import DataError
from pipelines.evaluation.protocols import Protocol
from pipelines.evaluation.ranking import EvaluatedTask, NonFiniteScoreError, count_ranks, metrics_from_ranks
from pipelines.evaluation.sampled import count_sampled_ranks, draw_negatives
from pipelines.training.distributed import World

Observe = Callable[[EvaluatedTask, Tensor, Jagged | None], None]
Seconds = tuple[float, float, float]  # in the encoder, for ranking, in what observes


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Attributes:
        ranks: ``[Q]`` int64 in the order of the queries; 1 is best.
        metrics: HR@k, Recall@k, NDCG@k, MRR@k for the protocol's cut-offs.
        encode_seconds: time in the model's encoder, loading of batches included.
        rank_seconds: time for ranking, given the states.
        num_queries: ``Q``.
        observe_seconds: time in ``observe``.
    """

    ranks: np.ndarray
    metrics: dict[str, float]
    encode_seconds: float
    rank_seconds: float
    num_queries: int
    observe_seconds: float = 0.0


def evaluate(
    task: EvaluatedTask,
    store: SequenceStore,
    queries: Queries,
    *,
    protocol: Protocol,
    max_length: int,
    device: torch.device | str = "cpu",
    tokens_per_batch: int = 16384,
    queries_per_ranking: int = 8192,
    between_batches: Callable[[], None] | None = None,
    world: World | None = None,
    observe: Observe | None = None,
    gather: AnyGather | None = None,
) -> Evaluation:
    """Rank every query's target among the whole catalogue.

    Args:
        task: a retrieval task on ``device``; set to evaluation mode meanwhile and back afterwards.
        store: the sequences.
        queries: at least one, each with a history.
        protocol: says whether seen items compete, and the cut-offs.
        max_length: items of a history that the model sees.
        device: where the task lives.
        tokens_per_batch: tokens in an encoder batch.
        queries_per_ranking: states gathered before they are ranked; large enough to fill blocks, small enough that
            states and histories of all users are never held at once.
        between_batches: called after each encoder batch; it may raise to break off.
        world: the processes that share the queries out; each gets the whole answer.
        observe: called with the task, some states and what their users have seen (None where nothing is masked)
            when they are ranked; of several processes each observes its own share.
        gather: makes the batches, where events are resident on ``device``; by default the loader does, on the host.

    Raises:
        DataError: no queries, one without history, or a task made for another catalogue.
        NonFiniteScoreError: a score is NaN or infinite; names the first user by original id.
    """
    world, device = world or World(), torch.device(device)
    _check(task, store, queries)
    mine = np.arange(world.rank, len(queries), world.size)
    share = Queries(queries.user[mine], queries.end[mine])

    def rank_share() -> tuple[np.ndarray, Seconds]:
        size = {"max_length": max_length, "tokens_per_batch": tokens_per_batch}
        batches = evaluation_batches(store, share, gather=gather, **size)
        encoded = _encoded(task, batches, queries_per_ranking, device, between_batches)
        return _ranks(task, store, share, encoded, protocol, device, observe)

    training = task.training
    task.eval()
    try:
        parts = world.gather(world.agree(rank_share))
    finally:
        task.train(training)
    ranks = np.zeros(len(queries), dtype=np.int64)
    for rank, (part, _) in enumerate(parts):
        ranks[rank :: world.size] = part
    metrics = metrics_from_ranks(torch.from_numpy(ranks), protocol.ks)
    encode, rank, watch = (max(times) for times in zip(*(seconds for _, seconds in parts), strict=True))
    return Evaluation(ranks, metrics, encode, rank, len(queries), watch)


def _check(task: EvaluatedTask, store: SequenceStore, queries: Queries) -> None:
    if not len(queries):
        raise DataError("there are no queries to evaluate", where=str(store.path))
    if task.num_items != store.num_items:
        raise DataError(
            f"the model knows {task.num_items} items, the data hold {store.num_items}",
            where=str(store.path),
            fix="Evaluate on the data that the model was trained on",
        )
    empty = np.flatnonzero(queries.end <= store.offsets[queries.user])
    if len(empty):
        raise DataError(f"{len(empty)} queries have no history, the first is of user index {queries.user[empty[0]]}")


def _now(device: torch.device) -> float:
    """The time when everything asked of ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _encoded(
    task: EvaluatedTask,
    batches: Iterable[tuple[np.ndarray, SequenceBatch]],
    wanted: int,
    device: torch.device,
    between_batches: Callable[[], None] | None,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """``(positions in queries, states [n, D])``, ``n`` at least ``wanted`` but for the last."""
    positions: list[np.ndarray] = []
    states: list[Tensor] = []
    for rows, batch in batches:
        with torch.inference_mode():
            states.append(task.encode(batch.to(device)))
        positions.append(rows)
        if between_batches is not None:
            between_batches()
        if sum(map(len, positions)) >= wanted:
            yield np.concatenate(positions), torch.cat(states)
            positions, states = [], []
    if positions:
        yield np.concatenate(positions), torch.cat(states)


def _ranks(
    task: EvaluatedTask,
    store: SequenceStore,
    queries: Queries,
    encoded: Iterable[tuple[np.ndarray, Tensor]],
    protocol: Protocol,
    device: torch.device,
    observe: Observe | None,
) -> tuple[np.ndarray, Seconds]:
    """The rank of each query's target, and where the time went."""
    ranks = np.zeros(len(queries), dtype=np.int64)
    encode_seconds = rank_seconds = observe_seconds = 0.0
    started = _now(device)
    for positions, states in encoded:
        begun, ready = started, _now(device)
        some = Queries(queries.user[positions], queries.end[positions])
        try:
            seen = histories(store, some, states.device) if protocol.mask_seen else None
            ranks[positions] = _rank(task, store, some, states, protocol, seen)
            ranked = started = time.perf_counter()
            if observe is not None:
                observe(task, states, seen)
                started = _now(device)
        except NonFiniteScoreError as error:
            user = store.user_ids()[some.user[int(error.queries[0])]]
            raise NonFiniteScoreError(error.queries, error.total, first=f"user {user}") from None
        encode_seconds, rank_seconds = encode_seconds + ready - begun, rank_seconds + ranked - ready
        observe_seconds += started - ranked
    return ranks, (encode_seconds, rank_seconds, observe_seconds)


def _rank(
    task: EvaluatedTask,
    store: SequenceStore,
    queries: Queries,
    states: Tensor,
    protocol: Protocol,
    seen: Jagged | None,
) -> np.ndarray:
    targets = torch.from_numpy(store.items[queries.end].astype(np.int64)).to(states.device)
    if protocol.negatives is None or seen is None:
        return count_ranks(task, states, targets, seen).cpu().numpy()
    negatives = draw_negatives(
        seen, targets, queries.end, task.num_items, protocol.negatives, seed=protocol.sample_seed
    )
    return count_sampled_ranks(task, states, targets, negatives).cpu().numpy()


def histories(store: SequenceStore, queries: Queries, device: torch.device | str = "cpu") -> Jagged:
    """The items of each query's whole history (not just of the model's window), with repeats, as ``Q`` rows."""
    begin = store.offsets[queries.user]
    offsets = np.concatenate([[0], np.cumsum(queries.end - begin)])
    events = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], queries.end - begin)
    return Jagged(torch.from_numpy(store.items[events]).to(device), torch.from_numpy(offsets).to(device))


def shuffle_ties(store: SequenceStore, seed: int, *, asked: Queries | None = None) -> SequenceStore:
    """A control: the same store with events of equal timestamp of one user in random order.

    A model that reads the file's order of simultaneous events loses that here. The arrays are in memory; the content
    hash says what was done, so that splits made of it have a digest of their own.

    Args:
        store: the sequences.
        seed: of the order.
        asked: queries whose targets stay where they are; only what lies before (or after) a target changes places. A
            trained model must be asked this way: in a free shuffle a fifth of ML-1M's test targets would be events that
            it was trained or validated on.
    """
    user = np.repeat(np.arange(store.num_users), np.diff(store.offsets))
    starts = (np.diff(user, prepend=-1) != 0) | (np.diff(store.timestamps, prepend=-1) != 0)
    if asked is not None:
        starts[asked.end] = True
        starts[asked.end[asked.end + 1 < len(starts)] + 1] = True
    group = np.cumsum(starts)
    order = np.argsort(group + np.random.default_rng(seed).random(len(group)), kind="stable")
    manifest = {
        **store.manifest,
        "tie_rule": f"events of equal timestamp shuffled, seed {seed}",
        "content_hash": f"{store.manifest['content_hash']}+ties-shuffled-{seed}",
    }
    features = {name: values[order] for name, values in store.features.items()}
    return replace(store, items=store.items[order], features=features, manifest=manifest)


def write_ranks(path: Path, store: SequenceStore, queries: Queries, ranks: np.ndarray) -> None:
    """One row a query to Parquet: ``user_id``, ``target_item_id``, ``rank`` int32, ``history_length`` int32.

    The file is written beside its place and renamed.
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    table = arrow.table(
        {
            "user_id": store.user_ids()[queries.user],
            "target_item_id": store.item_ids()[store.items[queries.end] - 1],
            "rank": arrow.array(ranks.astype(np.int32)),
            "history_length": arrow.array((queries.end - store.offsets[queries.user]).astype(np.int32)),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    parquet.write_table(table, temporary)
    temporary.replace(path)
