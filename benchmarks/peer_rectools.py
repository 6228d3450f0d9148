"""RecTools' SASRec as a peer: its own fit and recommend, in an environment of its own. Started by the benchmarks.

    python -m benchmarks.peer_rectools train|recommend EVENTS.npz --threads 2 --reply FD

Its fit runs in its own Lightning loop; a callback stands still between turns and counts targets. ``EVENTS.npz`` holds
``user``, ``item`` and ``time``, one entry an event, equal times in the order of the file.
"""

from __future__ import annotations

import argparse
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

from benchmarks.peer_process import Turn, Turns

SIZES: dict[str, Any] = {
    "n_factors": 64,
    "n_blocks": 2,
    "n_heads": 2,
    "dropout_rate": 0.2,
    "session_max_len": 200,
    "batch_size": 128,
    "loss": "softmax",
    "lr": 1e-3,
}


class TakesTurns(Callback):
    """Stands still between turns.

    Args:
        turns: to the parent.
    """

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def __deepcopy__(self, memo: dict[int, Any]) -> TakesTurns:
        return self  # RecTools copies its trainer; the pipe to the parent stays one

    def on_train_batch_start(self, trainer: Any, module: Any, batch: dict[str, torch.Tensor], index: int) -> None:
        """At the start of each step."""
        self.turns.step(int((batch["y"] > 0).sum()))


def dataset_of(path: str) -> tuple[Dataset, int, int]:
    """The events as RecTools has them, how many users there are, and targets in an epoch."""
    events = np.load(path)
    frame = pd.DataFrame(
        {
            Columns.User: events["user"],
            Columns.Item: events["item"],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(events["time"], unit="s"),
        }
    )
    lengths = np.bincount(events["user"])
    targets = int(np.minimum(lengths[lengths > 1] - 1, SIZES["session_max_len"]).sum())
    return Dataset.construct(frame), int((lengths > 0).sum()), targets


def model_with(epochs: int, steps: int | None, callbacks: list[Callback]) -> SASRecModel:
    """Its model with a Lightning trainer as its own default is, and callbacks."""

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=epochs,
            max_steps=-1 if steps is None else steps,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=callbacks,
        )

    return SASRecModel(**SIZES, get_trainer_func=trainer)


def train(turns: Turns, path: str) -> None:
    """Fit, a turn at a time, until the parent closes."""
    dataset, _, targets = dataset_of(path)
    turns.say(ready=True, rectools=version("rectools"), torch=torch.__version__, targets_of_epoch=targets)
    model_with(1000, None, [TakesTurns(turns)]).fit(dataset)


def recommend(turns: Turns, path: str) -> None:
    """Fit one step, then recommend ten items to every user at each request."""
    dataset, users, _ = dataset_of(path)
    model = model_with(1, 1, [])
    model.fit(dataset)
    everybody = dataset.user_id_map.external_ids
    turns.say(ready=True, rectools=version("rectools"), torch=torch.__version__, users=users)
    for _ in turns.requests():
        found: list[pd.DataFrame] = []

        def work(found: list[pd.DataFrame] = found) -> int:
            found.append(model.recommend(everybody, dataset, k=10, filter_viewed=True))
            return users

        turn = Turn.of(work)
        turns.say_turn(turn, users=int(found[0][Columns.User].nunique()))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("train", "recommend"))
    parser.add_argument("events", help="an .npz file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reply", type=int, required=True, help="descriptor of the pipe for replies")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    (train if options.task == "train" else recommend)(Turns(options.reply), options.events)


if __name__ == "__main__":
    main()
