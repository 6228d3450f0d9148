"""The commands that the pages show, read as the programs they call would read them; nothing is run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import typer

from pipelines import cli
from pipelines.pod.flags import parse as parse_front_door
from pipelines.training.launcher import parse as parse_launcher

ROOT = Path(__file__).resolve().parents[1]
# Options of `docker run` that the pages use, and how many words follow each.
WITH_A_VALUE = ("--gpus", "--shm-size", "--stop-timeout", "-v", "-e", "--name", "--user", "--tmpfs", "--network")
DOCKER_RUN = {**dict.fromkeys(("--rm", "-d", "-it", "--read-only"), 0), **dict.fromkeys(WITH_A_VALUE, 1)}


def page_commands(page: str) -> list[str]:
    """The lines of all bash blocks of ``page``, without comments, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", page, re.S)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [" ".join(line.split()) for line in lines if line and not line.startswith("#")]


def check_front_door(words: list[str]) -> None:
    """Arguments of ./runpod_entrypoint.sh: its own parser takes them, its help names them."""
    parse_front_door(words)
    shown = (ROOT / "entrypoints" / "runpod.sh").read_text(encoding="utf-8")
    assert all(re.search(rf"^  {word.partition('=')[0]}\b", shown, re.M) for word in words if word.startswith("--")), (
        words
    )


def check_recpod(words: list[str]) -> None:
    """Arguments of ``recpod``: verb and options exist, their values are of the right kind."""
    command: Any = typer.main.get_command(cli.app)
    context = command.make_context("recpod", list(words))
    while hasattr(command, "commands"):
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, words, parent=context)


def check_docker_run(words: list[str]) -> None:
    """``docker run ...``: options with their values, an image of ours, flags of the front door or a command inside."""
    left = words[2:]
    while left[0].startswith("-"):
        left = left[1 + DOCKER_RUN[left[0]] :]
    image, *inside = left
    stages = re.findall(r"^FROM .* AS (\w+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.M)
    assert image.removeprefix("recpod:") in stages, image
    if not inside or inside[0].startswith("-"):
        check_front_door(inside)
    elif inside[0] == "recpod":
        check_recpod(inside[1:])
    else:
        assert inside == ["bash"], inside


def check_compose(words: list[str]) -> None:
    """``docker compose -f FILE ... up`` or ``run --rm train FLAGS``: files are there, services and flags exist."""
    words = words[2:]
    files: list[Path] = []
    while words[0] == "-f":
        files, words = [*files, ROOT / words[1]], words[2:]
    assert files and all(file.is_file() for file in files), files
    if words != ["up"]:
        assert words[:3] == ["run", "--rm", "train"] and "\n  train:\n" in files[0].read_text(encoding="utf-8"), words
        check_front_door(words[3:])


def check_launcher(words: list[str]) -> None:
    """Arguments of entrypoints/launch.sh and of the verb behind ``--``."""
    check_recpod(parse_launcher(words).command)


def check_command(command: str) -> None:
    """Any command of a page but docker/build.sh and entrypoints/test.sh, which have dry runs of their own."""
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[0] == "./runpod_entrypoint.sh":
        check_front_door(words[1:])
    elif words[0] == "./entrypoints/launch.sh":
        check_launcher(words[1:])
    elif words[0] == "recpod":
        check_recpod(words[1:])
    elif words[:2] == ["docker", "run"]:
        check_docker_run(words)
    elif words[:2] == ["docker", "compose"]:
        check_compose(words)
    else:
        raise AssertionError(f"nobody reads this command: {command}")
