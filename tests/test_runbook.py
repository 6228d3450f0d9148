"""docs/runbook.md: its commands exist, its messages the code's, its tests are there; gaps are closed here."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer.exceptions

from pipelines import stages
from pipelines.config import load_config
from pipelines.errors import ConfigError, MachineError, RecPodError
from pipelines.pod import driver, flags
from pipelines.training.distributed import World
from pipelines.training.tracking import TrackingOptions, open_trackers
from tests.page_commands import ROOT, check_command, page_commands

PAGE = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
ROWS = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and "::test_" in line]
WATCHED = [command for command in page_commands(PAGE) if re.match(r"docker (logs|inspect|stop)", command)]
# Where a failure must have its row; what is refused in one line that needs no explanation has none.
POD = ("checks", "driver", "environment", "notices", "plan", "provider", "spend", "supervisor", "volume")
TRAINING = ("checkpoint", "guards", "state", "tracking_mlflow", "tracking_wandb")
COVERED = [
    f"pipelines/{folder}/{name}.py" for folder, names in (("pod", POD), ("training", TRAINING)) for name in names
]
WITHOUT_A_ROW = (
    "lacks",
    "no such data file",
    "is no name of a variable",
    "the secret is empty, or more than one word",
    "this is no RunPod pod",
    "not the name of a pod",
    "the spend ledger cannot be written",
    "is not positive",
    "is no number of seconds",
    "checkpoint format",
    "the checkpoint cannot be read",
)


def messages() -> list[str]:
    """Everything in backticks in the first column of the failures."""
    return [message for row in ROWS for message in re.findall(r"`([^`]+)`", row[0])]


def template(node: ast.expr) -> str | None:
    """A string of the code with a NUL for each value that it has at run time."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
    return None


@functools.cache
def templates() -> tuple[str, ...]:
    """All strings of the code that are no docstrings, and all lines of its shell."""
    found = []
    for folder in ("models", "pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            texts = {id(node): text for node in nodes if isinstance(node, ast.expr) and (text := template(node))}
            said = [id(node.value) for node in nodes if isinstance(node, ast.Expr)]
            found += [text for key, text in texts.items() if key not in said]
    shell = [line for path in (ROOT / "entrypoints").glob("*.sh") for line in path.read_text().splitlines()]
    return (*found, *shell)


def says(text: str, message: str) -> bool:
    """Whether ``text`` holds the fixed parts of ``message``, in order."""
    parts = [re.escape(part.strip()) for part in message.split("...") if part.strip()]
    return re.search(".*".join(parts), text, re.S) is not None


# --- the page ---


@pytest.mark.parametrize("message", messages())
def test_every_message_is_the_code_s(message: str) -> None:
    assert len(message.replace("...", "").strip()) >= 5
    assert any(says(text, message) for text in templates())


def test_a_message_that_nobody_says_is_noticed() -> None:
    assert not any(says(text, "the GPU ... is tired") for text in templates())
    assert not says("driver \0 is too old", "is too old ... driver")


@pytest.mark.parametrize("name", sorted({name for row in ROWS for name in re.findall(r"`(tests/[^`]+)`", row[-1])}))
def test_every_test_is_there(name: str) -> None:
    path, *names = name.split("::")
    body: list[ast.stmt] = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    for wanted in names:
        (found,) = [node for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == wanted]
        body = found.body
    assert isinstance(found, ast.FunctionDef)


def test_every_row_names_a_code_a_remedy_and_a_test() -> None:
    assert len(ROWS) > 50
    for row in ROWS:
        assert len(row) == 4 and re.fullmatch(r"-|as the run|\d+(, \d+)*", row[1]), row
        assert row[2].strip() and re.fullmatch(r"`tests/[\w/]+\.py(::\w+)+` \|", row[3]), row


def raised(path: Path) -> Iterator[str]:
    """What the errors of a file say, where it is written there."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        known = assigned(function)
        for node in ast.walk(function):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if isinstance(node, ast.Call) and node.args and re.fullmatch(r"\w+Error|CannotStop", called):
                first = node.args[0]
                yield from known.get(first.id, []) if isinstance(first, ast.Name) else [template(first) or ""]


def assigned(function: ast.FunctionDef) -> dict[str, list[str]]:
    """The strings that a function gives its variables."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        pairs = [(node.targets[0], node.value)]
        if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
        for name, value in pairs:
            texts = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            if isinstance(name, ast.Name):
                found.setdefault(name.id, []).extend(text for one in texts if (text := template(one)))
    return found


@pytest.mark.parametrize("path", COVERED)
def test_every_failure_has_a_row(path: str) -> None:
    rows = [message for message in messages() if len(message.replace("...", "")) >= 10]
    for text in raised(ROOT / path):
        bare = text.replace("\0", "").strip(" ;()")
        known = any(says(text, row) for row in rows) or any(part in text for part in WITHOUT_A_ROW)
        assert len(bare) < 5 or known, f"{path} says {text!r}, and the page does not"


def test_every_exit_code_of_the_front_door_is_explained() -> None:
    rows = re.findall(r"^\| ([\d]+)[ a-z]* \| ", PAGE.partition("| exit code |")[2].partition("\n\n")[0], re.M)
    shown = (ROOT / "entrypoints" / "runpod.sh").read_text(encoding="utf-8").partition("Leaves with")[2]
    assert set(re.findall(r"\b(\d+): ", shown)) <= set(rows)


@pytest.mark.parametrize("command", [command for command in page_commands(PAGE) if command not in WATCHED])
def test_every_command_is_understood(command: str) -> None:
    check_command(command.replace("RECIPE", "ml1m"))


@pytest.mark.parametrize("command", re.findall(r"`((?:recpod|\./runpod_entrypoint\.sh) [^`]+)`", PAGE))
def test_commands_in_the_text_are_understood(command: str) -> None:
    check_command(command.replace("RECIPE", "ml1m").replace("NAME", "ml1m"))


def test_what_is_watched_was_started_by_that_name() -> None:
    names = {name for command in page_commands(PAGE) for name in re.findall(r"--name (\w+)", command)}
    assert len(WATCHED) == 3 and {shlex.split(command)[-1] for command in WATCHED} == names


def test_flags_and_variables_in_the_text_exist() -> None:
    shown = (ROOT / "entrypoints" / "runpod.sh").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.S)
    inline = " ".join(re.findall(r"`([^`]+)`", prose))
    others = {"--gpus", "--shm-size", "--stop-timeout", "--user", "--network", "--read-only", "--tmpfs"}  # docker's
    others |= {"--measure"}  # recpod estimate's
    assert [flag for flag in re.findall(r"--[a-z][\w-]+", inline) if flag not in others and flag not in shown] == []
    code = "\n".join(templates())
    assert [name for name in re.findall(r"\b(?:RECPOD|WANDB|RUNPOD)_\w+", PAGE) if name not in code] == []


