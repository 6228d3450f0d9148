"""Every command of the README, dry or tiny, and the README's promises that can be checked."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.cli import main
from pipelines.config import load_config, recipes
from pipelines.pod import flags
from pipelines.pod.checks import check_names
from pipelines.run_folder import ROOT
from pipelines.training import launcher
from tests.page_commands import check_command, page_commands

README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """The lines of all bash blocks, without comments."""
    return page_commands(README)


def cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out + err


def test_the_two_commands_come_first() -> None:
    assert commands()[:2] == ["./runpod_entrypoint.sh --quickstart", "./entrypoints/test.sh"]


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("./runpod_entrypoint.sh")])
def test_front_door_commands_resolve(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor takes flags and names, and training says what it would do with its part of them."""
    monkeypatch.chdir(ROOT)
    asked = flags.parse(shlex.split(command)[1:])
    check_names(asked)
    code, out = cli(capsys, "runbook", *asked.training, "--dry-run")
    assert code == 0, out
    assert "dry run of" in out


def test_launched_commands_resolve(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = [shlex.split(line) for line in commands() if line.startswith("./entrypoints/launch.sh")]
    asked = launcher.parse(command[1:])
    assert asked.processes == 2
    code, out = cli(capsys, *asked.command, "--dry-run")
    assert code == 0 and "dry run of" in out, out


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("docker/build.sh")])
def test_builds_are_understood(command: str) -> None:
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[:2] == ["docker", "build"]


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("docker ")])
def test_container_commands_are_understood(command: str) -> None:
    """tests/containers runs their like in the image itself."""
    check_command(command)


def test_every_command_is_tested() -> None:
    known = ("./runpod_entrypoint.sh", "./entrypoints/", "docker/build.sh", "docker ", "recpod ")
    assert [command for command in commands() if not command.startswith(known)] == []


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert {"docs/runbook.md", "docs/images.md", "docs/gpu-matrix.md", "docs/cloud.md"} <= set(links)
    assert [link for link in links if not (ROOT / link).is_file()] == []


@pytest.mark.parametrize(
    "command", [f"./{name}.sh --help" for name in ("runpod_entrypoint", "entrypoints/test", "entrypoints/launch")]
)
def test_scripts_answer_before_any_set_up(command: str, tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RECPOD_VENV": str(tmp_path / "none")}
    done = subprocess.run(shlex.split(command), cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout and not (tmp_path / "none").exists()


def test_recpod_commands_run_on_a_tiny_recipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The README's verbs, in its order, on the quick start's data with a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path / "data"))
    (tmp_path / "tiny.yaml").write_text(
        f"extends: {ROOT}/configs/runs/quickstart.yaml\nname: tiny\ngates: []\n"
        "model: {hidden: 8, s5_state: 4, d_state: 4, layers: 1}\n"
        "training: {epochs: 1}\ntracking: {wandb: off}\n"
    )
    verbs = [shlex.split(command)[1:] for command in commands() if command.startswith("recpod")]
    assert {verb[0] for verb in verbs} >= {
        "preflight",
        "estimate",
        "fetch",
        "prepare",
        "train",
        "evaluate",
        "report",
        "run",
        "config",
    }
    for verb in verbs:
        arguments = ["tiny.yaml" if word in ("ml1m", "quickstart") else word.replace("ml1m", "tiny") for word in verb]
        code, out = cli(capsys, *arguments)
        assert code == 0, (verb, out)


def test_the_console_script_is_the_module() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "pipelines", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for verb in (
        "runbook",
        "run",
        "preflight",
        "fetch",
        "prepare",
        "train",
        "evaluate",
        "report",
        "estimate",
        "config",
    ):
        assert verb in shown.stdout


def test_the_yaml_examples_load(tmp_path: Path) -> None:
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", README, re.S)):
        path = ROOT / f".readme-example-{number}.yaml"
        path.write_text(block)
        try:
            config = load_config(path)
        finally:
            path.unlink()
        assert config.name == yaml.safe_load(block)["name"]


def test_the_recipe_table_says_what_the_recipes_say() -> None:
    rows = {
        name: line
        for line in README.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([\w-]+)`", line.split("|")[1])
    }
    assert set(rows) == set(recipes()) - {"train"}
    for name, row in rows.items():
        for gate in load_config(name).gates:
            number = f"{gate.above:g}".lstrip("0") if gate.above is not None else f"{gate.times_popularity:g}"
            assert number in row or "as `ml20m`" in row, (name, gate)
