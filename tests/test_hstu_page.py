"""docs/hstu.md: its table of fields is the translation's own, its commands run."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipelines.compat.hstu.__main__ import main
from pipelines.compat.hstu.fates import FATES
from pipelines.compat.hstu.translate import load_gin
from tests.page_commands import check_command, page_commands
from tests.pipelines.compat.hstu.test_runs import check_run, small

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "hstu.md"
KINDS = {"key": "key", "data": "data", "same": "not used", "refused": "refused"}
PYTHON = ("python", "-m", "pipelines.compat.hstu")
TORCHRUN = ("torchrun", "--nproc_per_node", "2", "-m", "pipelines.compat.hstu")


def table() -> str:
    """The table of the page."""
    rows = [f"| `{name}` | {KINDS[fate.kind]} | {fate.text} |" for name, fate in FATES.items()]
    return "\n".join(["| Field | Is | What becomes of it |", "| --- | --- | --- |", *rows])


def commands() -> list[list[str]]:
    return [shlex.split(command) for command in page_commands(PAGE.read_text(encoding="utf-8"))]


def test_the_table_of_fields_is_the_translations() -> None:
    found = re.search(r"<!-- fields -->\n(.*?)\n<!-- /fields -->", PAGE.read_text(encoding="utf-8"), re.S)
    assert found is not None and found[1] == table()


def test_the_other_programs_take_their_commands(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path))
    others = [words for words in commands() if tuple(words[:3]) != PYTHON and tuple(words[:5]) != TORCHRUN]
    assert len(others) == 3
    for words in others:
        check_command(shlex.join(words))
        path = next(word for word in words if word.endswith(".gin"))
        sets = [word for before, word in pairwise(words) if before == "--set"]
        assert load_gin(ROOT / path, sets).recipe == Path(path).stem


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_scripts_commands_run(tmp_path: Path, monkeypatch: Any) -> None:
    scripts = [words[3:] for words in commands() if tuple(words[:3]) == PYTHON]
    scripts += [words[5:] for words in commands() if tuple(words[:5]) == TORCHRUN]
    assert {Path(words[-1]) for words in scripts} == {
        path.relative_to(ROOT) for path in (ROOT / "configs" / "gin").glob("*.gin")
    }
    for number, (script, flag, path) in enumerate(scripts):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("RECPOD_DATA", str(folder / "data"))
        monkeypatch.setenv("WANDB_MODE", "disabled")
        assert main([script, flag, str(small(ROOT / path, folder))]) == 0
        check_run(folder / "runs" / Path(path).stem, 4)
