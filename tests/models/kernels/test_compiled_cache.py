"""Kernels that an image brings are used where nobody but root could have put them there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models.kernels import compiled

ROOT = Path(__file__).resolve().parents[3]
LOAD = "from models.kernels import compiled; print(compiled.cache_folder()); import models.kernels.causal_conv.cpu"


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    folder = tmp_path / "image" / "kernels-1"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "kernel.nbc").write_bytes(b"code")
    return folder


@pytest.mark.skipif(os.getuid() != 0, reason="only root can own files as root")
def test_only_what_is_roots_alone_is_trusted(shipped: Path) -> None:
    assert compiled._of_root_alone(shipped)
    assert not compiled._of_root_alone(shipped.parent / "absent")
    for place, mode in ((shipped.parent, 0o777), (shipped, 0o775), (shipped / "deep" / "kernel.nbc", 0o666)):
        before = place.stat().st_mode
        place.chmod(mode)
        assert not compiled._of_root_alone(shipped), place
        place.chmod(before)
    os.chown(shipped / "deep", 12345, 0)
    assert not compiled._of_root_alone(shipped)


def test_an_empty_folder_is_filled_whole_and_a_filled_one_left_alone(shipped: Path, tmp_path: Path) -> None:
    mine = tmp_path / "cache" / "kernels-1"
    mine.mkdir(parents=True)
    compiled._fill(mine, shipped)
    assert (mine / "deep" / "kernel.nbc").read_bytes() == b"code"
    (mine / "deep" / "kernel.nbc").write_bytes(b"newer")
    compiled._fill(mine, shipped)
    assert (mine / "deep" / "kernel.nbc").read_bytes() == b"newer"
    assert [path.name for path in mine.parent.iterdir()] == ["kernels-1"]


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only what root compiled is trusted")
def test_kernels_beside_the_sources_are_copied_and_not_compiled_again(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    environ.pop("NUMBA_CACHE_DIR", None)

    def load(**more: str) -> dict[str, int]:
        command = [sys.executable, "-c", LOAD]
        said = subprocess.run(
            command, cwd=tmp_path, env={**environ, **more}, capture_output=True, text=True, check=True
        ).stdout
        return {path.name: path.stat().st_mtime_ns for path in Path(said.strip()).rglob("*.nb[ci]")}

    made = load()
    assert made
    subprocess.run(["chmod", "-R", "u=rwX,go=rX", str(tmp_path / "models")], check=True)
    assert load(NUMBA_CACHE_DIR=str(tmp_path / "mine")) == made  # a copy keeps its time
    subprocess.run(["chmod", "-R", "g+w", str(tmp_path / "models")], check=True)
    theirs = load(NUMBA_CACHE_DIR=str(tmp_path / "other"))
    assert theirs.keys() == made.keys() and not set(theirs.values()) & set(made.values())
