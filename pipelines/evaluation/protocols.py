"""Named evaluation protocols, and the card that travels with every number.

A number without its protocol is not comparable. The name fixes what may be fixed before a run: how the data are
divided, whether seen items compete, how ties count, which cut-offs are reported. :meth:`Protocol.describe` adds what
the run brings: the catalogue, the split's digest, whether the model reads the target's timestamp, seeds and commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipelines.data.splits import Split
from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError, nearest

QueryTime = Literal["aware", "blind"]


@dataclass(frozen=True)
class Protocol:
    """How a model is asked and how its answer is counted. Every item of the catalogue competes, but for ``negatives``.

    Attributes:
        name: as in a recipe.
        split: kind of split, see :mod:`pipelines.data.splits`.
        mask_seen: items of the user's whole history (not just of the model's window) do not compete; the target always
            does, also when it was seen before.
        ties: ``worst``: items with the target's score stand before it.
        ks: cut-offs of HR@k, NDCG@k and MRR@k.
        negatives: the target competes with so many sampled items alone, for comparison with papers that did so; None
            ranks in full. What they stand for is another question: sampled metrics can order models the other way
            round (Krichene & Rendle 2020, doi 10.1145/3394486.3403226).
        sample_seed: of those items.
    """

    name: str
    split: str
    mask_seen: bool
    ties: Literal["worst"] = "worst"
    ks: tuple[int, ...] = (1, 5, 10, 20, 50)
    negatives: int | None = None
    sample_seed: int = 0

    def __post_init__(self) -> None:
        if self.negatives is not None and not self.mask_seen:
            raise ValueError("negatives are drawn outside the user's history: a sampled protocol masks what was seen")

    def describe(
        self,
        store: SequenceStore,
        split: Split,
        *,
        max_length: int,
        query_time: QueryTime | str,
        validation: str,
        seeds: Sequence[int],
        commit: str | None,
    ) -> dict[str, Any]:
        """The protocol card: everything a reader needs to compare a number made under this protocol.

        Args:
            store: the data; its catalogue, content hash and source go on the card.
            split: must be of the protocol's kind.
            max_length: items of a history that the model sees.
            query_time: ``aware`` when the target's timestamp is an input of the model, else ``blind``.
            validation: how the checkpoint was chosen, e.g. ``best NDCG@10 on validation``.
            seeds: of the run or runs.
            commit: of the code; None when there is none to name.

        Raises:
            ConfigError: a split of another kind, or an unknown ``query_time``.
        """
        if split.kind != self.split:
            raise ConfigError(f"protocol {self.name} needs a {self.split} split, the data are divided by {split.kind}")
        if query_time not in ("aware", "blind"):
            raise ConfigError(f"query_time '{query_time}' is unknown", fix=nearest(query_time, ("aware", "blind")))
        manifest = store.manifest
        source = manifest.get("source", {})
        return {
            **{key: value for key, value in asdict(self).items() if key not in ("negatives", "sample_seed")},
            "ks": list(self.ks),
            "ranking": self._ranking(),
            "catalogue_items": store.num_items,
            "users": store.num_users,
            "test_queries": len(split.test),
            "max_length": max_length,
            "masked": self._masked(),
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

    def _ranking(self) -> str:
        if self.negatives is None:
            return "full"
        drawn = f"{self.negatives} items drawn uniformly, with replacement, outside the user's history"
        return f"sampled: {drawn}, seed {self.sample_seed}; comparable with old papers only, never with full ranking"

    def _masked(self) -> str:
        if self.negatives is not None:
            return "nothing: the user's history is never drawn"
        return "all items of the user's history, but never the target" if self.mask_seen else "nothing"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("loo-full", "leave-one-out", mask_seen=False),
        Protocol("loo-full-masked", "leave-one-out", mask_seen=True),
        Protocol("global-time", "global-time", mask_seen=False),
        Protocol("users-full", "users", mask_seen=False),
        Protocol("users-full-masked", "users", mask_seen=True),
        Protocol("sampled-100", "leave-one-out", mask_seen=True, negatives=100),
    )
}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name; ConfigError with the nearest valid one otherwise."""
    if name not in PROTOCOLS:
        raise ConfigError(f"unknown protocol '{name}'", where="protocol", fix=nearest(name, PROTOCOLS))
    return PROTOCOLS[name]
