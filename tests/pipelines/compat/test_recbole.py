"""RecBole's YAML: translated where it changes numbers, else named as not used, refused where it cannot be honoured."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.compat.recbole import is_recbole_config, translate
from pipelines.compat.ss4rec_ml1m import arguments
from pipelines.config import load_config, recipes
from pipelines.config_files import CONFIGS
from pipelines.data.formats import read_interactions
from pipelines.errors import ConfigError

OFFICIAL = CONFIGS / "official" / "ss4rec_ml1m.yaml"


def test_the_plans_file_becomes_the_papers_run() -> None:
    layers, notes = translate(OFFICIAL)
    config = load_config("train", [], layers)
    options = config.model_options()
    assert (config.name, config.dataset.name, options.interval_scaling) == ("ss4rec_ml1m", "ml-1m", "raw")
    assert (options.hidden, options.s5_state, options.dropout, options.loss.name) == (64, 32, 0.2, "softmax")
    assert (config.dataset.min_user_events, config.dataset.min_item_events) == (5, 5)
    assert (config.loader.batch, config.loader.tokens_per_batch, config.loader.max_length) == ("tokens", 1024, 200)
    assert (config.training.epochs, config.training.patience, config.training.select) == (200, 10, "NDCG@10")
    assert (config.evaluation.protocol, config.evaluation.ks, config.seed) == ("loo-full", (5, 10, 20), 2025)
    assert any("'eval_batch_size' is not used: evaluation is batched by tokens" in note for note in notes)


def test_only_recbole_files_are_taken_for_recbole_files() -> None:
    assert is_recbole_config(OFFICIAL)
    assert not [path for path in recipes().values() if is_recbole_config(path)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learing_rate: 1", r"f.yaml:2: unknown RecBole key 'learing_rate'. did you mean 'learning_rate'\?"),
        ("eval_args: {mode: uni100}", r"f.yaml:2: .*samples negatives"),
        ("eval_args: {split: {RS: [8, 1, 1]}}", r"f.yaml:2: .*not leave-one-out"),
        ("learner: sgd", r"f.yaml:2: .*only adam and adamw"),
        ("loss_type: CCE", r"f.yaml:2: 'loss_type: CCE' cannot be honoured"),
        ("user_inter_num_interval: '[5,10]'", r"f.yaml:2: .*ends in 'inf'"),
        ("val_interval: {rating: '[3,inf)'}", r"f.yaml:2: 'val_interval.*dataset.min_rating"),
        ("rm_dup_inter: first", r"f.yaml:2: 'rm_dup_inter: first' cannot be honoured"),
        ("USER_ID_FIELD: ~", r"f.yaml:2: 'USER_ID_FIELD: None' cannot be honoured"),
        ("train_neg_sample_args: {sample_num: 5}", r"f.yaml:2: .*only loss_type BPR takes negatives"),
        ("neg_sampling: {uniform: 1}", r"f.yaml:2: .*only loss_type BPR takes negatives"),
        ("d_H: 32", r"f.yaml:2: .*d_H must equal hidden_size"),
    ],
)
def test_what_cannot_be_honoured_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(f"hidden_size: 64\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        translate(path)


def recipe(tmp_path: Path, text: str) -> tuple[dict[str, Any], list[str]]:
    path = tmp_path / "f.yaml"
    path.write_text(f"hidden_size: 64\n{text}\n")
    layers, notes = translate(path)
    return layers.values, notes


@pytest.mark.parametrize(
    ("line", "loss"),
    [
        ("train_neg_sample_args: {sample_num: 5}", {"name": "bpr", "num_negatives": 5}),
        ("train_neg_sample_args: {distribution: uniform, alpha: 1.0}", {"name": "bpr", "num_negatives": 1}),
        ("neg_sampling: {uniform: 3}", {"name": "bpr", "num_negatives": 3}),
        ("neg_sampling: ~", {"name": "bpr"}),
    ],
)
def test_the_number_of_negatives_is_kept(tmp_path: Path, line: str, loss: dict[str, Any]) -> None:
    assert recipe(tmp_path, f"loss_type: BPR\n{line}")[0]["model"]["loss"] == loss
    assert load_config("train", [], translate(tmp_path / "f.yaml")[0]).model_options().loss.name == "bpr"


@pytest.mark.parametrize(
    "args",
    [
        "~",
        "{distribution: popularity}",
        "{dynamic: true}",
        "{sample_num: 0}",
        "{sample_num: many}",
        "{sample_nun: 5}",
        "[5]",
    ],
)
def test_other_negatives_are_refused(tmp_path: Path, args: str) -> None:
    with pytest.raises(ConfigError, match=r"f.yaml:3: 'train_neg_sample_args: .*cannot be honoured"):
        recipe(tmp_path, f"loss_type: BPR\ntrain_neg_sample_args: {args}")
    if args == "{distribution: popularity}":
        with pytest.raises(ConfigError, match="only uniform"):
            recipe(tmp_path, "loss_type: BPR\nneg_sampling: {popularity: 1}")


def test_filters_that_filter_nothing_are_taken(tmp_path: Path) -> None:
    values, notes = recipe(tmp_path, "val_interval: ~\nrm_dup_inter: ~\nuser_inter_num_interval: '[0,inf)'")
    assert values["dataset"] == {"min_user_events": 1} and not notes


def test_field_names_become_the_readers_options(tmp_path: Path) -> None:
    usual = "USER_ID_FIELD: user_id\nITEM_ID_FIELD: item_id\nRATING_FIELD: rating\nTIME_FIELD: timestamp"
    assert "dataset" not in recipe(tmp_path, usual)[0]
    own = "USER_ID_FIELD: uid\nITEM_ID_FIELD: iid\nRATING_FIELD: stars\nTIME_FIELD: at\nfield_separator: ','"
    options = recipe(tmp_path, own)[0]["dataset"]["options"]
    (tmp_path / "x.inter").write_text("uid:token,iid:token,stars:float,at:float\n7,8,4.5,9\n")
    assert read_interactions(tmp_path / "x.inter", **options).row(0, named=True) == {
        "user_id": 7,
        "item_id": 8,
        "rating": 4.5,
        "timestamp": 9,
    }


@pytest.mark.parametrize("place", ["clicks/clicks.inter", "clicks.inter"])
def test_a_data_path_that_holds_the_dataset_is_read(tmp_path: Path, place: str) -> None:
    line = f"data_path: {tmp_path}/data\ndataset: clicks"
    values, notes = recipe(tmp_path, line)
    assert values["dataset"]["name"] == "clicks"
    assert notes == [f"{tmp_path}/f.yaml:2: 'data_path' is not used: there is no clicks.inter in it"]
    file = tmp_path / "data" / place
    file.parent.mkdir(parents=True)
    file.touch()
    values, notes = recipe(tmp_path, line)
    assert values["dataset"]["name"] == str(file) and not notes


def test_an_open_interval_starts_one_later(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("hidden_size: 64\nuser_inter_num_interval: '(5,inf)'\n")
    assert translate(path)[0].values["dataset"] == {"min_user_events": 6}


@pytest.mark.parametrize(
    ("given", "runbook"),
    [
        ([], ["runbook", "--test-ml1m"]),
        (["--debug", "--skip-deps"], ["runbook", "--test-ml1m", "--debug"]),
        (["--config", "f.yaml", "--debug"], ["runbook", "--config", "f.yaml", "--debug"]),
    ],
)
def test_the_plans_command_line(given: list[str], runbook: list[str]) -> None:
    assert arguments(given) == runbook
