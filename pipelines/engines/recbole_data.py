"""This project's data as RecBole reads them, and a RecBole model as this project's evaluator asks it.

RecBole gets the training events alone, so that the split is this project's whatever its kind; users and items come in
files of their own, so that its catalogue is the store's. Its validation and test loaders stay empty: the questions are
asked by :mod:`pipelines.evaluation.evaluator`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.batch import SequenceBatch
from pipelines.data.splits import Split
from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError
from pipelines.evaluation.baselines import training_events

NAME = "recpod"  # of the dataset; not ml-100k, which RecBole would take from its own package
USER, ITEM, TIME = "user_id", "item_id", "timestamp"
FIELDS: dict[str, Any] = {
    "USER_ID_FIELD": USER,
    "ITEM_ID_FIELD": ITEM,
    "TIME_FIELD": TIME,
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "LIST_SUFFIX": "_list",
    "field_separator": "\t",
    "load_col": {"inter": [USER, ITEM, TIME], "user": [USER], "item": [ITEM]},
}
_ROWS = 256  # histories scored at a time: they are padded, and attention over them is quadratic


def write_atomic_files(store: SequenceStore, split: Split, folder: Path) -> None:
    """The training events, all users and all items as ``folder/recpod/recpod.{inter,user,item}``.

    Ids are the store's indices. Times are seconds since the store's first event: RecBole keeps float32, which holds
    them more finely than seconds since 1970; rounding never changes the order, and equal times keep the file's.
    """
    import polars as pl

    inside = training_events(store, split)
    user = np.repeat(np.arange(store.num_users), np.diff(store.offsets))[inside]
    time = np.asarray(store.timestamps)[inside] - origin_of_time(store)
    tables = {
        "inter": pl.DataFrame(
            {f"{USER}:token": user, f"{ITEM}:token": np.asarray(store.items)[inside], f"{TIME}:float": time}
        ),
        "user": pl.DataFrame({f"{USER}:token": np.arange(store.num_users)}),
        "item": pl.DataFrame({f"{ITEM}:token": np.arange(1, store.num_items + 1)}),
    }
    (folder / NAME).mkdir(parents=True, exist_ok=True)
    for suffix, table in tables.items():
        table.write_csv(folder / NAME / f"{NAME}.{suffix}", separator="\t")


def origin_of_time(store: SequenceStore) -> int:
    """The store's earliest second."""
    return int(store.timestamps.min())


def training_loader(config: Any) -> tuple[Any, Any]:
    """RecBole's dataset of the atomic files, and its loader of every training prefix."""
    from recbole.data.utils import create_dataset, create_samplers, get_dataloader

    dataset = create_dataset(config)
    built = dataset.build()
    sampler, _, _ = create_samplers(config, dataset, built)
    return dataset, get_dataloader(config, "train")(config, built[0], sampler, shuffle=config["shuffle"])


@dataclass
class RecBoleTask:
    """A RecBole model behind the evaluator's interface: the state of a history is its row of scores.

    Attributes:
        model: RecBole's.
        num_items: items of the store.
        max_length: items of a history that the model sees; RecBole's models get exactly so many columns.
        origin: the second that RecBole's times count from.
        users: ``[num_users]`` int64, RecBole's number of each user.
        items: ``[num_items + 1]`` int64, RecBole's number of each item; padding is 0 in both.
        query_time: ``aware`` for a model that is told when it is asked.
        training: whether the model is in training mode.
    """

    model: Any
    num_items: int
    max_length: int
    origin: int
    users: Tensor
    items: Tensor
    query_time: str = "blind"
    training: bool = True

    @classmethod
    def of(cls, model: Any, dataset: Any, store: SequenceStore, max_length: int) -> RecBoleTask:
        """The task for a model that was made for ``dataset``, which holds ``store``'s events.

        Raises:
            ConfigError: RecBole has left users or items out.
        """
        found = dataset.num(USER) - 1, dataset.num(ITEM) - 1
        if found != (store.num_users, store.num_items):
            what = f"RecBole keeps {found[0]} users and {found[1]} items of {store.num_users} and {store.num_items}"
            raise ConfigError(what, where="engine.options", fix="filter with dataset.min_user_events and its like")
        device = next(model.parameters()).device
        users, items = dataset.field2token_id[USER], dataset.field2token_id[ITEM]
        return cls(
            model,
            store.num_items,
            max_length,
            origin_of_time(store),
            torch.tensor([users[str(index)] for index in range(store.num_users)], device=device),
            torch.tensor([0, *(items[str(index)] for index in range(1, store.num_items + 1))], device=device),
            getattr(model, "query_time", "blind"),
            bool(model.training),
        )

    def eval(self) -> None:
        """Evaluation mode."""
        self.train(False)

    def train(self, mode: bool) -> None:
        """Training mode, or not."""
        self.training = mode
        self.model.train(mode)

    def state_dict(self) -> dict[str, Any]:
        """The model's tensors."""
        return dict(self.model.state_dict())

    def encode(self, batch: SequenceBatch) -> Tensor:
        """The scores of all items for each history, ``[U, num_items + 1]`` float32; column 0, padding, is 0."""
        interaction = self.interaction(batch)
        parts = [self._scores(interaction[start : start + _ROWS]) for start in range(0, batch.num_rows, _ROWS)]
        scores = torch.cat(parts)[:, self.items].float()
        scores[:, 0] = 0
        return scores

    def interaction(self, batch: SequenceBatch) -> Any:
        """The batch's histories as RecBole's padded ``Interaction``, newest ``max_length`` items, left-aligned.

        The time of the question is in it for models that are told alone.
        """
        from recbole.data.interaction import Interaction

        since = (batch.timestamps - self.origin).to(torch.float32)
        values = {
            USER: self.users[batch.user_index],
            f"{ITEM}_list": batch.jagged(self.items[batch.items]).to_padded(self.max_length),
            f"{TIME}_list": batch.jagged(since).to_padded(self.max_length),
            "item_length": batch.lengths,
        }
        if self.query_time == "aware":
            values[TIME] = (batch.request_time - self.origin).to(torch.float32)
        return Interaction(values)

    def _scores(self, interaction: Any) -> Tensor:
        """``[rows, RecBole's items]``; a model that scores pairs alone is asked about every pair."""
        count, rows = len(self.items), len(interaction)
        with contextlib.suppress(NotImplementedError):
            scores: Tensor = self.model.full_sort_predict(interaction)
            return scores.view(rows, count)
        every = torch.arange(count, device=self.items.device)
        row: Tensor = torch.cat([self._pairs(interaction[[one]], every) for one in range(rows)])
        return row

    def _pairs(self, interaction: Any, items: Tensor) -> Tensor:
        from recbole.data.interaction import Interaction

        asked = interaction.repeat_interleave(len(items))
        asked.update(Interaction({ITEM: items}))
        scores: Tensor = self.model.predict(asked)
        return scores.view(1, -1)

    def score_block(self, states: Tensor, ids: Tensor) -> Tensor:
        """Scores of the items ``ids`` ``[n]`` from the rows that :meth:`encode` made, ``[U, n]``."""
        return states[:, ids]
