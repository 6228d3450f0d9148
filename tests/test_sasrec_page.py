"""docs/sasrec-commands.md: every command runs, on small data and in small sizes; its tables say what the code does."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pipelines.cli import main as recpod
from pipelines.compat import recbole, recbole_forms, sasrec, sasrec_text
from pipelines.engines.recbole_conflicts import check_recbole
from pipelines.run_folder import ROOT
from tests.page_commands import check_recpod, page_commands
from tests.pipelines.compat.public_models import Public

PAGE = (ROOT / "docs" / "sasrec-commands.md").read_text(encoding="utf-8")
COMMANDS = page_commands(PAGE)
SEVERAL = [command for command in COMMANDS if "distributed" in command and "test_distributed" not in command]
COMPAT = "python -m pipelines.compat.sasrec "
SMALL = ["--device=cpu", "--hidden_units=8", "--num_blocks=1", "--num_heads=2", "--maxlen=6", "--batch_size=16"]
SMALL += ["--num_epochs=1"]
EVENTS = [
    (user, 1 + (3 * user + n) % 15, 978_300_000 + 4000 * n + user) for user in range(1, 41) for n in range(4 + user % 5)
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small ML-1M archive, weights and RecBole's form of the same events."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "cache"))
    for name in ("TORCHELASTIC_RUN_ID", "NUM_GPUS", "WANDB_API_KEY", "RECPOD_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "data"
    (folder / "clicks").mkdir(parents=True)
    with zipfile.ZipFile(folder / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "".join(f"{u}::{i}::4::{t}\n" for u, i, t in EVENTS))
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *(f"{u}\t{i}\t{t}" for u, i, t in EVENTS)]
    (folder / "clicks" / "clicks.inter").write_text("\n".join(lines) + "\n")
    public = Public(15, 6, blocks=1, year=2025)
    torch.save({key: value.float() for key, value in public.state_dict().items()}, tmp_path / "base.pth")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_scripts_commands_run_one_after_the_other(here: Path) -> None:
    words = [shlex.split(command.removeprefix(COMPAT)) for command in COMMANDS if command.startswith(COMPAT)]
    assert [command[0] for command in words] == ["convert_ml1m", "main", "main", "main", "test_distributed"]
    for command in words[:-1]:  # the last one is run by test_sasrec_commands.py as it stands here
        assert sasrec.main([*command, *(SMALL if command[0] == "main" else [])]) == 0, command
    assert (here / "data" / "ml-1m.txt").read_text().splitlines()[0] == " ".join(map(str, EVENTS[0]))
    model = json.loads((here / "ml-1m_all" / "metrics.json").read_text())["model"]
    assert (model["name"], model["mhc"]) == ("tisasrec", True)
    base = json.loads((here / "ml-1m_base" / "metrics.json").read_text())
    assert (base["model"]["name"], base["model"]["mhc"]) == ("sasrec", False) and "sampled-100" in base["also"]
    for name in ("args.txt", "log.txt", "step_log.csv", "metrics.json", "report.html", "checkpoints"):
        assert (here / "ml-1m_base" / name).exists() and f"`{name}" in PAGE
    for text in ("epoch (val_ndcg, val_hr) (test_ndcg, test_hr)", "epoch,step,loss,lr"):
        assert f"`{text}`" in PAGE
        assert any(path.read_text().startswith(f"{text}\n") for path in (here / "ml-1m_base").glob("*log.*"))
    assert "test" not in (here / "ml-1m_again" / "args.txt").read_text().split(",")[0]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("command", SEVERAL, ids=lambda command: re.sub(r"\W+", "-", command)[:40])
def test_several_processes_train_together(command: str, here: Path) -> None:
    assert sasrec.main(["convert_ml1m"]) == 0
    words = shlex.split(command)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RECPOD_PYTHON": sys.executable}
    environment["RECPOD_VENV"] = "nowhere"
    while "=" in words[0]:
        name, _, environment[name] = words.pop(0).partition("=")
    starts = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
    program = starts.get(words[0], [str(ROOT / words[0])])
    done = subprocess.run(
        [*program, *words[1:], *SMALL, "--no_time", "--no_mhc"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=380,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = here.glob("ml-1m_*")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["training"]["processes"] == 2 and metrics["training"]["epochs"] == 1
    assert "hidden_units,8" in (folder / "args.txt").read_text()  # replaces the script's size
    assert len((folder / "step_log.csv").read_text().splitlines()) == 1 + 3  # 40 users, 16 in all a step
    assert (folder / "log.txt").read_text().splitlines()[-1].startswith("1 (")
    assert ("--local_rank is not used: torchrun says it" in done.stderr) == ("distributed.launch" in command)


def test_recpod_s_commands_exist() -> None:
    """The files themselves are run by tests/pipelines/compat/test_recbole_files.py."""
    found = [shlex.split(command)[1:] for command in COMMANDS if command.startswith("recpod ")]
    for words in found:
        check_recpod(words)
        assert words[0] == "preflight" or (ROOT / words[1]).is_file()
    named = {words[1] for words in found if words[0] == "run"}
    assert named == {str(path.relative_to(ROOT)) for path in (ROOT / "configs" / "recbole").iterdir()}
    known = (COMPAT, "recpod ", "NUM_GPUS=2 ", "torchrun ", "python -m torch.distributed.launch ")
    assert [command for command in COMMANDS if not command.startswith(known)] == []


def test_preflight_s_command_runs(here: Path) -> None:
    with pytest.raises(SystemExit) as left:
        recpod(["preflight", "--engine", "recbole"])
    assert left.value.code == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(find_spec("colorlog") is None, reason="recbole is not installed with what it needs")
def test_the_python_example_runs(here: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", example], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "'ndcg@10'" in done.stdout.splitlines()[-1]
    assert list((here / "saved").glob("RecPodSASRec-*.pth"))


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_layouts_are_those_of_the_converter() -> None:
    found = {int(columns): (order.strip("`"), between) for columns, order, between, _ in rows("Text files")}
    assert found == {
        columns: (" ".join(name.removesuffix("_id") for name in names), {" ": "a space", "\t": "a tab"}[separator])
        for columns, (separator, names) in sasrec_text.LAYOUTS.items()
    }


def test_the_keys_are_those_that_are_translated() -> None:
    named = {key for row in rows("RecBole's files") for key in re.findall(r"`(\w+)`", row[0])}
    known = {*recbole.RECIPE, *recbole.TRAINING, *recbole.SAMPLING, "valid_metric", "recpod"}
    sasrec_form = recbole_forms.FORMS["SASRec"]
    assert named <= known | sasrec_form.known and sasrec_form.known <= named
    assert {*recbole.DEFAULTS, *recbole.TRAINING_DEFAULTS} <= named


def test_the_conflicts_are_those_that_are_checked() -> None:
    named = {row[0].split()[0] for row in rows("RecBole beside newer packages")}
    checked = {check.name.removeprefix("RecBole: ").split(".")[0] for check in check_recbole(used=False)}
    assert named == (checked - {"packages"}) | {"others"}
