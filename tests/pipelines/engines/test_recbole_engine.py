"""``recpod run RECIPE --engine recbole``: a run folder like ours, comparable numbers, resumed bit by bit, refusals."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml

from pipelines.cli import main
from pipelines.config_files import read_yaml
from pipelines.engines.recbole_accepted import _properties, check_accepted
from pipelines.engines.recbole_environment import load_recbole, sequential_models
from pipelines.engines.recbole_loop import EpochLoop
from pipelines.errors import ConfigError
from pipelines.evaluation.compare import compare_runs
from pipelines.training.checkpoint import checkpoint_path, checkpoint_steps, load_checkpoint

RECIPE = """
name: tiny
dataset: {data}
model: {{name: sasrec, hidden: 16, blocks: 1, max_length: 10}}
loader: {{max_length: 10, windows: all, rows_per_batch: 16}}
training: {{epochs: 2, patience: 3}}
evaluation: {{also: [loo-full], shuffle_ties: true}}
tracking: {{wandb: "off"}}
runs: {runs}
gates: [{{metric: NDCG@10, above: 0.0}}]
"""
OPTIONS = ("--set", "engine.options.train_batch_size=64", "--set", "engine.options.learning_rate=0.01")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe on a file in which item ``i`` is mostly followed by ``i + 1``."""
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "clicks.csv"
    rows = [f"{u},{(u * 7 + i + (i % 5 == 4) * u) % 40},{1000 * u + 60 * i}" for u in range(60) for i in range(14)]
    data.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(data=data, runs=tmp_path / "runs"))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def recbole(capsys: pytest.CaptureFixture[str], recipe: Path, model: str, *more: str) -> tuple[int, str, str]:
    return run(capsys, "run", str(recipe), "--engine", "recbole", "--set", f"engine.model={model}", *OPTIONS, *more)


