"""Named protocols of ranking tasks: who is asked about which events, and the card that travels with the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.data.splits import Split, make_split
from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError, nearest
from pipelines.evaluation.protocols import Protocol


@dataclass(frozen=True)
class RankingProtocol(Protocol):
    """How a ranking model is asked.

    Attributes:
        candidates: events that are asked about at a time; 0: every event of a user's newest window, given all before.
    """

    candidates: int = 0

    @property
    def asked(self) -> int:
        """Events of a query that are asked about at its end; 0: all of its window."""
        return max(self.candidates, 1) if self.split == "leave-one-out" else self.candidates

    def divide(self, store: SequenceStore) -> Split:
        """The split of the data."""
        if self.split == "leave-one-out":
            return make_split(store, self.split, held_out=self.asked)
        return make_split(store, self.split)

    def describe(
        self,
        store: SequenceStore,
        split: Split,
        *,
        max_length: int,
        query_time: str,
        validation: str,
        seeds: Sequence[int],
        commit: str | None,
    ) -> dict[str, Any]:
        """The protocol card; see :meth:`pipelines.evaluation.protocols.Protocol.describe`."""
        manifest = store.manifest
        source = manifest.get("source", {})
        asked = f"the newest {self.asked} of each query" if self.asked else "all of each query's newest window"
        return {
            "name": self.name,
            "split": self.split,
            "ranking": "none: predictions of what the user does, by AUC",
            "ties": "half",
            "asked_events": asked,
            "asked_at_most": self.asked or max_length,
            "actions": dict(store.actions or {}),
            "context": sorted(store.user_feature_sizes),
            "catalogue_items": store.num_items,
            "users": store.num_users,
            "test_queries": len(split.test),
            "max_length": max_length,
            "query_time": query_time,
            "validation": validation,
            "seeds": list(seeds),
            "split_description": split.description,
            "split_digest": split.digest,
            "data_hash": manifest.get("content_hash"),
            "data_source": {key: source[key] for key in ("name", "files", "note") if source.get(key)},
            "data_filters": manifest.get("filters"),
            "event_order": manifest.get("tie_rule"),
            "commit": commit,
        }


RANKING_PROTOCOLS = {"ranking-last": "leave-one-out", "ranking-users": "users"}
"""Name -> kind of split. ``ranking-last``: the newest events of every user test, those before them validate.
``ranking-users``: some users train, others validate and test."""


def get_ranking_protocol(name: str, candidates: int = 0) -> RankingProtocol:
    """The ranking protocol of that name; ConfigError with the nearest valid one otherwise."""
    if name not in RANKING_PROTOCOLS:
        raise ConfigError(
            f"unknown protocol '{name}' of a ranking model",
            where="evaluation.protocol",
            fix=nearest(name, RANKING_PROTOCOLS),
        )
    return RankingProtocol(name, RANKING_PROTOCOLS[name], mask_seen=False, ks=(), candidates=candidates)
