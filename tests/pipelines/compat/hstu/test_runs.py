"""The commands run: our gin files, the public ones on small data, resumes, several processes, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipelines.compat.hstu.__main__ import main
from pipelines.training.checkpoint import checkpoint_path, checkpoint_steps, load_checkpoint
from pipelines.training.events import read_events
from tests.pipelines.compat.hstu.gin_text import gin_file, line_of
from tests.pipelines.compat.hstu.small_data import write_kuairand, write_movielens

ROOT = Path(__file__).resolve().parents[4]
OURS = sorted((ROOT / "configs" / "gin").glob("*.gin"))
PUBLIC = sorted((Path(__file__).parent / "gin").glob("*.gin"))
NOT_TRAINED = ("balanced_attn_benchmark", "movielens_ranking_fp8")
SMALL = """
TrainerArgs.train_batch_size = 8
TrainerArgs.max_train_iters = 4
TrainerArgs.eval_interval = 2
TrainerArgs.log_interval = 1
TrainerArgs.profile_step_start = 1
TrainerArgs.profile_step_end = 2
TrainerArgs.ckpt_save_dir = 'runs'
NetworkArgs.num_layers = 1
NetworkArgs.hidden_size = 8
NetworkArgs.kv_channels = 4
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("RECPOD_MIRROR", raising=False)


