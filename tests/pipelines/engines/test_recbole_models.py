"""Our models inside RecBole: its trainer trains them, its scores are ours, its names and files find them."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models.registry import MODELS
from pipelines.data.loader import evaluation_batches
from pipelines.data.splits import make_split
from pipelines.data.store import SequenceStore
from pipelines.engines.recbole_data import NAME, RecBoleTask, training_loader, write_atomic_files
from pipelines.engines.recbole_environment import undisturbed
from pipelines.engines.recbole_models import options_of, recbole_model, run_recbole
from pipelines.errors import ConfigError
from pipelines.run_folder import ROOT
from tests.pipelines.engines.conftest import recbole_values

SMALL: dict[str, dict[str, Any]] = {
    "hstu": {"hidden": 16, "blocks": 1},
    "sasrec": {"hidden": 16, "blocks": 1},
    "tisasrec": {"hidden": 16, "blocks": 1},
    "ss4rec": {"hidden": 16, "layers": 1, "s5_state": 4, "d_state": 4},
}
FULL = {"split": {"RS": [1.0, 0, 0]}, "group_by": "none", "order": "TO", "mode": "full"}


def test_every_model_is_tested() -> None:
    assert SMALL.keys() == MODELS.keys()


@pytest.mark.parametrize("name", SMALL)
def test_recbole_s_trainer_trains_and_its_scores_are_ours(name: str, store: SequenceStore, tmp_path: Path) -> None:
    split = make_split(store, "leave-one-out")
    write_atomic_files(store, split, tmp_path)
    cls = recbole_model(name)
    from recbole.config import Config
    from recbole.model.abstract_recommender import SequentialRecommender
    from recbole.trainer import Trainer

    assert issubclass(cls, SequentialRecommender)
    values = recbole_values(tmp_path, recpod=SMALL[name], learning_rate=0.01, epochs=3, eval_args=FULL)
    with undisturbed(tmp_path / "tensorboard"):
        config = Config(model=cls, dataset=NAME, config_dict=values)
        torch.manual_seed(1)
        dataset, loader = training_loader(config)
        model = cls(config, loader._dataset)
        trainer = Trainer(config, model)
        trainer.fit(loader, None, verbose=False, saved=False)
    losses = list(trainer.train_loss_dict.values())
    assert len(losses) == 3 and all(map(math.isfinite, losses)) and losses[2] < 0.9 * losses[0]
    assert model.task.item_embedding.num_embeddings == store.num_items + 1

    # Our own task with these weights, asked by our own loader. RecBole numbers items and moves the clock: so do we.
    model.eval()
    task = RecBoleTask.of(model, dataset, store, 8)
    _, batch = next(evaluation_batches(store, split.test, max_length=8, tokens_per_batch=200))
    ids = torch.arange(1, store.num_items + 1)
    with torch.inference_mode():
        theirs = task.encode(batch)[:, 1:]
        renamed = type(batch)(
            **{
                **{field: getattr(batch, field) for field in ("offsets", "user_index", "targets")},
                "items": task.items[batch.items],
                "timestamps": batch.timestamps - task.origin,
                "request_time": batch.request_time - task.origin,
            }
        )
        ours = model.task.score_block(model.task.encode(renamed), task.items[ids])
        interaction = task.interaction(batch)
        interaction.update(type(interaction)({"item_id": task.items[batch.items[batch.offsets[1:] - 1]]}))
        one = model.predict(interaction)
        row = model.full_sort_predict(interaction).gather(1, interaction["item_id"][:, None])[:, 0]
    assert torch.allclose(theirs, ours, atol=1e-5) and theirs.std() > 0.1
    assert torch.allclose(one, row, atol=1e-5)


def test_the_loss_is_one_target_a_row_at_its_newest_item(store: SequenceStore, tmp_path: Path) -> None:
    write_atomic_files(store, make_split(store, "leave-one-out"), tmp_path)
    cls = recbole_model("sasrec")
    from recbole.config import Config

    with undisturbed():
        config = Config(
            model=cls, dataset=NAME, config_dict=recbole_values(tmp_path, recpod=SMALL["sasrec"], eval_args=FULL)
        )
        _, loader = training_loader(config)
        model = cls(config, loader._dataset)
    model.eval()
    rows = next(iter(loader))
    scores = model.full_sort_predict(rows)[:, 1:]
    expected = torch.nn.functional.cross_entropy(scores, rows["item_id"] - 1)
    assert model.calculate_loss(rows).item() == pytest.approx(expected.item(), rel=5e-3)  # bfloat16 products


def test_run_recbole_finds_a_model_by_its_name_in_a_file(
    store: SequenceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RecBole's own split, training, checkpoint and evaluation, from a configuration file in RecBole's keys."""
    monkeypatch.chdir(tmp_path)
    write_atomic_files(store, make_split(store, "leave-one-out"), tmp_path)
    keys = {"model": "RecPodSASRec", "dataset": NAME, "epochs": 12, "learning_rate": 0.01, "state": "ERROR"}
    keys |= {"hidden_size": 16, "n_layers": 1, "n_heads": 1, "hidden_dropout_prob": 0.1, "loss_type": "CE"}
    values = recbole_values(tmp_path, **keys)
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(values))
    with undisturbed(tmp_path / "tensorboard"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run_recbole(config_file_list=["ours.yaml"])
    assert result["test_result"]["hit@10"] > 0.6  # of 30 items; the next one can be guessed
    assert list((tmp_path / "saved").glob("RecPodSASRec-*.pth"))


def test_options_come_from_recbole_s_keys_and_from_ours_first() -> None:
    class Config(dict[str, Any]):
        external_config_dict = {"hidden_size": 32, "n_layers": 3, "inner_size": 48, "loss_type": "BPR"}

        def __missing__(self, key: str) -> None:
            return None

    options = options_of("sasrec", Config(MAX_ITEM_LIST_LENGTH=8, recpod={"hidden": 24, "mhc": True}))
    assert (options.hidden, options.blocks, options.feed_forward, options.max_length) == (24, 3, 48, 8)
    assert options.loss.name == "bpr" and options.mhc
    options = options_of("sasrec", Config(MAX_ITEM_LIST_LENGTH=8, recpod={"loss": {"num_negatives": 7}}))
    assert (options.loss.name, options.loss.num_negatives) == ("bpr", 7)
    assert options_of("ss4rec", Config(MAX_ITEM_LIST_LENGTH=8)).layers == 3
    with pytest.raises(ConfigError, match="recpod.hiden"):
        options_of("sasrec", Config(MAX_ITEM_LIST_LENGTH=8, recpod={"hiden": 24}))
    with pytest.raises(ConfigError, match="unknown model 'sasrek'. did you mean 'sasrec'"):
        recbole_model("sasrek")


def test_recbole_s_negatives_are_refused_by_name(store: SequenceStore, tmp_path: Path) -> None:
    write_atomic_files(store, make_split(store, "leave-one-out"), tmp_path)
    cls = recbole_model("sasrec")
    from recbole.config import Config

    values = recbole_values(tmp_path, eval_args=FULL)
    del values["train_neg_sample_args"]
    with undisturbed():
        config = Config(model=cls, dataset=NAME, config_dict=values)
        _, loader = training_loader(config)
        with pytest.raises(ConfigError, match="train_neg_sample_args: RecPodSASRec draws its negatives itself"):
            cls(config, loader._dataset)


def test_the_process_keeps_its_own_anomaly_detection() -> None:
    """RecBole's SINE switches it on while it is imported, for everything that trains in the process."""
    script = (
        "import torch; from pipelines.engines.recbole_environment import load_recbole, sequential_models; "
        "load_recbole(); assert 'SINE' in sequential_models(); assert not torch.is_anomaly_enabled()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attn_dropout_prob": 0.3, "hidden_dropout_prob": 0.2}, "attn_dropout_prob: 0.3 cannot be honoured"),
        ({"initializer_range": 0.1}, "initializer_range: 0.1 cannot be honoured: weights start Xavier-normal"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps: 1e-05 cannot be honoured"),
        ({"hidden_act": "tanh"}, "hidden_act: 'tanh' cannot be honoured: the layers do not have it"),
    ],
)
def test_recbole_s_keys_without_counterpart_are_refused(given: dict[str, Any], message: str) -> None:
    class Config(dict[str, Any]):
        external_config_dict = given

        def __missing__(self, key: str) -> None:
            return None

    with pytest.raises(ConfigError, match=message):
        options_of("sasrec", Config(MAX_ITEM_LIST_LENGTH=8))
    Config.external_config_dict = {"attn_dropout_prob": 0.2, "hidden_dropout_prob": 0.2, "hidden_act": "swish"}
    options = options_of("sasrec", Config(MAX_ITEM_LIST_LENGTH=8))
    assert (options.dropout, options.activation) == (0.2, "silu")
