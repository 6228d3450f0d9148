"""Layers of configuration: files, overrides, origins, errors with the nearest valid name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipelines.config import RunConfig, build_config, json_schema, load_config, recipes
from pipelines.config_files import CONFIGS, parse_override, read_yaml
from pipelines.errors import ConfigError


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


SMALL = "name: mine\ndataset: ml-100k\nmodel: ss4rec\n"


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_resolves_and_reads_itself_back(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    again = load_config(write(tmp_path, config.to_yaml()))
    assert again.resolved() == {**config.resolved(), "recipe": "mine"}
    assert config.identity() == again.identity()


def test_a_history_longer_than_the_model_s_positions_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match=r"300 items for a model with 200 positions. set model.max_length=300"):
        load_config("sasrec-ml1m", ["loader.max_length=300"])
    assert load_config("sasrec-ml1m", ["loader.max_length=300", "model.max_length=300"]).loader.max_length == 300


@pytest.mark.parametrize("path", sorted((CONFIGS / "models").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_model_file_builds_its_model(path: Path) -> None:
    from models.ranking import RankingData
    from models.registry import RANKING_MODELS, build_model, build_ranking

    ranks = read_yaml(path).values["name"] in RANKING_MODELS
    config = load_config("ranking-ml1m" if ranks else "quickstart", [f"model={{name: {path.stem}}}"])
    name, options = config.model["name"], config.model_options()
    data = RankingData("classes", tuple("12345"))
    assert (build_ranking(name, 10, options, data) if ranks else build_model(name, 10, options)).num_items == 10


def test_the_official_model_is_the_papers_and_ss4rec_differs_where_it_says() -> None:
    official = load_config("quickstart", ["model.name=ss4rec-official"]).resolved()["model"]
    ours = load_config("quickstart").resolved()["model"]
    assert {key for key in ours if ours[key] != official[key]} == {"interval_scaling", "input_norm", "loss"}
    sizes = ("hidden", "layers", "dropout", "s5_state", "d_state", "d_conv", "expand", "dt_min", "dt_max")
    assert [official[key] for key in sizes] == [64, 2, 0.2, 32, 32, 4, 2, 0.001, 0.1]


def test_extends_and_overrides_hold_only_what_differs(tmp_path: Path) -> None:
    write(tmp_path, SMALL + "optimizer: {lr: 1e-2, warmup_steps: 7}\n", "base.yaml")
    path = write(tmp_path, "extends: base.yaml\nname: mine\noptimizer: {lr: 5e-3}\n")
    config = load_config(path, ["training.epochs=3"])
    assert (config.optimizer.lr, config.optimizer.warmup_steps, config.training.epochs) == (5e-3, 7, 3)


def test_a_bare_name_takes_further_keys() -> None:
    config = load_config("quickstart", ["model.hidden=32", "dataset.min_rating=4"])
    assert (config.model["name"], config.model_options().hidden) == ("ss4rec", 32)
    assert (config.dataset.name, config.dataset.min_rating) == ("ml-100k", 4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("optimizer: {lrr: 1}", r"mine.yaml:4: unknown key 'optimizer.lrr'. did you mean 'lr'\?"),
        ("trainin: {}", r"mine.yaml:4: unknown key 'trainin'. did you mean 'training'\?"),
        ("optimizer:\n  lr: fast", r"mine.yaml:5: 'optimizer.lr': input should be a valid number"),
        ("gates: [{metric: HR@10, abov: 1}]", r"mine.yaml:4: unknown key 'gates.0.abov'. did you mean 'above'\?"),
        ("optimizer: {name: adm}", r"unknown optimizer 'adm'. did you mean 'adam'\?"),
        ("name: again", r"mine.yaml:4: key 'name' stands twice, first at .*mine.yaml:1"),
        ("training: [1", r"mine.yaml:\d: not valid YAML"),
        ("seed: -1", r"mine.yaml:4: 'seed': input should be greater than or equal to 0"),
    ],
)
def test_mistakes_name_file_line_and_the_nearest_key(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, SMALL + line + "\n"))


def test_mistakes_in_a_models_options_are_named_too(tmp_path: Path) -> None:
    text = "name: mine\ndataset: ml-100k\nmodel:\n  name: ss4rec\n  hiden: 3\n"
    with pytest.raises(ConfigError, match=r"mine.yaml:5: unknown key 'model.hiden'. did you mean 'hidden'\?"):
        load_config(write(tmp_path, text))
    with pytest.raises(
        ConfigError, match="--set model.query_time=late: .model.query_time.: .late. is not one of aware, blind"
    ):
        load_config("quickstart", ["model.query_time=late"])
    with pytest.raises(ConfigError, match=r"unknown model 'ss4rek'. did you mean 'ss4rec'\?"):
        load_config("quickstart", ["model.name=ss4rek"])


def test_files_in_a_ring(tmp_path: Path) -> None:
    write(tmp_path, "extends: b.yaml", "a.yaml")
    write(tmp_path, "extends: a.yaml", "b.yaml")
    with pytest.raises(ConfigError, match="ring"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["lr", "=3", "a..b=1"])
def test_malformed_overrides(text: str) -> None:
    with pytest.raises(ConfigError, match="not of the form"):
        parse_override(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("off", "off"), ("true", True), ("3", 3), ("[1, 2]", [1, 2]), ("null", None), ("-.5", -0.5)],
)
def test_override_values_read_as_people_mean_them(text: str, value: object) -> None:
    assert parse_override(f"a.b={text}") == (("a", "b"), value)


def test_identity_follows_what_decides_the_weights() -> None:
    def identity(*overrides: str) -> str:
        return load_config("quickstart", overrides).identity()

    same = [
        "runs=elsewhere",
        "guards.max_hours=1",
        "training.patience=99",
        "training.epochs=99",
        "tracking.wandb=off",
        "debug=true",
        "evaluation.shuffle_order=true",
        "evaluation.beyond_accuracy=false",
        "evaluation.ks=[3]",
        "gates=[{metric: Recall@7, above: 0}]",
    ]
    other = ["seed=2", "model.hidden=32", "optimizer.lr=1", "loader.max_length=3", "dataset.min_rating=4"]
    assert {identity(override) for override in same} == {identity()}
    assert len({identity(override) for override in other} | {identity()}) == len(other) + 1


def test_gates_and_the_selecting_metric_bring_their_cut_offs() -> None:
    gates = "gates=[{metric: Recall@7, above: 0.1}, {metric: MRR@200, above: 0.1}]"
    config = load_config("quickstart", ["evaluation.ks=[5]", "training.select=HR@33", gates])
    assert config.cutoffs == (5, 7, 10, 33, 200)
    assert load_config("quickstart").cutoffs == (1, 5, 10, 20, 50)
    with pytest.raises(ConfigError, match="unknown metric 'Recal@10'. did you mean 'Recall@10'"):
        load_config("quickstart", ["training.select=Recal@10"])


def test_every_field_has_a_description() -> None:
    schema = json_schema()
    bare = [
        f"{name}.{key}"
        for name, definition in [("run", schema), *schema["$defs"].items()]
        for key, entry in definition.get("properties", {}).items()
        if not entry.get("description")
    ]
    assert bare == []


def test_the_schema_accepts_every_shipped_recipe() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(json.dumps(json_schema()))
    for path in recipes().values():
        jsonschema.validate(read_yaml(path).values, schema)


def test_a_resolved_file_needs_no_other_file() -> None:
    values = yaml.safe_load(load_config("ml20m").to_yaml())
    assert "extends" not in values
    assert RunConfig.model_validate(values).gates == load_config("ml20m").gates


def test_gates_of_the_plan_stand_in_the_recipes() -> None:
    gates = {name: {g.metric: g.above for g in load_config(name).gates} for name in ("ml1m", "ml20m", "production")}
    assert gates["ml1m"] == {"HR@10": 0.25, "NDCG@10": 0.20}
    assert gates["ml20m"] == {"HR@10": 0.30, "NDCG@10": 0.25}
    assert load_config("production").require_after and load_config("production").after == "ml20m"


def test_no_model_at_all() -> None:
    from pipelines.config_files import Layered

    with pytest.raises(ConfigError, match="no model is named"):
        build_config(Layered({"name": "x", "dataset": {"name": "ml-100k"}}))
