"""configs/recbole: every file trains with both engines, as it is but for data and length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.compat.recbole import is_recbole_config
from pipelines.config_files import CONFIGS, read_yaml

FILES = sorted((CONFIGS / "recbole").glob("*.yaml"))
# What trains a file's model; None: refused.
ENGINES = {
    ("sasrec", "recpod"): "sasrec",
    ("sasrec", "recbole"): "SASRec",
    ("tisasrec", "recpod"): "tisasrec",
    ("tisasrec", "recbole"): "RecPodTiSASRec",
    ("ss4rec", "recpod"): "ss4rec",
    ("ss4rec", "recbole"): "RecPodSS4Rec",
    ("gru4rec", "recpod"): None,
    ("gru4rec", "recbole"): "GRU4Rec",
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in RecBole's format in which item ``i`` is mostly followed by ``i + 1``."""
    pytest.importorskip("colorlog", reason="recbole is not installed with what it needs: entrypoints/setup.sh --test")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "cache"))
    path = tmp_path / "clicks.inter"
    rows = [
        f"{u}\t{(u * 7 + i + (i % 5 == 4) * u) % 40}\t{978300000 + 1000 * u + 60 * i}"
        for u in range(40)
        for i in range(9)
    ]
    path.write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(rows) + "\n")
    return path


def test_every_file_is_run_with_both_engines() -> None:
    assert {(file.stem, engine) for file in FILES for engine in ("recpod", "recbole")} == ENGINES.keys()
    assert all(is_recbole_config(file) for file in FILES)


@pytest.mark.parametrize(("name", "engine"), ENGINES)
def test_a_file_runs(name: str, engine: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, model = CONFIGS / "recbole" / f"{name}.yaml", ENGINES[name, engine]
    command = ["run", str(file), *([] if engine == "recpod" else ["--engine", engine])]
    for value in (f"dataset.name={data}", "training.epochs=1", "tracking.wandb=off"):
        command += ["--set", value]
    with pytest.raises(SystemExit) as left:
        main(command)
    out, err = capsys.readouterr()
    if model is None:
        assert left.value.code == 2 and "RecBole's own: --engine recbole" in err
        return
    assert left.value.code == 0, err
    folder = Path("runs") / (name if engine == "recpod" else f"{name}-recbole-{model}")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["model"]["name"] == model and metrics["protocol"]["name"] == "loo-full"
    asked = read_yaml(file).values
    assert {f"NDCG@{k}" for k in asked["topk"]} <= metrics["test"].keys() if "topk" in asked else True
    assert metrics["training"]["epochs"] == 1 and f"{model}" in out
