"""What configs/cloud runs on a machine: its shell is run here, with a stand-in for docker and for the image."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.pod.environment import OWN_SECRETS, TRAINING_SECRETS
from pipelines.pod.flags import parse
from tests.cloud.conftest import ROOT

FOLDER = ROOT / "configs" / "cloud"
PAGE = (ROOT / "docs" / "cloud.md").read_text(encoding="utf-8")
SKYPILOT: dict[str, Any] = yaml.safe_load((FOLDER / "skypilot.yaml").read_text(encoding="utf-8"))
DSTACK: dict[str, Any] = yaml.safe_load((FOLDER / "dstack.yaml").read_text(encoding="utf-8"))
IMAGE_ENTRY = "/opt/recpod/entrypoints/image.sh"
# Says how it was called, in a file, and leaves with the code that it is told to.
STAND_IN = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLED"], "w") as file:
    json.dump({{"arguments": sys.argv[1:], "environment": dict(os.environ), "process": os.getpid()}}, file)
sys.exit(int(os.environ.get("LEAVE", "0")))
"""


def commands(beginning: str) -> list[list[str]]:
    """The page's commands that begin so, as words."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(beginning)]


def run_shell(command: list[str], folder: Path, **variables: str) -> tuple[int, dict[str, Any]]:
    """Run a command line with nothing of this environment but PATH; exit code, and how the stand-in was called."""
    called = folder / "called.json"
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), "CALLED": str(called)} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert called.exists(), done.stderr
    return done.returncode, json.loads(called.read_text())


def stand_in(path: Path) -> Path:
    path.write_text(STAND_IN)
    path.chmod(0o755)
    return path


def on_skypilot(tmp_path: Path, nodes: list[str], rank: int = 0, **changes: str) -> tuple[int, dict[str, Any]]:
    """The task's ``run`` on a machine as SkyPilot sets it up."""
    stand_in(tmp_path / "docker")
    envs = {name: value or "mine" for name, value in SKYPILOT["envs"].items()} | SKYPILOT["secrets"]
    place = {"SKYPILOT_NODE_IPS": "\n".join(nodes), "SKYPILOT_NUM_NODES": str(len(nodes))}
    place["SKYPILOT_NODE_RANK"] = str(rank)
    return run_shell(["bash", "-c", SKYPILOT["run"]], tmp_path, **(envs | place | changes))


def on_dstack(
    tmp_path: Path, flags: str = "--test-ml1m", nodes: int = 1, rank: int = 0, **changes: str
) -> tuple[int, dict[str, Any]]:
    """The task's commands in a container as dstack starts them: joined by &&, by sh."""
    entry = stand_in(tmp_path / "image.sh")
    joined = " && ".join(DSTACK["commands"]).replace("${{ run.args }}", flags).replace(IMAGE_ENTRY, str(entry))
    envs = dict(line.split("=", 1) for line in DSTACK["env"])
    place = {"DSTACK_NODES_NUM": str(nodes), "DSTACK_NODE_RANK": str(rank), "DSTACK_MASTER_NODE_IP": "10.0.0.1"}
    return run_shell(["sh", "-c", joined], tmp_path, **(envs | place | changes))