def test_links_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert {"gpu-matrix.md", "cloud.md", "images.md"} <= set(links)
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / "docs" / path).is_file(), link
        assert not anchor or f"\n## {anchor.capitalize()}\n" in readme, link


@pytest.mark.parametrize(
    "wrong",
    [
        "docker run --rm --gpu all recpod:cuda --quickstart",
        "docker run --rm recpod:gpu --quickstart",
        "docker run --rm recpod:cuda --quickstat",
        "docker run --rm recpod:cuda recpod prefligt",
        "recpod estimate ml1m --gpuss 2",
        "./runpod_entrypoint.sh --nodes 2",
        "docker compose -f docker/compose.yml up",
        "curl example.org",
    ],
)
def test_a_command_that_is_none_is_noticed(wrong: str) -> None:
    with pytest.raises((AssertionError, KeyError, RecPodError, typer.exceptions.TyperException)):
        check_command(wrong)


# --- failures that no other test provokes ---


def test_a_driver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "gpus", list)
    monkeypatch.setattr(driver, "has_gpu", lambda: True)
    with pytest.raises(MachineError) as refused:
        driver.check_driver(flags.parse([]), {"RECPOD_IMAGE": "cuda"})
    assert str(refused.value).startswith("GPU: there is a GPU, but nvidia-smi does not answer. restart the machine")


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(stages, "this_world", lambda: World(rank=1, size=2, local_rank=1))
    with pytest.raises(MachineError, match="--processes: process 2 has no GPU: 1 are here"):
        stages.device_of(load_config("quickstart"))


@pytest.mark.slow  # importing mlflow takes seconds
def test_an_mlflow_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    options = TrackingOptions(wandb="off", mlflow="http://127.0.0.1:9")
    with pytest.raises(ConfigError) as refused:
        open_trackers(options, run_name="n", config={}, folder=tmp_path, resume_ids={})
    assert "tracking.mlflow=http://127.0.0.1:9: MLflow cannot be used there" in str(refused.value)
    assert "start the server" in str(refused.value) and "\n" not in str(refused.value)
