"""RecBole's SASRec as a peer: its own trainer, loaders and evaluation, on the same events. Started by the benchmarks.

    python -m benchmarks.peer_recbole train|evaluate FOLDER --max-length 200 --rows 128 512 --threads 2 --reply FD

``FOLDER`` holds RecBole's atomic files (``pipelines.engines.recbole_data``). RecBole makes each prefix of a history a
row of its own, padded to the longest, with one target. It knows no padding-free way and no other objective.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.peer_process import Turn, Turns
from pipelines.engines import recbole_data
from pipelines.engines.recbole_environment import load_recbole, undisturbed

SIZES: dict[str, Any] = {
    "n_layers": 2,
    "n_heads": 2,
    "hidden_size": 64,
    "inner_size": 64,
    "hidden_dropout_prob": 0.2,
    "attn_dropout_prob": 0.2,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-8,
    "loss_type": "CE",
    "train_neg_sample_args": None,
    "learning_rate": 1e-3,
}
ALL_TO_TRAINING = {"split": {"RS": [1.0, 0.0, 0.0]}, "group_by": "none", "order": "TO", "mode": "full"}
LEAVE_ONE_OUT = {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"}


def config_of(folder: Path, max_length: int, rows: int, evaluation: dict[str, Any]) -> Any:
    """RecBole's configuration."""
    from recbole.config import Config

    values = {
        **SIZES,
        **recbole_data.FIELDS,
        "data_path": str(folder),
        "MAX_ITEM_LIST_LENGTH": max_length,
        "train_batch_size": rows,
        "eval_batch_size": rows,
        "eval_args": evaluation,
        "gpu_id": "",
        "use_gpu": False,
        "seed": 1,
        "checkpoint_dir": str(folder / "saved"),
        "metrics": ["Hit", "NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "show_progress": False,
    }
    return Config(model="SASRec", dataset=recbole_data.NAME, config_dict=values)


def trainer_of(config: Any, dataset: Any) -> Any:
    """RecBole's trainer of a fresh SASRec."""
    from recbole.trainer import Trainer
    from recbole.utils import get_model

    return Trainer(config, get_model("SASRec")(config, dataset).to(config["device"]))


def train(turns: Turns, folder: Path, max_length: int, rows: list[int]) -> None:
    """Its training epochs, a turn at a time; a request names the rows of a batch and the steps."""
    import recbole

    config = config_of(folder, max_length, rows[0], ALL_TO_TRAINING)
    _, loader = recbole_data.training_loader(config)
    trainer = trainer_of(config, loader._dataset)
    turns.say(ready=True, recbole=recbole.__version__, torch=torch.__version__, targets_of_epoch=len(loader._dataset))
    loops = {count: loop(trainer, config, loader, count) for count in rows}
    for request in turns.requests():
        running, steps = loops[request["rows"]], int(request["steps"])
        turns.say_turn(Turn.of(partial(steps_of, running, steps)))


def steps_of(running: Iterator[int], steps: int) -> int:
    """So many steps; their targets."""
    return sum(next(running) for _ in range(steps))


def loop(trainer: Any, config: Any, loader: Any, rows: int) -> Iterator[int]:
    """RecBole's ``_train_epoch`` over and over, one batch of ``rows`` prefixes at a time; yields targets."""
    config["train_batch_size"] = rows
    own = type(loader)(config, loader._dataset, loader._sampler, shuffle=True)
    epoch = 0
    while True:
        for batch in own:
            trainer._train_epoch(OneBatch(batch), epoch)
            yield len(batch)
        epoch += 1


class OneBatch(list):  # type: ignore[type-arg]
    """A loader of one batch, as RecBole's trainer asks it."""

    shuffle = False

    def __init__(self, batch: Any) -> None:
        super().__init__([batch])


def evaluate(turns: Turns, folder: Path, max_length: int, rows: list[int]) -> None:
    """Its full-ranking evaluation of the test split at each request, which names the histories in a batch."""
    import recbole
    from recbole.data import create_dataset, data_preparation

    config = config_of(folder, max_length, rows[0], LEAVE_ONE_OUT)
    training, _, test = data_preparation(config, create_dataset(config))
    trainer = trainer_of(config, training._dataset)
    turns.say(ready=True, recbole=recbole.__version__, torch=torch.__version__, users=len(test._dataset))
    for request in turns.requests():
        config["eval_batch_size"] = request["rows"]
        loader = type(test)(config, test._dataset, test._sampler, shuffle=False)
        turns.say_turn(Turn.of(partial(evaluated, trainer, loader)), users=len(test._dataset))


def evaluated(trainer: Any, loader: Any) -> int:
    """RecBole's own evaluation; its users."""
    trainer.evaluate(loader, load_best_model=False, show_progress=False)
    return len(loader._dataset)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("train", "evaluate"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--max-length", type=int, default=200)
    parser.add_argument("--rows", type=int, nargs="+", default=[128], help="batch sizes that will be asked for")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reply", type=int, required=True, help="descriptor of the pipe for replies")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    turns = Turns(options.reply)
    load_recbole()
    with undisturbed(options.folder / "tensorboard"):
        (train if options.task == "train" else evaluate)(turns, options.folder, options.max_length, options.rows)


if __name__ == "__main__":
    main()