def test_its_numbers_stand_beside_ours(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    code, out, err = recbole(capsys, recipe, "GRU4Rec", "--set", "training.epochs=10")
    assert code == 0, err
    assert run(capsys, "run", str(recipe))[0] == 0
    theirs, ours = (recipe.parent / "runs" / name for name in ("tiny-recbole-GRU4Rec", "tiny"))
    assert {path.name for path in ours.iterdir()} - {"debug"} <= {path.name for path in theirs.iterdir()}
    metrics, own = (json.loads((folder / "metrics.json").read_text()) for folder in (theirs, ours))
    assert set(own) - {"code"} <= set(metrics) and metrics["protocol"]["engine"] == "recbole"
    assert set(own["test"]) == set(metrics["test"]) and own["baselines"] == metrics["baselines"]
    assert set(metrics["also"]) == {"loo-full", "loo-full-masked, ties shuffled"}
    assert metrics["protocol"]["query_time"] == "blind" and metrics["gate"]["passed"]
    assert metrics["model"]["name"] == "GRU4Rec" and metrics["model"]["learning_rate"] == 0.01
    assert metrics["test"]["NDCG@10"] > 2 * metrics["baselines"]["popularity"]["NDCG@10"]  # it has learnt
    assert compare_runs(ours, theirs).queries == 60  # refuses cards and ranks that do not fit each other
    assert "popularity" in out and not (recipe.parent / "log_tensorboard").exists()
    before = (theirs / "metrics.json").stat().st_mtime_ns
    assert recbole(capsys, recipe, "GRU4Rec", "--set", "training.epochs=10")[0] == 0  # nothing is left to do
    assert (theirs / "metrics.json").stat().st_mtime_ns == before


def test_a_resumed_run_equals_one_in_one_go(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    """FPMC: its negatives come from NumPy's generator, its rows from the loader's, its weights from PyTorch's."""
    runs = recipe.parent / "runs"
    assert recbole(capsys, recipe, "FPMC", "--set", "training.epochs=1")[0] == 0
    code, out, err = recbole(capsys, recipe, "FPMC", "--set", "training.epochs=3")
    assert code == 0 and "resuming from" in out, err
    assert recbole(capsys, recipe, "FPMC", "--set", "training.epochs=3", "--set", "name=once")[0] == 0
    weights = []
    for folder in (runs / "tiny-recbole-FPMC", runs / "once-recbole-FPMC"):
        steps = checkpoint_steps(folder / "checkpoints")
        weights.append(load_checkpoint(checkpoint_path(folder / "checkpoints", steps[-1]))["model"])
        kinds = [json.loads(line)["kind"] for line in (folder / "events.jsonl").read_text().splitlines()]
        assert kinds.count("epoch") == kinds.count("valid") == 3
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_signal_leaves_the_last_validated_epoch_and_the_next_start_goes_on(
    capsys: pytest.CaptureFixture[str], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = EpochLoop._validate

    def killed_in_the_second(self: EpochLoop) -> None:
        if self.state.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        validate(self)

    with monkeypatch.context() as patched:
        patched.setattr(EpochLoop, "_validate", killed_in_the_second)
        code, _, err = recbole(capsys, recipe, "GRU4Rec", "--set", "training.epochs=3")
    folder = recipe.parent / "runs" / "tiny-recbole-GRU4Rec"
    assert code == 75 and "start the same command again" in err and not (folder / "metrics.json").exists()
    (step,) = checkpoint_steps(folder / "checkpoints")
    assert load_checkpoint(checkpoint_path(folder / "checkpoints", step))["state"]["epoch"] == 1
    code, out, _ = recbole(capsys, recipe, "GRU4Rec", "--set", "training.epochs=3")
    assert code == 0 and "resuming from" in out
    assert json.loads((folder / "metrics.json").read_text())["training"]["epochs"] == 3


def test_training_stops_when_validation_does_not_improve(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    quick = ("--set", "engine.options.learning_rate=0", "--set", "guards.stuck_epochs=0", "--set", "training.epochs=9")
    code, out, err = recbole(capsys, recipe, "FOSSIL", *quick)
    assert code == 0 and "no better NDCG@10 in 3 validations" in out, err


def test_our_models_run_inside_it_and_are_told_the_time(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    small = ("--set", "engine.options.recpod={hidden: 16, layers: 1, s5_state: 4, d_state: 4}")
    assert recbole(capsys, recipe, "RecPodSS4Rec", *small, "--set", "training.epochs=1")[0] == 0
    metrics = json.loads((recipe.parent / "runs" / "tiny-recbole-RecPodSS4Rec" / "metrics.json").read_text())
    assert metrics["protocol"]["query_time"] == "aware" and metrics["model"]["recpod"]["hidden"] == 16


@pytest.mark.parametrize(
    ("model", "more", "line"),
    [
        ("SASRek", (), "engine.model: RecBole has no sequential model 'SASRek'. did you mean 'SASRec'?"),
        ("SASRecF", (), "engine: RecBole cannot make SASRecF for these data: KeyError: 'class'"),
        ("DIEN", (), "engine: RecBole cannot make DIEN for these data: KeyError: 'neg_item_id_list'"),
        ("SASRec", ("--set", "engine.options.seed=3"), "engine.options: 'seed' is the recipe's"),
        ("SASRec", ("--set", "engine.options.MAX_ITEM_LIST_LENGTH=3"), "use loader.max_length"),
        ("SASRec", ("--set", "engine.options.n_heads=7"), "RecBole cannot make SASRec for these data: ValueError"),
        ("SASRec", ("--resume", "elsewhere"), "--resume: the engine recbole resumes its own folder"),
        ("FPMC", ("--set", "model.name=tisasrec"), "'model.name' is not used with --engine recbole. set engine.model"),
        ("FPMC", ("--set", "model.hidden=8"), "'model.hidden' is not used with --engine recbole. set RecBole's key in"),
        ("FPMC", ("--set", "optimizer.name=adamw"), "--set optimizer.name=adamw: 'optimizer.name' is not used with"),
        ("FPMC", ("--set", "training.cuda_graph=true"), "'training.cuda_graph' is not used with --engine recbole. set"),
        ("FPMC", ("--set", "training.compile=true"), "'training.compile' is not used with --engine recbole"),
        ("FPMC", ("--set", "training.max_steps=3"), "'training.max_steps' is not used with --engine recbole"),
        ("SASRec", ("--set", "engine.options.hidden_sizee=8"), "option 'hidden_sizee'. did you mean 'hidden_size'?"),
        ("GRU4Rec", ("--set", "engine.options.n_heads=2"), "RecBole nor its GRU4Rec has an option 'n_heads'"),
        (
            "SASRec",
            ("--set", "engine.options.learner=foo"),
            "engine.options.learner: RecBole has no learner 'foo'. valid",
        ),
        (
            "SASRec",
            ("--set", "engine.options.recpod.hidden=16"),
            "is for this project's models. set engine.model=RecPodS",
        ),
        ("SASRec", ("--set", "engine.options.learning_rate=abc"), "engine.options.learning_rate: 'abc' is no number"),
        ("SASRec", ("--set", "engine.options.loss_type=XX"), "loss_type: unknown loss 'XX'. valid: BPR, CE"),
        ("FPMC", ("--set", "engine.options.loss_type=CE"), "loss_type: unknown loss 'CE'. valid: BPR"),
        ("SASRec", ("--set", "engine.options.enable_amp=1"), "engine.options.enable_amp: 1 is neither true nor false"),
        ("SASRec", ("--set", "engine.options.clip_grad_norm=1"), "engine.options.clip_grad_norm: 1 is no mapping"),
        ("FPMC", ("--set", "engine.options.train_neg_sample_args={sample_nun: 2}"), "did you mean 'sample_num'?"),
        ("RecPodSASRec", ("--set", "engine.options.num_layer=2"), "did you mean 'num_layers'?"),
        (
            "RecPodSASRec",
            ("--set", "engine.options.train_neg_sample_args={sample_num: 2}"),
            "draws its negatives itself",
        ),
        ("SASRec", ("--set", "engine.nam=recbole"), "unknown key 'engine.nam'. did you mean 'name'?"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], recipe: Path, model: str, more: tuple[str, ...], line: str
) -> None:
    code, _, err = recbole(capsys, recipe, model, *more)
    last = err.strip().splitlines()[-1]
    assert code == 2 and line in last and "Traceback" not in err


def test_what_the_recipe_says_and_recbole_does_not_use_is_named_and_not_recorded(
    capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    """The shipped recipes name our model: they run, and one line says so; histories may be longer than it takes."""
    text = recipe.read_text().replace("patience: 3", "patience: 3, compile: true")
    recipe.write_text(text + "optimizer: {lr: 0.5, warmup_steps: 3}\n")
    more = ("--set", "training.epochs=1", "--set", "loader.max_length=12")
    code, out, err = recbole(capsys, recipe, "FPMC", *more)
    assert code == 0, err
    said = [line for line in out.splitlines() if "not used with --engine recbole" in line]
    parts = "model (sasrec), optimizer.lr, optimizer.warmup_steps, loader.windows, loader.rows_per_batch"
    parts += ", training.compile"
    used = "used instead: engine.model (FPMC), engine.options"
    assert said == [f"not used with --engine recbole: {parts}; {used}"]
    folder = recipe.parent / "runs" / "tiny-recbole-FPMC"
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert not {"model", "optimizer"} & written.keys()
    assert written["loader"] == {"max_length": 12, "tokens_per_batch": 16384}
    assert set(written["training"]) == {"epochs", "patience", "eval_every", "select", "keep"}
    assert json.loads((folder / "metrics.json").read_text())["model"]["name"] == "FPMC"
    assert "FPMC on " in (folder / "report.html").read_text()
    # The run's own configuration and another model of ours below it mean the same run: nothing is left to do.
    before = (folder / "metrics.json").stat().st_mtime_ns
    code, out, err = run(capsys, "run", str(folder / "config.yaml"))
    assert code == 0 and "not used" not in out, err
    recipe.write_text(recipe.read_text().replace("hidden: 16", "hidden: 32"))
    assert recbole(capsys, recipe, "FPMC", *more)[0] == 0
    assert (folder / "metrics.json").stat().st_mtime_ns == before


def test_every_option_that_a_model_reads_is_taken() -> None:
    """Every default of every model is an option of its, and so are keys that it reads without a default."""
    load_recbole()
    taken = 0
    for model in sequential_models():
        path = _properties() / "model" / f"{model}.yaml"
        values = read_yaml(path).values if path.is_file() else {}
        check_accepted(model, values, ())
        taken += len(values)
    assert taken > 200
    check_accepted("HRM", {"reg_weight": [0.1], "learner": "Sparse_Adam", "learning_rate": 1}, ())
    check_accepted("RecPodSASRec", {"recpod": {"hidden": 8}, "hidden_size": 8, "loss_type": "BPR"}, ())
    with pytest.raises(ConfigError, match="selected_features"):
        check_accepted("SASRec", {"selected_features": ["class"]}, ())


@pytest.mark.parametrize("verb", ["train", "evaluate", "estimate"])
def test_stages_that_it_does_not_have_are_refused(capsys: pytest.CaptureFixture[str], recipe: Path, verb: str) -> None:
    code, _, err = run(capsys, verb, str(recipe), "--set", "engine.name=recbole")
    assert code == 2 and "trains and evaluates in one go. use `recpod run`" in err


def test_the_front_door_has_the_flag(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    code, out, _ = run(capsys, "runbook", "--config", str(recipe), "--engine", "recbole", "--dry-run")
    assert code == 0 and "RecBole's SASRec" in out and "runs/tiny-recbole-SASRec/report.html" in out
    code, _, err = run(capsys, "runbook", "--config", str(recipe), "--engine", "recbol", "--dry-run")
    assert code == 2 and "--engine" in err and "recbole" in err
