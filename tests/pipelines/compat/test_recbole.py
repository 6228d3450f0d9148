"""RecBole's YAML: translated where it changes numbers, else named as not used, refused where it cannot be honoured."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipelines.compat.recbole import asked_engine, is_recbole_config, translate
from pipelines.compat.ss4rec_ml1m import arguments
from pipelines.config import RunConfig, load_config, recipes
from pipelines.config_files import CONFIGS, Layered, read_yaml
from pipelines.data.formats import read_interactions
from pipelines.engines.recbole_unused import unused_line
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
    assert (config.training.epochs, config.training.select, config.training.precision) == (200, "NDCG@10", "float32")
    assert config.training.patience == 11  # RecBole stops after more than stopping_step
    assert (config.evaluation.protocol, config.evaluation.ks, config.seed) == ("loo-full", (5, 10, 20), 2025)
    assert any("'eval_batch_size' is not used: evaluation is batched by tokens" in note for note in notes)


def test_only_recbole_files_are_taken_for_recbole_files() -> None:
    assert is_recbole_config(OFFICIAL)
    assert not [path for path in recipes().values() if is_recbole_config(path)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learing_rate: 1", r"f.yaml:2: unknown RecBole key 'learing_rate'. did you mean 'learning_rate'\?"),
        ("eval_args: full", r"f.yaml:2: 'eval_args: full' cannot be honoured: it is no mapping: give split, order"),
        ("eval_args: {split: LS}", r"f.yaml:2: .*split LS is not leave-one-out"),
        ("topk: '15'", r"f.yaml:2: 'topk: 15' cannot be honoured: it is no count and no list of counts"),
        ("topk: [5, 0]", r"f.yaml:2: .*no list of counts"),
        ("eval_args: {mode: uni100}", r"f.yaml:2: .*samples negatives"),
        ("eval_args: {split: {RS: [8, 1, 1]}}", r"f.yaml:2: .*not leave-one-out"),
        ("learner: sgd", r"f.yaml:2: .*only adam and adamw"),
        ("loss_type: CCE", r"f.yaml:2: 'loss_type: CCE' cannot be honoured"),
        ("user_inter_num_interval: '[5,10]'", r"f.yaml:2: .*ends in 'inf'"),
        ("loss_type: CCE", "it is not one of CE, BPR"),
        ("metrics: [NDCC]", r"f.yaml:2: .*'NDCC' is not measured \(did you mean 'NDCG'"),
        ("metrics: [GiniIndex]", "'GiniIndex' is not measured"),
        ("valid_metric: NDCG", "none of NDCG@k"),
        ("valid_metric: NDCG@5", r"f.yaml:2: 'valid_metric: NDCG@5' cannot be honoured: 5 is not in topk \(\[10\]\)"),
        ("valid_metric_bigger: false", "larger is better"),
        ("stopping_step: many", "it is no count"),
        ("clip_grad_norm: {max_norm: 1, norm_type: 1}", "only norm_type 2"),
        ("clip_grad_norm: {maxnorm: 1}", "f.yaml:2: .*cannot be honoured"),
        ("shuffle: false", "random order"),
        ("benchmark_filename: [a, b, c]", "the split is made here"),
        ("gpu_id: '0,1'", "several GPUs"),
        ("enable_amp: perhaps", "neither true nor false"),
        ("eval_args: {orders: TO}", r"unknown entry 'orders' \(did you mean 'order'"),
        ("n_heads: 2", r"f.yaml:2: 'n_heads' is no key of SS4Rec, but of SASRec. did you mean"),
        ("model: GRU4Rec", r"f.yaml:2: .*no model of this project .*RecBole's own: --engine recbole"),
        ("recpod: 5", "f.yaml:2: it is no mapping"),
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
    found = recipe(tmp_path, f"loss_type: BPR\n{line}")[0]["model"]["loss"]
    assert found == {**loss, "precision": "float32"}
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


SASREC = "model: SASRec\nMAX_ITEM_LIST_LENGTH: 20\n"


def config_of(tmp_path: Path, text: str, engine: str = "recpod") -> tuple[RunConfig, list[str]]:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    layers, notes = translate(path, engine)
    layers.put(("engine", "name"), engine, "--engine")
    return load_config("train", [], layers), notes


def test_what_a_file_leaves_out_has_recbole_s_defaults(tmp_path: Path) -> None:
    """Those of its installed files, read here: a list of our own would not notice when they change."""
    config, notes = config_of(tmp_path, "model: SASRec\nloss_type: CE\n")
    folder = Path(find_spec("recbole").submodule_search_locations[0]) / "properties"  # type: ignore[union-attr,index]
    theirs: dict[str, Any] = {}
    for name in ("overall", "dataset/sample", "model/SASRec", "quick_start_config/sequential"):
        theirs |= read_yaml(folder / f"{name}.yaml").values
    options = config.model_options()
    sizes = ("hidden_size", "n_layers", "n_heads", "inner_size", "hidden_dropout_prob", "hidden_act")
    found = (options.hidden, options.blocks, options.heads, options.feed_forward, options.dropout, options.activation)
    assert found == tuple(theirs[key] for key in sizes)
    assert theirs["attn_dropout_prob"] == theirs["hidden_dropout_prob"] and theirs["initializer_range"] == 0.02
    assert (options.norm, options.positions, options.scale_embedding) == ("post", "oldest", False)
    assert options.max_length == config.loader.max_length == theirs["MAX_ITEM_LIST_LENGTH"]
    assert (config.loader.tokens_per_batch, config.optimizer.lr) == (
        theirs["train_batch_size"],
        theirs["learning_rate"],
    )
    training = config.training
    assert (training.epochs, training.eval_every, config.seed) == tuple(
        theirs[k] for k in ("epochs", "eval_step", "seed")
    )
    assert (training.patience, training.select) == (theirs["stopping_step"] + 1, theirs["valid_metric"])
    assert list(config.evaluation.ks) == theirs["topk"] and config.evaluation.protocol == "loo-full"
    assert theirs["eval_args"] == {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"}
    assert theirs["enable_amp"] is False and training.precision == options.loss.precision == "float32"
    assert any("RecBole's own: --engine recbole" in note for note in notes)


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("hidden_size: 24", "model.hidden", 24),
        ("inner_size: 48", "model.feed_forward", 48),
        ("n_layers: 3", "model.blocks", 3),
        ("n_heads: 4", "model.heads", 4),
        ("hidden_dropout_prob: 0.1\nattn_dropout_prob: 0.1", "model.dropout", 0.1),
        ("hidden_act: relu", "model.activation", "relu"),
        ("hidden_act: swish", "model.activation", "silu"),
        ("loss_type: BPR", "model.loss.name", "bpr"),
        ("loss_type: BPR\ntrain_neg_sample_args: {sample_num: 3}", "model.loss.num_negatives", 3),
        ("recpod: {mhc: true}", "model.mhc", True),
        ("recpod: {norm: pre}", "model.norm", "pre"),
        ("train_batch_size: 512", "loader.tokens_per_batch", 512),
        ("learning_rate: 0.01", "optimizer.lr", 0.01),
        ("weight_decay: 0.1", "optimizer.weight_decay", 0.1),
        ("learner: AdamW", "optimizer.name", "adamw"),
        ("clip_grad_norm: {max_norm: 5, norm_type: 2}", "training.grad_clip", 5.0),
        ("enable_amp: true", "training.precision", "auto"),
        ("epochs: 7", "training.epochs", 7),
        ("eval_step: 2", "training.eval_every", 2),
        ("stopping_step: 0", "training.patience", 1),
        ("topk: 20\nvalid_metric: Recall@20", "training.select", "HR@20"),
        ("valid_metric: hit@10", "training.select", "HR@10"),
        ("use_gpu: false", "device", "cpu"),
        ("gpu_id: ''", "device", "cpu"),
        ("gpu_id: '1'", "device", "cuda:1"),
        ("seed: 5", "seed", 5),
    ],
)
def test_a_key_becomes_an_option(tmp_path: Path, line: str, key: str, expected: Any) -> None:
    found: Any = config_of(tmp_path, SASREC + line)[0].resolved()
    before: Any = config_of(tmp_path, SASREC)[0].resolved()
    for part in key.split("."):
        found, before = found[part], before[part]
    assert found == expected != before


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "attn_dropout_prob: 0.1",
            r"f.yaml:3: 'attn_dropout_prob: 0.1' .*hidden_dropout_prob, which is 0.5: give both",
        ),
        ("hidden_dropout_prob: 0.2", "RecBole's default: 'attn_dropout_prob: 0.5' .*hidden_dropout_prob, which is 0.2"),
        ("layer_norm_eps: 1e-5", r"f.yaml:3: .*LayerNorm adds 1e-08 to the variance"),
        ("initializer_range: 0.1", r"f.yaml:3: .*Xavier-normal: leave it out"),
        ("hidden_act: tanh", r"f.yaml:3: .*they have relu, gelu, swish"),
        ("num_layers: 2", r"f.yaml:3: 'num_layers' is no key of SASRec, but of SS4Rec. did you mean 'n_layers'"),
        ("time_span: 9", "'time_span' is no key of SASRec, but of TiSASRec"),
        ("hiden_size: 9", r"f.yaml:3: unknown RecBole key 'hiden_size'. did you mean 'hidden_size'"),
        ("recpod: {mhcc: true}", r"f.yaml:3: unknown key 'model.mhcc'. did you mean 'mhc'"),
        ("n_heads: 3", "3 does not divide hidden"),
    ],
)
def test_what_sasrec_does_not_have_is_refused(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(tmp_path, SASREC + lines)


def test_recbole_s_usual_values_without_counterpart_are_named(tmp_path: Path) -> None:
    lines = "hidden_dropout_prob: 0.2\nattn_dropout_prob: 0.2\nlayer_norm_eps: 1e-12\ninitializer_range: 0.02"
    _, notes = config_of(tmp_path, SASREC + lines)
    for place, key in ((4, "attn_dropout_prob"), (5, "layer_norm_eps"), (6, "initializer_range")):
        assert any(f"f.yaml:{place}: '{key}' is not used: " in note for note in notes)


def test_tisasrec_has_its_own_defaults_and_its_times(tmp_path: Path) -> None:
    config, notes = config_of(tmp_path, "model: TiSASRec\nhidden_dropout_prob: 0.3\ntime_span: 9\ntime_unit: day\n")
    options = config.model_options()
    assert (config.model["name"], options.time_span, options.time_unit, options.dropout) == ("tisasrec", 9, "day", 0.3)
    assert (options.norm, options.activation, options.feed_forward, options.max_length) == ("query", "relu", None, 50)
    assert not notes


def test_recbole_reads_the_keys_of_its_own_models(tmp_path: Path) -> None:
    text = SASREC + "hidden_dropout_prob: 0.1\nhidden_act: tanh\nlearner: sgd\nneg_sampling: {uniform: 2}\nepochs: 3\n"
    config, notes = config_of(tmp_path, text + "loss_type: BPR", "recbole")
    assert config.engine.model == "SASRec" and config.training.epochs == 3 and config.loader.max_length == 20
    assert config.engine.options == {
        "hidden_dropout_prob": 0.1,
        "hidden_act": "tanh",
        "learner": "sgd",
        "train_neg_sample_args": {"distribution": "uniform", "sample_num": 2},
        "loss_type": "BPR",
    }
    assert not [note for note in notes if "SASRec" in note]
    config, _ = config_of(tmp_path, "model: GRU4Rec\nnum_layers: 2\nMAX_ITEM_LIST_LENGTH: 9\n", "recbole")
    assert (config.engine.model, config.engine.options) == ("GRU4Rec", {"num_layers": 2})
    for line, message in (
        ("num_layer: 2", r"f.yaml:2: unknown RecBole key 'num_layer'. did you mean 'num_layers'"),
        ("recpod: {mhc: true}", "f.yaml:2: `recpod` is for this project's models. model: RecPodS"),
    ):
        with pytest.raises(ConfigError, match=message):
            config_of(tmp_path, f"model: GRU4Rec\n{line}\nMAX_ITEM_LIST_LENGTH: 9", "recbole")
    with pytest.raises(ConfigError, match=r"RecBole has no model 'GRU4Rek' \(did you mean 'GRU4Rec'"):
        config_of(tmp_path, "model: GRU4Rek\nloss_type: CE", "recbole")
    with pytest.raises(ConfigError, match=r"f.yaml:3: `recpod` is for this project's models. model: RecPodSASRec\."):
        config_of(tmp_path, SASREC + "recpod: {mhc: true}", "recbole")


def test_what_goes_to_recbole_is_not_named_as_unused(tmp_path: Path) -> None:
    """The recipe below the file names a model of ours and batches, which nobody asked for."""
    config, _ = config_of(tmp_path, "model: TiSASRec\nMAX_ITEM_LIST_LENGTH: 20\nlearning_rate: 0.01\n", "recbole")
    assert config.engine.model == "RecPodTiSASRec" and config.loader.max_length == 20
    assert unused_line(config) == ""
    assert unused_line(load_config("quickstart", ["engine.name=recbole"])).startswith("not used with --engine recbole")


def test_a_mapping_of_ours_keeps_what_it_does_not_name(tmp_path: Path) -> None:
    text = SASREC + "loss_type: BPR\ntrain_neg_sample_args: {sample_num: 3}\nrecpod: {loss: {chunk: 64}}"
    loss = config_of(tmp_path, text)[0].model_options().loss
    assert (loss.name, loss.num_negatives, loss.precision, loss.chunk) == ("bpr", 3, "float32", 64)


def test_our_models_go_to_recbole_with_all_their_options(tmp_path: Path) -> None:
    text = "model: SS4Rec\nhidden_size: 24\nd_H: 24\nd_P: 5\nlearning_rate: 0.01\nloss_type: BPR\n"
    config, _ = config_of(tmp_path, text + "train_neg_sample_args: {sample_num: 3}", "recbole")
    own = config.engine.options["recpod"]
    assert (config.engine.model, config.engine.options["learning_rate"]) == ("RecPodSS4Rec", 0.01)
    assert (own["hidden"], own["s5_state"], own["interval_scaling"], own["input_norm"]) == (24, 5, "raw", False)
    assert own["loss"] == {"name": "bpr", "num_negatives": 3, "precision": "float32"}
    assert not {"train_neg_sample_args", "loss_type"} & config.engine.options.keys()


def test_who_trains_is_asked_of_flags_and_sets() -> None:
    flag = Layered()
    flag.put(("engine", "name"), "recbole", "--engine")
    assert asked_engine([], None) == asked_engine(["seed=1"], Layered()) == "recpod"
    assert asked_engine([], flag) == asked_engine(["engine.name=recbole"], None) == "recbole"
    assert asked_engine(["engine.name=recpod"], flag) == "recpod"  # --set lies on top
