"""The reference commands beside main: convert_ml1m, test_distributed, train_distributed.sh, and who may start them."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipelines.compat import sasrec_processes
from pipelines.compat.sasrec import main
from pipelines.compat.sasrec_flags import parse
from pipelines.compat.sasrec_processes import Trained, report
from pipelines.data.dataset_store import dataset_store
from pipelines.data.datasets import load_dataset_spec
from pipelines.errors import MachineError

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "entrypoints" / "train_distributed.sh"
# Out of order, with a tie (30 stands before 20 in the file) and a half star.
RATINGS = "2::10::3::978300500\n1::30::4::978300100\n1::20::5::978300100\n1::10::3::978300050\n2::40::4.5::978300400\n"
TEXT = {
    2: "1 10\n1 30\n1 20\n2 40\n2 10\n",
    3: "1 10 978300050\n1 30 978300100\n1 20 978300100\n2 40 978300400\n2 10 978300500\n",
    4: "1\t10\t3.0\t978300050\n1\t30\t4.0\t978300100\n1\t20\t5.0\t978300100\n2\t40\t4.5\t978300400\n"
    "2\t10\t3.0\t978300500\n",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "cache"))
    for name in ("TORCHELASTIC_RUN_ID", "NUM_GPUS", "WANDB_API_KEY", "RECPOD_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize("columns", TEXT)
@pytest.mark.parametrize("form", ["data/ml-1m/ratings.dat", "data/ml-1m.zip", "elsewhere.zip"])
def test_movielens_becomes_text_that_is_read_back(
    here: Path, columns: int, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = here / form
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("ml-1m/ratings.dat", RATINGS)
    else:
        path.write_text(RATINGS)
    given = [] if form.startswith("data/") else [f"--input={form}"]
    assert main(["convert_ml1m.py", f"--columns={columns}", *given]) == 0
    output = here / "data" / "ml-1m.txt"
    assert output.read_text() == TEXT[columns]
    assert "data/ml-1m.txt: 5 events of 2 users and 4 items" in capsys.readouterr().out
    store = dataset_store(load_dataset_spec(output))
    assert store.item_ids()[store.items - 1].tolist() == [10, 30, 20, 40, 10]
    assert store.manifest["timestamps"] == ("order" if columns == 2 else "seconds")
    assert not list(output.parent.glob(".*"))


def test_three_columns_are_the_default_and_whole_stars_stay_whole(here: Path) -> None:
    (here / "r.dat").write_text(RATINGS.replace("4.5", "4"))
    assert main(["convert_ml1m", "--input=r.dat"]) == 0
    assert (here / "data" / "ml-1m.txt").read_text() == TEXT[3]
    assert main(["convert_ml1m", "--input=r.dat", "--columns=4", "--output=out/four.txt"]) == 0
    assert (here / "out" / "four.txt").read_text().startswith("1\t10\t3\t978300050\n")


def test_the_archive_is_fetched_where_it_is_not_there(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = here / "mirror" / "ml-1m"
    mirror.mkdir(parents=True)
    with zipfile.ZipFile(mirror / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", RATINGS)
    monkeypatch.setenv("RECPOD_DATA", str(here / "mirror"))  # as the local cache
    assert main(["convert_ml1m"]) == 0, capsys.readouterr().err
    assert (here / "data" / "ml-1m.txt").read_text() == TEXT[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--columns=5"], "--columns: invalid choice: 5"),
        (["--colums=3"], "unknown flag '--colums'. did you mean '--columns'?"),
        (["--input=nowhere.dat"], "nowhere.dat: no such file"),
        (["--input=text.txt"], "text.txt: is no MovieLens file. give ratings.dat or the official zip."),
        (["--input=r.dat", "--output=r.dat/x.txt"], "r.dat/x.txt: cannot be written"),
    ],
)
def test_conversions_that_cannot_be_are_one_line(
    here: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "r.dat").write_text(RATINGS)
    (here / "text.txt").write_text(TEXT[3])
    assert main(["convert_ml1m", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("flags", [["--no_time"], []])
def test_a_time_where_the_rating_belongs_is_noticed(
    here: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "data").mkdir()
    (here / "data" / "swapped.txt").write_text("1\t10\t978300050\t3\n1\t30\t978300100\t4\n")
    assert main(["main", "--dataset=swapped", "--train_dir=t", *flags]) == 2
    assert "data/swapped.txt:1: the order looks like 'user item timestamp rating'" in capsys.readouterr().err


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert_ml1"]) == 2
    assert "unknown script 'convert_ml1'. did you mean 'convert_ml1m'?" in capsys.readouterr().err


# --- test_distributed ---


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_are_tested_for_real(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test_distributed.py", "--device=cpu"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == "2 processes, gloo on the CPU: NCCL is not tested"
    assert last.startswith("passed: 2 processes equal one: losses of 8 updates differ by ")
    assert float(last.split()[-3]) < 1e-12
    assert not list(here.iterdir())


def test_more_processes_than_gpus_or_too_few_are_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value, message in (
        ("NUM_GPUS", "two", "NUM_GPUS: 'two' is no number of processes. give 1 or more, or unset it."),
        ("NUM_GPUS", "1", "NUM_GPUS: one process alone has nobody to agree with"),
        ("TORCHELASTIC_RUN_ID", "x", "test_distributed: starts its processes itself. run it without torchrun."),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            assert main(["test_distributed"]) == 2
        assert message in capsys.readouterr().err
    assert main(["test_distributed", "--device=tpu"]) == 2


def test_a_training_that_ends_badly_says_why(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = sasrec_processes.RECIPE.replace("blocks: 1", "blocks: 0")
    monkeypatch.setattr(sasrec_processes, "RECIPE", broken)
    sasrec_processes.write_events(here / "small.csv")
    with pytest.raises(MachineError, match=r"training in 1 process\(es\) ended with code 2: .*blocks.* less than 1"):
        sasrec_processes.train(here, "cpu", 1)


def test_processes_that_differ_do_not_pass() -> None:
    one = Trained(1, [3.0, 2.0], [0.5])
    assert "differ by 5.0e-08" in report(Trained(2, [3.0, 2.0 * (1 + 5e-8)], [0.5]), one, 2)
    for other, message in (
        (Trained(2, [3.0, 2.1], [0.5]), "2 processes do not equal one: losses differ by 5.0e-02"),
        (Trained(2, [3.0, 2.0], [0.6]), "metrics by 1.0e-01"),
        (Trained(2, [3.0, float("nan")], [0.5]), "do not equal one"),
        (Trained(2, [3.0], [0.5]), "1 updates where one process made 2"),
        (Trained(1, [3.0, 2.0], [0.5]), "1 of 2 processes took part"),
    ):
        with pytest.raises(MachineError, match=message):
            report(other, one, 2)


# --- train_distributed.sh and the ways to start main_distributed ---


def events(folder: Path) -> None:
    """40 users in data/tiny.txt."""
    lines = [f"{u} {1 + (3 * u + n) % 15} {978300000 + 4000 * n + u}" for u in range(1, 41) for n in range(4 + u % 5)]
    (folder / "data").mkdir()
    (folder / "data" / "tiny.txt").write_text("\n".join(lines) + "\n")


def shell(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RECPOD_VENV": "nowhere", "RECPOD_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(SCRIPT), *arguments]
    return subprocess.run(
        command, env=environment | variables, capture_output=True, text=True, check=False, timeout=300
    )


def test_the_script_answers_and_refuses_in_one_line(here: Path) -> None:
    assert "NUM_GPUS" in shell("--help").stdout
    for arguments in ([], ["ml-1m"], ["ml-1m", "--num_epochs=3"]):
        done = shell(*arguments)
        assert done.returncode == 2 and "DATASET and TRAIN_DIR come first" in done.stderr
    events(here)
    done = shell("tiny", "t", NUM_GPUS="many")
    assert (done.returncode, done.stderr.splitlines()[-1][:45]) == (2, "error: NUM_GPUS: 'many' is no number of proce")
    done = shell("tiny", "t", "--num_epoch=3")
    assert done.returncode == 2 and "did you mean '--num_epochs'" in done.stderr


def test_the_scripts_sizes_are_said_in_its_help() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    said = {word for word in text.partition("HELP'")[2].partition("\nHELP\n")[0].split() if word.startswith("--")}
    sizes = text.partition("sizes=(")[2].partition("[[ -x")[0].replace("sizes+=(", "").replace(")", "").split()
    assert set(sizes) <= said and len(sizes) == 9
    command = parse(["main_distributed", "--dataset=d", "--train_dir=t", *sizes])
    assert (command.batch_size, command.num_epochs, command.num_heads, command.num_blocks) == (512, 200, 4, 3)
    assert (command.hidden_units, command.maxlen, command.use_amp) == (100, 100, True)


@pytest.mark.parametrize("flag", ["--local_rank=1", "--local-rank=1", "--local-rank 1"])
@pytest.mark.parametrize("script", ["main", "main_distributed"])
def test_the_rank_is_taken_in_both_spellings(flag: str, script: str) -> None:
    assert parse([script, "--dataset=d", "--train_dir=t", *flag.split()]).local_rank == 1


@pytest.mark.parametrize("flag", ["--local_rank=1", "--local-rank=1", "--local-rank 1"])
def test_the_rank_may_stand_before_the_command(flag: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where torch.distributed.launch puts it."""
    assert main([*flag.split(), "main_distributed", "--dataset=nowhere", "--train_dir=t"]) == 2
    assert "--dataset: there is no data/nowhere.txt" in capsys.readouterr().err


