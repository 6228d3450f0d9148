"""RecBole's YAML: translated where it changes numbers, else named as not used, refused where it cannot be honoured."""

from pathlib import Path

import pytest

from pipelines.compat.recbole import is_recbole_config, translate
from pipelines.compat.ss4rec_ml1m import arguments
from pipelines.config import load_config, recipes
from pipelines.config_files import CONFIGS
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
        ("d_H: 32", r"f.yaml:2: d_H must equal hidden_size"),
    ],
)
def test_what_cannot_be_honoured_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(f"hidden_size: 64\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        translate(path)


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