def split_docker(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    """docker's own options, the image, and what the image is given."""
    at = next(index for index, word in enumerate(arguments) if word.startswith("mine/"))
    return arguments[:at], arguments[at], arguments[at + 1 :]


def test_skypilot_starts_the_image_on_the_volume(tmp_path: Path) -> None:
    code, call = on_skypilot(tmp_path, ["10.0.0.1"])
    options, image, given = split_docker(call["arguments"])
    assert (code, options[0], image) == (0, "run", "mine/recpod:cuda")
    assert options[options.index("--volume") + 1] == "/workspace:/workspace"
    assert set(SKYPILOT["file_mounts"]) == {"/workspace"}
    assert {"--rm", "--read-only", "--gpus"} <= set(options)
    flags = parse(given)
    assert flags.recipe == "quickstart"
    assert (flags.max_cost, flags.price_per_hour) == (20.0, 4.0)
    assert flags.values["--nodes"] == "1" and flags.values["--processes"] == "auto"


def test_skypilot_s_nodes_find_each_other(tmp_path: Path) -> None:
    nodes = ["10.0.0.1", "10.0.0.2"]
    for rank in (0, 1):
        _, call = on_skypilot(tmp_path, nodes, rank, FLAGS="--test-ml1m --set training.epochs=1")
        flags = parse(split_docker(call["arguments"])[2])
        assert (flags.recipe, flags.sets) == ("ml1m", {"training.epochs": "1"})
        assert (flags.values["--nodes"], flags.values["--node-rank"]) == ("2", str(rank))
        assert flags.values["--rendezvous"] == "10.0.0.1:29500"
        assert flags.price_per_hour == 8.0  # both machines are paid for
        options = split_docker(call["arguments"])[0]
        assert options[options.index("--network") + 1] == "host"
        # One writer: the ledger and the runs on the bucket are the first node's.
        place = options[options.index("--volume") + 1].removesuffix(":/workspace")
        assert place == ("/workspace" if rank == 0 else f"{tmp_path}/recpod")
    assert (tmp_path / "recpod").is_dir()


@pytest.mark.parametrize("code", [0, 2, 3, 75])
def test_exit_codes_reach_the_scheduler(tmp_path: Path, code: int) -> None:
    assert on_skypilot(tmp_path, ["10.0.0.1"], LEAVE=str(code))[0] == code
    assert on_dstack(tmp_path, LEAVE=str(code))[0] == code


def test_secrets_are_handed_over_by_name_and_only_where_there_are_any(tmp_path: Path) -> None:
    _, call = on_skypilot(tmp_path, ["10.0.0.1"], WANDB_API_KEY="canary")
    options = split_docker(call["arguments"])[0]
    assert options.count("--env") == 1 and options[options.index("--env") + 1] == "WANDB_API_KEY"
    assert not any("canary" in word for word in call["arguments"])
    assert call["environment"]["WANDB_API_KEY"] == "canary"  # where docker takes it from
    _, call = on_dstack(tmp_path, WANDB_API_KEY="canary")
    assert call["environment"]["WANDB_API_KEY"] == "canary" and "RECPOD_WEBHOOK" not in call["environment"]
    assert not any("canary" in word for word in call["arguments"])


def test_secrets_are_those_that_a_pod_reads() -> None:
    known = {*TRAINING_SECRETS, *OWN_SECRETS}
    assert set(SKYPILOT["secrets"]) == {"WANDB_API_KEY", "RECPOD_WEBHOOK"} <= known
    assert {line.partition("=")[0] for line in DSTACK["env"]} == {*SKYPILOT["secrets"], "MAX_COST", "PRICE_PER_HOUR"}
    assert not any(SKYPILOT["secrets"].values())


def test_dstack_starts_the_front_door(tmp_path: Path) -> None:
    _, call = on_dstack(tmp_path, "--test-ml20m --max-hours 9", nodes=2, rank=1)
    flags = parse(call["arguments"])
    assert (flags.recipe, flags.values["--max-hours"]) == ("ml20m", "9")
    assert (flags.values["--nodes"], flags.values["--node-rank"]) == ("2", "1")
    assert flags.values["--rendezvous"] == "10.0.0.1:29500"
    assert (flags.max_cost, flags.price_per_hour) == (20.0, 8.0)
    assert parse(on_dstack(tmp_path, "")[1]["arguments"]).recipe == "quickstart"


def test_dstack_interrupts_the_supervisor_and_not_a_shell_above_it(tmp_path: Path) -> None:
    """dstack signals the one process that it started: that must be ours."""
    entry = stand_in(tmp_path / "image.sh")
    joined = " && ".join(DSTACK["commands"]).replace("${{ run.args }}", "").replace(IMAGE_ENTRY, str(entry))
    names = {line.partition("=")[0]: "1" for line in DSTACK["env"]}
    place = {
        "DSTACK_NODES_NUM": "1",
        "DSTACK_NODE_RANK": "0",
        "DSTACK_MASTER_NODE_IP": "h",
        "CALLED": str(tmp_path / "c"),
    }
    with subprocess.Popen(["sh", "-c", joined], env={"PATH": os.environ["PATH"]} | names | place) as process:
        assert process.wait(timeout=30) == 0
    assert json.loads((tmp_path / "c").read_text())["process"] == process.pid


def test_the_front_door_knows_every_flag() -> None:
    text = SKYPILOT["run"].partition('"$REGISTRY/recpod:cuda"')[2] + DSTACK["commands"][-1] + SKYPILOT["envs"]["FLAGS"]
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    known = subprocess.run(
        [str(ROOT / "entrypoints" / "runpod.sh"), "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert len(used) >= 8
    assert {flag for flag in used if not re.search(rf"^\s+{flag}\b", known, re.M)} == set()


def test_the_image_s_entry_point_is_the_one_named() -> None:
    docker = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert (ROOT / "entrypoints" / "image.sh").is_file()
    assert docker.count(f'"{IMAGE_ENTRY}"]') == docker.count("ENTRYPOINT") > 0
    assert IMAGE_ENTRY in DSTACK["commands"][-1]


def test_image_and_gpus_are_in_the_matrix() -> None:
    matrix = json.loads((ROOT / "docker" / "gpu-matrix.json").read_text(encoding="utf-8"))
    tags = {f"recpod:{image['tag']}": image for image in matrix["images"]}
    named = set(re.findall(r"recpod:[\w.-]+", SKYPILOT["run"] + DSTACK["image"]))
    assert named == {"recpod:cuda"} and named <= tags.keys()
    gpus = {name: gpu for gpu in matrix["gpus"] for name in (gpu["name"], *gpu["aliases"])}
    for name in {*SKYPILOT["resources"]["accelerators"], *DSTACK["resources"]["gpu"]["name"]}:
        gpu = gpus[name.replace("-80GB", " 80GB")]
        assert gpu["capability"] in tags["recpod:cuda"]["capabilities"], name


def test_both_files_ask_for_the_same() -> None:
    assert SKYPILOT["resources"]["max_hourly_cost"] == DSTACK["max_price"]
    cost = {line for line in DSTACK["env"] if "=" in line and line.split("=")[1]}
    assert cost == {f"{name}={SKYPILOT['envs'][name]}" for name in ("MAX_COST", "PRICE_PER_HOUR")}
    tail = re.compile(r"--processes auto .*", re.S)
    mine, theirs = (" ".join(tail.findall(text)[0].split()) for text in (SKYPILOT["run"], DSTACK["commands"][-1]))
    for old, new in (
        ("SKYPILOT_NUM_NODES", "DSTACK_NODES_NUM"),
        ("SKYPILOT_", "DSTACK_"),
        ("$first:", "$DSTACK_MASTER_NODE_IP:"),
    ):
        mine = mine.replace(old, new)
    assert mine.replace("\\ ", "") == theirs


def test_the_page_s_commands_are_real() -> None:
    assert len(commands("sky jobs launch")) == 1 and len(commands("dstack apply")) == 3
    for words in [*commands("sky"), *commands("dstack"), *commands("docker")]:
        files = [word for word in words if word.startswith(("configs/", "docker/"))]
        assert all((ROOT / file).is_file() for file in files), words
    (launch,) = commands("sky jobs launch")
    given = dict(word.split("=", 1) for word in launch if re.match(r"[A-Z_]+=", word))
    assert given.keys() <= SKYPILOT["envs"].keys() and {"REGISTRY", "BUCKET"} <= given.keys()
    assert parse(given["FLAGS"].split()).recipe == "ml1m"
    (apply,) = (words for words in commands("dstack apply") if "--" in words)
    assert parse(apply[apply.index("--") + 1 :]).recipe == "ml1m"
    (build,) = commands("docker/build.sh")
    dry = subprocess.run([*build, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert DSTACK["image"] in dry.splitlines() and "cuda" in dry.splitlines()
    assert commands("docker push") == [["docker", "push", DSTACK["image"]]]


def test_the_shell_is_clean(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(f"#!/usr/bin/env bash\n{SKYPILOT['run']}")
    names = [*SKYPILOT["envs"], "SKYPILOT_NODE_IPS", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK"]
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(checker), str(script)], capture_output=True, text=True, check=False)
    problems = re.findall(r"SC\d+ .*", done.stdout)
    assert [line for line in problems if not any(name in line for name in names)] == []
