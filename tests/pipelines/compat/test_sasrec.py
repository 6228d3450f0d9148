"""The SASRec family's command lines: every flag translated, named as not used or refused; runs leave its files."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipelines.compat.sasrec import main
from pipelines.compat.sasrec_flags import FLAGS, SWITCH, parse, translate
from pipelines.config import RunConfig, build_config
from pipelines.data.dataset_store import dataset_store
from pipelines.data.datasets import load_dataset_spec
from tests.pipelines.compat.public_models import Public

NAMED = ["--dataset=ml-1m", "--train_dir=t"]
TINY = ["--dataset=tiny", "--device=cpu", "--hidden_units=8", "--num_blocks=1", "--maxlen=6"]
TINY += ["--batch_size=16", "--num_epochs=2"]


def config_of(*flags: str, script: str = "main") -> RunConfig:
    return build_config(translate(parse([script, *NAMED, *flags]))[0])


def notes_of(*flags: str) -> str:
    return "\n".join(translate(parse(["main", *NAMED, *flags]))[1])


def test_no_flags_mean_tisasrec_with_mhc_and_the_reference_defaults() -> None:
    config = config_of()
    options = config.model_options()
    assert (config.model["name"], options.mhc, options.norm) == ("tisasrec", True, "query")
    assert (options.hidden, options.blocks, options.heads, options.dropout) == (50, 2, 2, 0.2)
    assert (options.time_span, options.time_unit, options.max_length, config.loader.max_length) == (
        100,
        "hour",
        200,
        200,
    )
    assert (options.mhc_expansion_rate, options.mhc_sinkhorn_iterations, options.mhc_init_gate) == (4, 20, 0.01)
    assert (options.loss.name, options.loss.num_negatives) == ("bce", 1)
    assert (config.loader.batch, config.loader.rows_per_batch, config.loader.windows) == ("rows", 128, "newest")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.beta1, optimizer.beta2) == ("adam", 0.001, 0.9, 0.98)
    assert (optimizer.schedule, optimizer.decay_epochs, optimizer.decay_rate) == ("exponential", 1000, 0.95)
    assert (optimizer.warmup_steps, optimizer.item_l2) == (100, 0.0)
    assert (config.training.epochs, config.training.precision, config.training.patience) == (1000, "float32", 0)
    assert (config.name, str(config.folder), config.evaluation.protocol) == ("ml-1m_t", "ml-1m_t", "loo-full-masked")
    assert "--time_unit hour (the default of the command line): intervals are whole hours" in notes_of()


# Every flag that is not the default's own, and what becomes of it.
TRANSLATED = {
    "batch_size": ("7", "loader.rows_per_batch", 7),
    "lr": ("0.5", "optimizer.lr", 0.5),
    "lr_decay_step": ("3", "optimizer.decay_epochs", 3),
    "lr_decay_rate": ("0.5", "optimizer.decay_rate", 0.5),
    "warmup_steps": ("9", "optimizer.warmup_steps", 9),
    "maxlen": ("11", "model.max_length", 11),
    "hidden_units": ("6", "model.hidden", 6),
    "num_blocks": ("3", "model.blocks", 3),
    "num_epochs": ("5", "training.epochs", 5),
    "num_heads": ("5", "model.heads", 5),
    "dropout_rate": ("0.4", "model.dropout", 0.4),
    "l2_emb": ("0.1", "optimizer.item_l2", 0.1),
    "device": ("cuda:1", "device", "cuda:1"),
    "norm_first": (None, "model.norm", "pre"),
    "no_time": (None, "model.name", "sasrec"),
    "no_mhc": (None, "model.mhc", False),
    "mhc_expansion_rate": ("2", "model.mhc_expansion_rate", 2),
    "mhc_init_gate": ("0.2", "model.mhc_init_gate", 0.2),
    "mhc_sinkhorn_iter": ("4", "model.mhc_sinkhorn_iterations", 4),
    "use_amp": (None, "training.precision", "auto"),
    "time_span": ("8", "model.time_span", 8),
    "time_unit": ("day", "model.time_unit", "day"),
    "gradient_accumulation_steps": ("2", "training.accumulate", 2),
}
NOTED = {"num_workers": "4", "master_port": "1234", "local_rank": "1", "backend": "gloo", "mhc_no_amp": None}
ELSEWHERE = {"dataset", "train_dir", "inference_only", "state_dict_path", "use_time", "multi_gpu", "resume"}


def flag(name: str, value: str | None) -> str:
    return f"--{name}" if value is None else f"--{name}={value}"


@pytest.mark.parametrize("name", TRANSLATED)
def test_a_flag_becomes_an_option(name: str) -> None:
    value, key, expected = TRANSLATED[name]
    found: Any = config_of(flag(name, value)).resolved()
    before: Any = config_of().resolved()
    for part in key.split("."):
        found, before = found[part], before[part]
    assert found == expected != before


@pytest.mark.parametrize("name", NOTED)
def test_a_flag_without_effect_is_named(name: str) -> None:
    written = flag(name, NOTED[name])
    assert f"--{name} is not used" in notes_of(written)
    assert f"--{name} is not used" not in notes_of()
    assert config_of(written) == config_of()


def test_every_flag_is_accounted_for() -> None:
    assert set(FLAGS) == {*TRANSLATED, *NOTED, *ELSEWHERE}
    assert {name for name, (kind, _) in FLAGS.items() if kind is SWITCH} >= {"no_time", "no_mhc", "multi_gpu"}


def test_sasrec_is_post_norm_and_validates_as_its_script() -> None:
    assert config_of("--no_time").model_options().norm == "post"
    assert config_of("--no_time", "--norm_first").model_options().norm == "pre"
    assert config_of().training.eval_every == 10
    assert config_of(script="main_distributed").training.eval_every == 20
    assert not hasattr(config_of("--no_time").model_options(), "time_unit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no script is named"),
        (["train"], "unknown script 'train'"),
        (["main", "--dataset=ml-1m"], "--train_dir: is missing"),
        (["main", *NAMED, "--max_len=3"], r"unknown flag '--max_len'. did you mean '--maxlen'\?"),
        (["main", *NAMED, "--lr=fast"], "--lr: invalid float value"),
        (["main", *NAMED, "--inference_only=perhaps"], "'perhaps' is neither true nor false"),
        (["main", *NAMED, "--inference_only=true"], "--inference_only: needs weights. add --state_dict_path"),
        (["main", *NAMED, "--no_time", "--use_time"], "--use_time: contradicts --no_time"),
        (["main", *NAMED, "--no_time", "--time_span=3"], "--time_span: has nothing to say with --no_time"),
        (["main", *NAMED, "--no_mhc", "--mhc_init_gate=1"], "--mhc_init_gate: has nothing to say with --no_mhc"),
        (["main", *NAMED, "--use_amp", "--mhc_no_amp"], "--mhc_no_amp: cannot be honoured with --use_amp"),
        (["main", *NAMED, "--backend=mpi"], "--backend: 'mpi' is neither nccl nor gloo"),
        (["main", *NAMED, "--backend=nccl", "--device=cpu"], "--backend: nccl cannot be honoured on cpu"),
        (["main", *NAMED, "--device=tpu"], "--device: 'device'"),
        (["main", *NAMED, "--time_unit=week"], "--time_unit"),
        (["main", *NAMED, "--num_heads=3"], "3 does not divide hidden"),
        (["main", *NAMED, "--batch_size=0"], "--batch_size: 0 is less than 1"),
        (["main", *NAMED, "--lr=-1"], "--lr: -1.0 is not a positive learning rate"),
        (["main", *NAMED, "--num_epochs=0"], "--num_epochs: 0 is less than 1"),
        (["main", "--dataset=nowhere", "--train_dir=t"], "--dataset: there is no data/nowhere.txt"),
        (["main", "--dataset=ml-1m", "--train_dir=../t"], "--train_dir: .*is no name of a folder"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder as the scripts know it, with 40 users in data/tiny.txt; item ids have gaps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "cache"))
    for name in ("TORCHELASTIC_RUN_ID", "NUM_GPUS", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    rng = np.random.default_rng(0)
    lines = [
        f"{user} {2 * rng.integers(1, 16)} {978_300_000 + 4000 * n + user}"
        for user in range(1, 41)
        for n in range(int(rng.integers(4, 9)))
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tiny.txt").write_text("\n".join([*lines, "1 30 978400000"]) + "\n")
    return tmp_path


def rows_of_log(folder: Path) -> tuple[list[str], list[tuple[int, tuple[float, ...], tuple[float, ...]]]]:
    heading, *rest = (folder / "log.txt").read_text().splitlines()
    assert heading == "epoch (val_ndcg, val_hr) (test_ndcg, test_hr)"
    notes = [line.removeprefix("# ") for line in rest if line.startswith("#")]
    rows = []
    for line in rest[len(notes) :]:
        match = re.fullmatch(r"(\d+) \((\S+), (\S+)\) \((\S+), (\S+)\)", line)
        assert match is not None
        valid, test = (tuple(float(match[k]) for k in pair) for pair in ((2, 3), (4, 5)))
        rows.append((int(match[1]), valid, test))
    return notes, rows


def test_a_run_leaves_the_scripts_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["main", *TINY, "--train_dir=t", "--warmup_steps=2", "--lr_decay_step=1", "--lr_decay_rate=0.5"]) == 0
    folder = here / "tiny_t"
    args = dict(line.split(",", 1) for line in (folder / "args.txt").read_text().splitlines())
    assert set(args) == set(FLAGS) - {"resume"}
    assert list(args) == sorted(args)
    assert (args["maxlen"], args["no_time"], args["time_span"]) == ("6", "False", "100")
    metrics = json.loads((folder / "metrics.json").read_text())
    notes, rows = rows_of_log(folder)
    assert any(note.startswith("--time_unit hour") for note in notes)
    assert [(epoch, test) for epoch, _, test in rows] == [(2, (metrics["test"]["NDCG@10"], metrics["test"]["HR@10"]))]
    assert rows[0][1] == (metrics["valid"]["NDCG@10"], metrics["valid"]["HR@10"])
    assert "sampled-100" in metrics["also"]
    steps = list(csv.DictReader((folder / "step_log.csv").open()))
    assert [(row["epoch"], row["step"]) for row in steps] == [(str(1 + n // 3), str(n + 1)) for n in range(6)]
    rates = [float(row["lr"]) for row in steps]
    assert rates == pytest.approx([0.0005, 0.001, 0.001, 0.0005, 0.0005, 0.0005])
    assert all(math.isfinite(float(row["loss"])) for row in steps)
    recipe = yaml.safe_load((folder / "config.yaml").read_text())
    assert (recipe["model"]["name"], recipe["model"]["mhc"]) == ("tisasrec", True)


def test_the_test_is_asked_for_the_chosen_epoch_alone(here: Path) -> None:
    assert main(["main", *TINY, "--train_dir=t", "--no_time", "--no_mhc", "--num_epochs=20", "--lr=0.01"]) == 0
    metrics = json.loads((here / "tiny_t" / "metrics.json").read_text())
    _, rows = rows_of_log(here / "tiny_t")
    assert [epoch for epoch, _, _ in rows] == [10, 20]
    asked = [not math.isnan(test[0]) for _, _, test in rows]
    assert sum(asked) == 1
    assert rows[asked.index(True)][0] == max(rows, key=lambda row: row[1][0])[0]
    assert rows[asked.index(True)][0] * 3 == metrics["training"]["best_step"]


@pytest.mark.parametrize(("columns", "separator"), [(2, " "), (4, "\t")])
def test_text_files_of_two_and_four_columns(here: Path, columns: int, separator: str) -> None:
    lines = [line.split() for line in (here / "data" / "tiny.txt").read_text().splitlines()]
    wide = [[user, item, *([] if columns == 2 else ["3.5", time])] for user, item, time in lines]
    (here / "data" / "tiny.txt").write_text("\n".join(separator.join(fields) for fields in wide) + "\n")
    store = dataset_store(load_dataset_spec("data/tiny.txt"))
    assert store.num_events == len(lines)
    assert store.manifest["timestamps"] == ("order" if columns == 2 else "seconds")
    time = ["--no_time"] if columns == 2 else []
    assert main(["main", *TINY, "--train_dir=t", "--num_epochs=1", *time]) == 0


def test_tisasrec_needs_times(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "data" / "tiny.txt").write_text("1 2\n1 3\n")
    assert main(["main", *TINY, "--train_dir=t"]) == 2
    assert capsys.readouterr().err.strip() == (
        "error: data/tiny.txt: the file has no timestamps, which TiSASRec reads. add --no_time."
    )


def public_file(here: Path, name: str = "SASRec.epoch=1.lr=0.001.pth", *, items: int = 30, **form: Any) -> Public:
    torch.manual_seed(3)
    public = Public(items, 6, blocks=1, **form)
    torch.save({key: value.float() for key, value in public.state_dict().items()}, here / name)
    return public


def test_public_weights_are_evaluated_as_they_are(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public = public_file(here, year=2025, pre=True)
    flags = ["--no_time", "--no_mhc", "--norm_first", "--inference_only=true"]
    assert main(["main", *TINY, "--train_dir=t", *flags, "--state_dict_path=SASRec.epoch=1.lr=0.001.pth"]) == 0
    store = dataset_store(load_dataset_spec("data/tiny.txt"))
    ids = store.item_ids()
    ranks = []
    for user in range(store.num_users):
        events = ids[store.items[store.offsets[user] : store.offsets[user + 1]] - 1]
        history, target = events[:-1], int(events[-1])
        row = np.zeros(6, dtype=np.int64)
        row[6 - len(history[-6:]) :] = history[-6:]
        scores = public.logits(torch.from_numpy(row)[None], torch.zeros(1, 6))[0].detach()
        others = [int(item) for item in ids if item != target and item not in history]
        ranks.append(1 + sum(bool(scores[item - 1] >= scores[target - 1]) for item in others))
    hits = [rank for rank in ranks if rank <= 10]
    ndcg, hr = sum(1 / math.log2(rank + 1) for rank in hits) / len(ranks), len(hits) / len(ranks)
    assert f"test (NDCG@10: {ndcg:.4f}, HR@10: {hr:.4f}) loo-full-masked" in capsys.readouterr().out
    notes, rows = rows_of_log(here / "tiny_t")
    assert rows[0][2] == pytest.approx((ndcg, hr))
    assert any("--num_heads 2 is taken" in note for note in notes)


def test_public_tisasrec_has_its_own_scale(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public_file(here, "ti.pth", items=15, span=100)  # numbered anew: as many rows as items
    flags = [*TINY, "--train_dir=t", "--no_mhc", "--inference_only=true", "--state_dict_path=ti.pth"]
    assert main(["main", *flags]) == 0
    assert "TiSASRec's scale per user" in capsys.readouterr().err
    assert main(["main", *flags, "--time_unit=hour"]) == 2
    assert main(["main", *flags, "--num_blocks=3"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("than --num_blocks says. give --num_blocks 1.")
    assert main(["main", *flags, "--no_time"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("leave out --no_time.")


def test_training_goes_on_from_public_weights(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public = public_file(here)
    flags = [*TINY, "--train_dir=t", "--no_time", "--no_mhc", "--state_dict_path=SASRec.epoch=1.lr=0.001.pth"]
    assert main(["main", *flags, "--num_epochs=1"]) == 2
    assert "the weights are of epoch 1, --num_epochs 1 leaves nothing" in capsys.readouterr().err
    assert main(["main", *flags, "--lr=1e-9"]) == 0  # so small a rate leaves the weights where they were
    steps = list(csv.DictReader((here / "tiny_t" / "step_log.csv").open()))
    assert {row["epoch"] for row in steps} == {"2"}
    newest = max((here / "tiny_t" / "checkpoints").iterdir(), key=lambda path: int(path.name.partition("-")[2]))
    table = torch.load(newest / "state.pt", weights_only=True)["model"]["item_embedding.weight"]
    ids = dataset_store(load_dataset_spec("data/tiny.txt")).item_ids()
    torch.testing.assert_close(table[1:].double(), public.item_emb.weight.detach()[ids.tolist()], atol=1e-5, rtol=0)


def test_own_checkpoints_are_evaluated(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["main", *TINY, "--train_dir=t"]) == 0
    test = json.loads((here / "tiny_t" / "metrics.json").read_text())["test"]
    checkpoint = next((here / "tiny_t" / "checkpoints").iterdir())
    capsys.readouterr()
    flags = [*TINY, "--train_dir=again", "--inference_only=true", f"--state_dict_path={checkpoint}"]
    assert main(["main", *flags]) == 0
    assert f"test (NDCG@10: {test['NDCG@10']:.4f}, HR@10: {test['HR@10']:.4f})" in capsys.readouterr().out
    assert main(["main", *flags, "--hidden_units=4"]) == 2


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("args.txt", "log.txt", "step_log.csv")}


def test_a_refused_command_leaves_the_run_s_files_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [*TINY, "--train_dir=t", "--no_time", "--no_mhc", "--num_epochs=1"]
    monkeypatch.setenv("NUM_GPUS", "many")
    assert main(["main_distributed", *flags]) == 2
    assert not (here / "tiny_t").exists()  # nothing has run
    monkeypatch.delenv("NUM_GPUS")
    assert main(["main", *flags]) == 0
    before = files_of(here / "tiny_t")
    assert main(["main", *flags, "--lr=0.5", "--num_workers=9"]) == 2  # another configuration
    assert main(["main", *flags, "--inference_only=true", "--state_dict_path=nowhere.pth"]) == 2
    assert main(["main", *flags, "--resume=nowhere", "--num_workers=9"]) == 2
    monkeypatch.setenv("NUM_GPUS", "many")
    assert main(["main_distributed", *flags, "--num_workers=9"]) == 2
    assert files_of(here / "tiny_t") == before
    monkeypatch.delenv("NUM_GPUS")
    assert main(["main", *flags, "--num_workers=9"]) == 0  # accepted: it changes nothing but is finished already
    after = files_of(here / "tiny_t")
    assert b"num_workers,9" in after["args.txt"] and b"--num_workers is not used" in after["log.txt"]


def test_inference_adds_a_line_to_the_log(here: Path) -> None:
    flags = [*TINY, "--train_dir=t", "--no_time", "--no_mhc", "--num_workers=9"]
    assert main(["main", *flags]) == 0
    notes, rows = rows_of_log(here / "tiny_t")
    steps = (here / "tiny_t" / "step_log.csv").read_text()
    public_file(here)
    weights = ["--inference_only=true", "--state_dict_path=SASRec.epoch=1.lr=0.001.pth"]
    for times in (1, 2):
        assert main(["main", *flags[:-1], *weights]) == 0
        found, all_rows = rows_of_log(here / "tiny_t")
        assert all_rows[: len(rows)] == rows and len(all_rows) == len(rows) + times
        assert math.isnan(all_rows[-1][1][0]) and not math.isnan(all_rows[-1][2][0])
        assert found[: len(notes)] == notes and len(found) == len(set(found)) > len(notes)
    assert (here / "tiny_t" / "step_log.csv").read_text() == steps
    assert "inference_only,True" in (here / "tiny_t" / "args.txt").read_text()
