"""One process a folder, files whole or absent, nothing deleted."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import RunError
from pipelines.run_folder import ROOT, RunFolder, code_digest, commit, read_json, write_json

HOLD = """
import sys, time
from pathlib import Path
from pipelines.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_cannot_use_one_run(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with (
        pytest.raises(RunError, match=rf"another process is using this run \(pid {holder.pid} on .+\)"),
        RunFolder(tmp_path).lock(),
    ):
        pass
    holder.kill()
    holder.wait()
    with RunFolder(tmp_path).lock():  # a dead process holds nothing
        pass


def test_setting_aside_keeps_everything(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.set_aside() is None
    for number in (1, 2):
        folder.path.mkdir()
        folder.metrics.write_text(str(number))
        assert folder.set_aside() == tmp_path / f"run-before-{number}"
    assert (tmp_path / "run-before-1" / "metrics.json").read_text() == "1"


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert read_json(tmp_path / "absent.json") == {}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RunError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"), RunFolder(tmp_path / "file" / "run").lock():
        pass


def test_code_digest_and_commit_are_stable() -> None:
    assert code_digest() == code_digest() and len(code_digest()) == 64
    assert commit() == commit()
