"""docs/hstu-parallelism.md: its keys exist, its commands are read."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipelines.config import RunConfig, load_config
from pipelines.config_files import parse_override
from pipelines.config_keys import valid_keys
from tests.page_commands import check_command, page_commands

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "hstu-parallelism.md").read_text(encoding="utf-8")


def test_the_keys_are_those_of_the_configuration() -> None:
    named = set(re.findall(r"`((?:embedding|parallel|loader)\.\w+)", PAGE))
    assert {"embedding.sharding", "parallel.tensor", "loader.deal"} <= named
    assert [key for key in named if key.split(".")[1] not in valid_keys(RunConfig, [key.split(".")[0]])] == []


@pytest.mark.parametrize("command", page_commands(PAGE))
def test_commands_name_verbs_keys_and_values_that_exist(command: str) -> None:
    check_command(command)
    words = shlex.split(command)
    sets = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    config = load_config("train", sets)
    assert config.name == dict(map(parse_override, sets))[("name",)]
