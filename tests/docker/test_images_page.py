"""docs/images.md says what is so: its commands, files, options, settings and labels exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from pipelines.machine import read_pins
from tests.docker.conftest import ROOT

PAGE = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)).replace("\\\n", " ")


def commands(start: str) -> list[list[str]]:
    """Words of each command of the page that begins so."""
    return [shlex.split(line) for line in BLOCKS.splitlines() if line.startswith(start)]


def helped(script: str) -> str:
    return subprocess.run([str(ROOT / script), "--help"], capture_output=True, text=True, check=True).stdout


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


def front_door_flags(words: list[str], image: int) -> set[str]:
    """Options after the image's name, which the front door gets when the first word is one."""
    rest = words[image + 1 :]
    return options(" ".join(rest)) if rest and rest[0].startswith("-") else set()


@pytest.mark.parametrize("words", commands("docker/build.sh"), ids=" ".join)
def test_builds_are_understood(words: list[str], tmp_path: Path) -> None:
    """Each build of the page, dry: the wheel folder is made, nothing else."""
    (tmp_path / "wheels").mkdir()
    done = subprocess.run(
        [str(ROOT / words[0]), "--dry-run", *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["docker", "build"]


def test_every_option_of_the_build_in_the_text_exists() -> None:
    section = PAGE.partition("## Build")[2].partition("## Run")[0]
    ours = options(" ".join(re.findall(r"`(--[a-z][^`]*)`", section)))
    assert {"--base", "--ca", "--wheels", "--kernels", "--pip-settings"} <= ours
    assert ours <= options(helped("docker/build.sh"))
    for how in ("none", "prebuilt", "source"):
        assert how in helped("docker/build.sh") and f"`{how}`" in section.replace("--kernels ", "")


@pytest.mark.parametrize("words", commands("docker run"), ids=" ".join)
def test_what_is_run_exists(words: list[str]) -> None:
    image = next(place for place, word in enumerate(words) if word.startswith("recpod:"))
    assert words[image].removeprefix("recpod:") in re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, flags=re.MULTILINE)
    assert front_door_flags(words, image) <= options(helped("runpod_entrypoint.sh"))


@pytest.mark.parametrize("words", commands("docker compose"), ids=" ".join)
def test_compose_commands_name_files_and_flags_that_exist(words: list[str]) -> None:
    files = [words[place + 1] for place, word in enumerate(words) if word == "-f"]
    assert files and all((ROOT / file).is_file() for file in files)
    if "train" in words:
        assert front_door_flags(words, words.index("train")) <= options(helped("runpod_entrypoint.sh"))


def test_every_file_that_is_named_is_there() -> None:
    named = set(re.findall(r"\b((?:docker|tests|docs)/[\w./-]*\w)", PAGE))
    assert len(named) > 8
    assert [path for path in named if not (ROOT / path).exists()] == []
    for page in re.findall(r"\]\(([\w.-]+\.md)\)", PAGE):
        assert (ROOT / "docs" / page).is_file()


def test_labels_and_settings_are_those_of_the_dockerfile() -> None:
    labels = set(re.findall(r"`((?:org\.opencontainers|recpod)\.[\w.]+)`", PAGE))
    there = set(re.findall(r"((?:org\.opencontainers|recpod)\.[\w.]+)=", DOCKERFILE))
    assert labels | {"org.opencontainers.image.title"} == there
    for line in ("USER 1000:0", "WORKDIR /workspace", "dumb-init", '"recpod", "preflight", "--fast"', "HOME=/tmp"):
        assert line in DOCKERFILE, f"the page says otherwise: {line}"
    for stage, locks in (("cpu", ("torch-cpu", "cpu", "image")), ("cuda", ("cuda", "image"))):
        (copied,) = re.findall(rf"^COPY (docker/locks/{'cpu' if stage == 'cpu' else 'cuda'}\.txt.*)$", DOCKERFILE, re.M)
        assert all(f"docker/locks/{name}.txt" in copied for name in locks)


def test_pins_that_are_named_exist() -> None:
    pins = read_pins()
    named = set(re.findall(r"`((?:BASE_IMAGE|KERNEL)_\w+)`", PAGE))
    assert named and named <= pins.keys()
    assert pins["BASE_IMAGE_CPU"].startswith("python:3.11") and "ubuntu24.04" in pins["BASE_IMAGE_CUDA"]


def test_the_grace_period_is_the_front_door_s() -> None:
    assert "RECPOD_GRACE_SECONDS" in helped("runpod_entrypoint.sh") and "7 in a container" in helped(
        "runpod_entrypoint.sh"
    )
    assert "`RECPOD_GRACE_SECONDS` (7)" in PAGE
