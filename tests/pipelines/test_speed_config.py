"""What cannot be captured, compiled or fed from the device is refused in one line, before any data are fetched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pipelines import cli, stages
from pipelines.config import load_config
from pipelines.errors import ConfigError
from pipelines.estimate.measure import measure
from pipelines.speed_config import check_graph, check_here
from tests.pipelines.recipe_runs import ran, write_recipes

GRAPH, COMPILED, RESIDENT = "training.cuda_graph=true", "training.compile=true", "loader.resident=on"
SASREC, TOKENS = "model={name: sasrec}", "loader.batch=tokens"
NEGATIVES = "model.loss={name: bce, sampler: in_batch}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_recipes(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("recipe", "sets", "said"),
    [
        ("tiny", [GRAPH], f"--set {GRAPH}: 'training.cuda_graph': a step of HSTU depends on the batch's lengths"),
        ("ranking", [GRAPH], f"--set {GRAPH}: 'training.cuda_graph': a step of HSTURanking depends"),
        ("tiny", ["model={name: sasrec, mhc: true}", TOKENS, GRAPH], "'training.cuda_graph': a step of SASRec depends"),
        ("tiny", [SASREC, GRAPH], "'training.cuda_graph': batches of equal rows have no common number of tokens"),
        ("tiny", [SASREC, TOKENS, NEGATIVES, GRAPH], "'training.cuda_graph': negatives drawn from the batch's targets"),
        ("tiny", [SASREC, TOKENS, "training.accumulate=2", GRAPH], "'training.cuda_graph': only updates of one batch"),
        ("tiny", [SASREC, TOKENS, "debug=true", GRAPH], "'training.cuda_graph': only updates of one batch"),
        ("tiny", [COMPILED], f"--set {COMPILED}: 'training.compile': HSTU has no feed-forward layer"),
        ("tiny", ["model={name: ss4rec}", COMPILED], "'training.compile': SS4Rec has no feed-forward layer"),
        ("ranking", [COMPILED], "'training.compile': HSTURanking has no feed-forward layer"),
        ("ranking", [RESIDENT], f"--set {RESIDENT}: 'loader.resident': a model that predicts actions"),
    ],
)
def test_what_the_recipe_decides_is_refused_when_it_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str], recipe: str, sets: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(folder / f"{recipe}.yaml", sets)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(SystemExit) as left:
        cli.main(["config", "show", str(folder / f"{recipe}.yaml"), *(word for s in sets for word in ("--set", s))])
    assert left.value.code == 2 and said in capsys.readouterr().err


def test_a_line_of_a_file_is_named(folder: Path) -> None:
    path = folder / "wrong.yaml"
    path.write_text("extends: tiny.yaml\ntraining:\n  compile: true\n")
    with pytest.raises(ConfigError, match=r"wrong\.yaml:3: 'training\.compile': HSTU has no feed-forward layer"):
        load_config(path)


def test_what_can_be_done_is_not_refused_and_draws_nothing(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    config = load_config(folder / "tiny.yaml", [SASREC, TOKENS, GRAPH, COMPILED, RESIDENT])
    check_graph(config, "cuda", 1)
    assert torch.equal(torch.rand(2), expected)
    load_config(folder / "ranking.yaml", ["loader.resident=auto"])
    other = load_config(folder / "tiny.yaml", ["engine={name: recbole, model: SASRec}"])
    check_here(other, "cpu", 1)


def test_what_the_machine_decides_is_refused_before_the_data_are_fetched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "clicks.csv").unlink()  # whoever looked for it would say so
    plain = [SASREC, TOKENS, "model.max_length=10"]
    said = "2 training.cuda_graph: a CUDA graph needs a GPU, and the run is on cpu. set training.cuda_graph=false."
    assert ran(None, folder, "captured", *plain, GRAPH) == said
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert ran(None, folder, "compiled", *plain, COMPILED).startswith("2 training.compile: torch.compile needs a C++")
    assert "clicks.csv" in ran(None, folder, "plain", *plain)
    assert not (folder / "data").exists() and not (folder / "runs" / "captured").exists()


def test_several_processes_capture_nothing(folder: Path) -> None:
    config = load_config(folder / "tiny.yaml", [SASREC, TOKENS, GRAPH])
    with pytest.raises(ConfigError, match="training.cuda_graph: only updates of one batch, by one process"):
        check_here(config, "cuda", 2)


def test_a_measurement_is_refused_before_the_data_are_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "prepare", lambda config: pytest.fail("the data were prepared"))
    config = load_config(folder / "tiny.yaml", [SASREC, TOKENS, GRAPH])
    with pytest.raises(stages.MachineError, match="training.cuda_graph: a CUDA graph needs a GPU"):
        measure(config, 1.0)