def small(path: Path, folder: Path) -> Path:
    """The file with small sizes, and its data."""
    text = path.read_text(encoding="utf-8")
    for included in re.findall(r"^include '(.*)'", text, re.M):
        text += (path.parent / included).read_text(encoding="utf-8")
    lines = ["", SMALL]
    if "max_sequence_length = %longest" in text:
        lines += ["longest = 12", "lengths/RandomDistribution.mean = 8", "items/RandomDistribution.high = 40"]
    elif "BenchmarkDatasetArgs" in text:
        lines += ["item_and_action_feature/FeatureArgs.max_sequence_length = 12"]
        table = "DynamicEmbeddingArgs" if "item_embedding/Dynamic" in text else "EmbeddingArgs"
        lines += [f"item_embedding/{table}.item_vocab_size_or_capacity = 40"]
        lines += ["item_value_dist/RandomDistribution.high = 40"] if "item_value_dist" in text else []
    else:
        name = next(n for n in ("max_sequence_length", "max_history_seqlen") if n in text)
        lines += [f"DatasetArgs.{name} = 20"]
        lines += ["DatasetArgs.max_num_candidates = 4"] if "RankingArgs" in text else []
        write_movielens(folder / "data") if "'ml-" in text else None
        for edition in ("pure", "1k", "27k"):
            if f"'kuairand-{edition}'" in text:
                write_kuairand(folder / "data", edition)
    out = folder / f"{path.stem}.gin"
    out.write_text(f"include '{path}'\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return out


def command_of(path: Path) -> str:
    return "pretrain_gr_retrieval" if "retrieval" in path.stem else "pretrain_gr_ranking"


def check_run(folder: Path, steps: int) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    assert metrics["training"]["steps"] == steps and metrics["training"]["ended"] == f"{steps} updates done"
    assert metrics["test"] and metrics["valid"]
    return metrics


@pytest.mark.timeout(400)  # the first run of a process imports much
@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_our_gin_files_run(path: Path, tmp_path: Path) -> None:
    assert main([command_of(path), "--gin-config-file", str(small(path, tmp_path))]) == 0
    run = tmp_path / "runs" / path.stem
    metrics = check_run(run, 4)
    assert [event["step"] for event in read_events(run / "events.jsonl") if event["kind"] == "valid"] == [2, 4]
    assert ("NDCG@10" in metrics["test"]) == ("retrieval" in path.stem)
    assert ("AUC" in metrics["test"]) == ("ranking" in path.stem)
    if "profile = True" in path.read_text(encoding="utf-8"):
        assert list((run / "profile").glob("steps-1-2-rank-0.json.gz"))


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("path", [p for p in PUBLIC if p.stem not in NOT_TRAINED], ids=lambda path: path.stem)
def test_public_gin_files_run(path: Path, tmp_path: Path) -> None:
    assert main([command_of(path), "--gin-config-file", str(small(path, tmp_path))]) == 0
    check_run(tmp_path / "runs" / path.stem, 4)


@pytest.mark.parametrize("name", NOT_TRAINED)
def test_public_gin_files_that_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parent / "gin" / f"{name}.gin"
    assert main([command_of(path), "--gin-config-file", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}:") and "cannot be honoured" in said and said.count("\n") == 1


def state_of(run: Path) -> dict[str, Any]:
    return load_checkpoint(checkpoint_path(run / "checkpoints", checkpoint_steps(run / "checkpoints")[-1]))


@pytest.mark.timeout(400)
def test_a_checkpoint_is_gone_on_from_where_its_data_were(tmp_path: Path) -> None:
    def run(name: str, *lines: str) -> Path:
        path = gin_file(tmp_path, "benchmark", "TrainerArgs.eval_interval = 2", *lines, name=f"{name}.gin")
        assert main(["pretrain_gr_ranking", "--gin-config-file", str(path)]) == 0
        return tmp_path / "runs" / name

    whole = state_of(run("whole", "TrainerArgs.ckpt_save_dir = 'runs'"))
    begun = run("begun", "TrainerArgs.max_train_iters = 4", "TrainerArgs.ckpt_save_interval = 3")
    assert [event["step"] for event in read_events(begun / "events.jsonl") if event["kind"] == "checkpoint"][1] == 3
    ended = state_of(run("ended", f"TrainerArgs.ckpt_load_dir = '{begun}'"))
    assert whole["state"]["step"] == ended["state"]["step"] == 6
    assert all(torch.equal(whole["model"][name], ended["model"][name]) for name in whole["model"])


def test_a_checkpoint_that_cannot_be_taken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "TrainerArgs.ckpt_load_dir = 'nowhere'"
    path = gin_file(tmp_path, "benchmark", line)
    assert main(["pretrain_gr_ranking", "--gin-config-file", str(path)]) == 2
    assert f"{line_of(path, line)}: TrainerArgs.ckpt_load_dir: there is no folder 'nowhere'" in capsys.readouterr().err
    (tmp_path / "nowhere").mkdir()
    assert main(["pretrain_gr_ranking", "--gin-config-file", str(path), "--resume", "never"]) == 2
    assert "cannot be honoured with --resume never" in capsys.readouterr().err


BAD = {
    (): "no script is named",
    ("pretrain_gr_rankin",): "unknown script 'pretrain_gr_rankin'. did you mean 'pretrain_gr_ranking'?",
    ("pretrain_gr_ranking",): "--gin-config-file",
    ("pretrain_gr_ranking", "--gin-config-file", "absent.gin"): "absent.gin: cannot be read",
    ("pretrain_gr_ranking", "--gin-config-fil", "x"): "--gin-config-file",
}


@pytest.mark.parametrize("arguments", BAD)
def test_a_wrong_command_line_is_one_line(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert BAD[arguments] in said and said.count("\n") == 1


def processes(start: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *start, *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)


TORCHRUN = ["torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
TORCHRUN += ["--local-addr=127.0.0.1", "--no-python", sys.executable, "-m", "pipelines.compat.hstu"]
LAUNCHER = ["pipelines.training.launcher", "--processes=2", "--"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_mistake_ends_every_process(tmp_path: Path) -> None:
    line = "TensorModelParallelArgs.tensor_model_parallel_size = 4"
    path = gin_file(tmp_path, "benchmark", line, "NetworkArgs.num_attention_heads = 4")
    what = f"error: {line_of(path, line)}: TensorModelParallelArgs.tensor_model_parallel_size: 4 cannot be honoured"
    started = processes(TORCHRUN, "pretrain_gr_ranking", "--gin-config-file", str(path))
    assert started.returncode == 1 and started.stderr.count(what) == 2  # torchrun knows success and failure alone
    launched = processes(LAUNCHER, "run", str(path))
    assert launched.returncode == 2 and launched.stderr.count(what) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_share_the_batch(tmp_path: Path) -> None:
    path = gin_file(tmp_path, "benchmark", "TrainerArgs.eval_interval = 3", "TrainerArgs.ckpt_save_dir = 'two'")
    started = processes(TORCHRUN, "pretrain_gr_ranking", "--gin-config-file", str(path))
    assert started.returncode == 0, started.stderr
    assert check_run(tmp_path / "two" / "f", 6)["training"]["processes"] == 2
    config = yaml.safe_load((tmp_path / "two" / "f" / "config.yaml").read_text())
    assert config["loader"]["rows_per_batch"] == 8  # 4 a process
    launched = processes(LAUNCHER, "run", str(path))
    assert launched.returncode == 0, launched.stderr
    assert "two/f/report.html" in launched.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("prefetch_pipeline_demo", "embedding", "auto"),  # a model-parallel item table
        ("benchmark_ranking", "embedding", "auto"),  # a dynamic one
        ("kuairand_1k_ranking_tp2", "parallel", 2),
        ("balanced_ranking_benchmark", "embedding", "auto"),
    ],
)
def test_public_gin_files_spread_tables_and_layers_over_processes(
    name: str, key: str, value: Any, tmp_path: Path
) -> None:
    path = small(next(path for path in PUBLIC if path.stem == name), tmp_path)
    started = processes(TORCHRUN, "pretrain_gr_ranking", "--gin-config-file", str(path))
    assert started.returncode == 0, started.stderr[-3000:]
    check_run(tmp_path / "runs" / name, 4)
    config = yaml.safe_load((tmp_path / "runs" / name / "config.yaml").read_text())
    assert value in config[key].values()
    if key == "embedding":
        assert "row-wise Adagrad trains it" in started.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_dynamic_table_that_overflows_runs(tmp_path: Path) -> None:
    lines = [
        "v/RandomDistribution.dist_type = 'zipf'",
        "events/FeatureArgs.value_dists = {'item': @v/RandomDistribution()}",
        "many/DynamicEmbeddingArgs.feature_names = ['item']",
        "many/DynamicEmbeddingArgs.table_name = 'many'",
        "many/DynamicEmbeddingArgs.item_vocab_size_or_capacity = 64",
        "BenchmarkDatasetArgs.embedding_args = [@many/DynamicEmbeddingArgs(), @rest/DynamicEmbeddingArgs()]",
        "TrainerArgs.ckpt_save_dir = 'runs'",
    ]
    assert main(["pretrain_gr_ranking", "--gin-config-file", str(gin_file(tmp_path, "benchmark", *lines))]) == 0
    check_run(tmp_path / "runs" / "f", 6)
    assert yaml.safe_load((tmp_path / "runs" / "f" / "config.yaml").read_text())["embedding"]["capacity"] == 64