# --- mistakes under torchrun ---


def test_another_process_lets_the_first_one_speak(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        assert capsys.readouterr().err == ""  # nothing is said before
        waited.append(seconds)

    monkeypatch.setattr("pipelines.compat.sasrec_processes.time.sleep", sleep)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert main(["main_distributed", "--dataset=nowhere", "--train_dir=t"]) == 2
        assert capsys.readouterr().err.count("error: --dataset: there is no data/nowhere.txt") == 1
        assert len(waited) == int(rank)  # were it not ended meanwhile, it would say what it alone has met


@pytest.mark.slow  # starts real processes
@pytest.mark.timeout(200)
@pytest.mark.parametrize("flag", ["--num_epoch=3", "--lr=-1"])
def test_torchrun_s_processes_say_a_mistake_once(here: Path, flag: str) -> None:
    """torchrun itself leaves with 1 and a report beneath, as docs/sasrec-commands.md says."""
    events(here)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    words = ["pipelines.compat.sasrec", "main_distributed", "--dataset=tiny", "--train_dir=t", "--device=cpu", flag]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *words], env=environment, capture_output=True, text=True, check=False, timeout=180)
    lines = done.stderr.splitlines()
    said = [place for place, line in enumerate(lines) if line.startswith("error: ")]
    reports = [place for place, line in enumerate(lines) if "ChildFailedError" in line]
    assert done.returncode == 1 and len(said) == 1 and said < reports, done.stderr
    assert not (here / "tiny_t").exists()
