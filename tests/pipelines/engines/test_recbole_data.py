"""RecBole trains on our training events and on nothing else, and its scores stand in our order of items."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.data.loader import evaluation_batches
from pipelines.data.splits import make_split
from pipelines.data.store import SequenceStore
from pipelines.engines.recbole_data import NAME, RecBoleTask, training_loader, write_atomic_files
from pipelines.engines.recbole_environment import load_recbole, loss_type, sequential_models, undisturbed
from pipelines.errors import ConfigError, MachineError
from pipelines.evaluation.evaluator import evaluate
from pipelines.evaluation.protocols import get_protocol
from tests.pipelines.engines.conftest import recbole_values

SPLIT = {"split": {"RS": [1.0, 0, 0]}, "group_by": "none", "order": "TO", "mode": "full"}


def parts(name: str, folder: Path, **more: Any) -> tuple[Any, Any, Any]:
    """Dataset, loader and model of RecBole's."""
    from recbole.config import Config
    from recbole.utils import get_model, init_seed

    with undisturbed():
        config = Config(model=name, dataset=NAME, config_dict=recbole_values(folder, eval_args=SPLIT, **more))
        init_seed(1, True)
        dataset, loader = training_loader(config)
        return dataset, loader, get_model(name)(config, loader._dataset)


@pytest.mark.parametrize("kind", ["leave-one-out", "global-time"])
def test_recbole_gets_every_training_prefix_and_nothing_else(kind: str, store: SequenceStore, tmp_path: Path) -> None:
    load_recbole()
    split = make_split(store, kind)
    write_atomic_files(store, split, tmp_path)
    dataset, loader, _ = parts("GRU4Rec", tmp_path)
    rows = loader._dataset.inter_feat
    users, items = dataset.field2id_token["user_id"], dataset.field2id_token["item_id"]
    found = {
        (int(users[user]), tuple(int(items[item]) for item in history[:length]), int(items[target]))
        for user, history, length, target in zip(
            rows["user_id"], rows["item_id_list"], rows["item_length"], rows["item_id"], strict=True
        )
    }
    expected = {
        (user, tuple(store.items[max(store.offsets[user], end - 8) : end].tolist()), int(store.items[end]))
        for user, newest in zip(split.train.user.tolist(), split.train.end.tolist(), strict=True)
        for end in range(store.offsets[user] + 1, newest + 1)
    }
    assert found == expected and len(rows) == sum(split.train.end - store.offsets[split.train.user])
    assert dataset.num("item_id") == store.num_items + 1 and dataset.num("user_id") == store.num_users + 1


def test_ranks_are_those_of_recbole_s_own_scores(store: SequenceStore, tmp_path: Path) -> None:
    """Query by query, in RecBole's numbering, without our batches and our ranking."""
    load_recbole()
    split = make_split(store, "leave-one-out")
    write_atomic_files(store, split, tmp_path)
    dataset, _, model = parts("SASRec", tmp_path, hidden_size=8, inner_size=8)
    model.eval()
    task = RecBoleTask.of(model, dataset, store, 8)
    found = evaluate(task, store, split.test, protocol=get_protocol("loo-full"), max_length=8, queries_per_ranking=7)
    number = dataset.field2token_id["item_id"]
    for rank, user, end in zip(found.ranks, split.test.user, split.test.end, strict=True):
        history = [number[str(item)] for item in store.items[max(store.offsets[user], end - 8) : end]]
        row = torch.tensor([history + [0] * (8 - len(history))])
        scores = model.full_sort_predict({"item_id_list": row, "item_length": torch.tensor([len(history)])})[0]
        target = scores[number[str(store.items[end])]].item()
        above = int((scores[1:] > target + 1e-6).sum()) + 1
        assert above <= rank <= int((scores[1:] >= target - 1e-6).sum())
    assert len(np.unique(found.ranks)) > 5


def test_a_model_that_scores_pairs_alone_is_asked_about_every_pair(store: SequenceStore, tmp_path: Path) -> None:
    load_recbole()
    split = make_split(store, "leave-one-out")
    write_atomic_files(store, split, tmp_path)
    dataset, _, model = parts("SASRec", tmp_path, hidden_size=8, inner_size=8)
    model.eval()
    task = RecBoleTask.of(model, dataset, store, 8)
    _, batch = next(evaluation_batches(store, split.test, max_length=8, tokens_per_batch=100))
    at_once = task.encode(batch)

    class OnlyPairs(torch.nn.Module):
        def full_sort_predict(self, interaction: Any) -> Any:
            raise NotImplementedError

        def predict(self, interaction: Any) -> Any:
            return model.predict(interaction)

    task.model = OnlyPairs()
    assert torch.allclose(task.encode(batch)[:, 1:], at_once[:, 1:], atol=1e-6) and at_once.std() > 0


def test_recbole_leaves_the_process_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_recbole()
    from recbole.config import Config

    load_recbole()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(sys, "argv", ["recpod", "--seed=77", "--topk=[3]"])
    monkeypatch.chdir(tmp_path)
    with undisturbed(tmp_path / "tensorboard"):
        config = Config(model="GRU4Rec", dataset=NAME, config_dict=recbole_values(tmp_path))
    assert config["seed"] == 1 and config["topk"] == [10]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3" and sys.argv[1] == "--seed=77"
    path = tmp_path / "pickle.pt"
    torch.save({"config": config}, path)
    import recbole.trainer.trainer as trainer

    assert trainer.torch.load(path)["config"]["model"] == "GRU4Rec" and trainer.torch.nn is torch.nn
    with pytest.raises(Exception, match="[Ww]eights"):  # everybody else's load is as careful as before
        torch.load(path)


def test_tuning_without_ray_is_refused_rather_than_ignored() -> None:
    load_recbole()
    from ray import tune

    if getattr(tune, "__file__", None):
        pytest.skip("ray is installed")
    with pytest.raises(MachineError, match="needs the package ray"):
        tune.report(score=1)


def test_models_and_their_losses_are_recbole_s() -> None:
    load_recbole()
    assert {"SASRec", "GRU4Rec", "BERT4Rec", "FPMC"} <= set(sequential_models())
    assert (loss_type("SASRec"), loss_type("FPMC"), loss_type("TransRec")) == ("CE", "BPR", None)


def test_users_or_items_that_recbole_leaves_out_are_noticed(store: SequenceStore, tmp_path: Path) -> None:
    load_recbole()
    write_atomic_files(store, make_split(store, "leave-one-out"), tmp_path)
    dataset, _, model = parts("GRU4Rec", tmp_path, user_inter_num_interval="[5,inf)")
    with pytest.raises(ConfigError, match="RecBole keeps 60 users"):
        RecBoleTask.of(model, dataset, store, 8)
