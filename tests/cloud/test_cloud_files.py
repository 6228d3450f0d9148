"""The files in configs/cloud and the commands of docs/cloud.md, loaded by SkyPilot and dstack themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cloud.conftest import ROOT, Says
from tests.cloud.test_cloud_commands import commands

SKYPILOT = "configs/cloud/skypilot.yaml"
DSTACK = "configs/cloud/dstack.yaml"
NAMED = ("--env", "REGISTRY=ghcr.io/me", "--env", "BUCKET=my-recpod")
# Making the environment is in the first test's time.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def changed(tmp_path: Path, file: str, old: str, new: str) -> str:
    """A copy of ``file`` with a mistake in it."""
    text = (ROOT / file).read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    path = tmp_path / Path(file).name
    path.write_text(text.replace(old, new), encoding="utf-8")
    return str(path)


def test_skypilot_takes_the_task(skypilot: Says) -> None:
    task = skypilot(SKYPILOT, *NAMED)
    assert (task["name"], task["nodes"]) == ("recpod", 1)
    assert task["mounts"] == {"/workspace": {"name": "my-recpod", "mode": "MOUNT_CACHED", "transfers": 1}}
    assert all(one["spot"] for one in task["resources"])
    assert {one["price"] for one in task["resources"]} == {float(task["envs"]["PRICE_PER_HOUR"])}
    assert {gpu for one in task["resources"] for gpu in one["gpus"]} == {"A100", "A100-80GB", "L40S", "H100"}


def test_skypilot_starts_again_what_was_stopped_and_saved_and_nothing_else(skypilot: Says) -> None:
    task = skypilot(SKYPILOT, *NAMED)
    assert task["strategy"] == "EagerFailoverStrategyExecutor"
    assert task["restarts"] == {"1": False, "2": False, "3": False, "75": True}


def test_skypilot_asks_for_registry_and_bucket(skypilot: Says) -> None:
    assert "REGISTRY" in skypilot(SKYPILOT, *NAMED[2:])["error"]
    assert "BUCKET" in skypilot(SKYPILOT, *NAMED[:2])["error"]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("recover_on_exit_codes: [75]", "recover_on_exit_code: [75]", "recover_on_exit_code'"),
        ("recover_on_exit_codes: [75]", "recover_on_exit_codes: [751]", "751"),
        ("use_spot: true", "use_spots: true", "use_spots"),
        ("mode: MOUNT_CACHED", "mode: CACHED", "CACHED"),
        ("strategy: EAGER_NEXT_REGION", "strategy: EAGER", "EAGER"),
        ("\nfile_mounts:", "\nfile_mount:", "file_mount'"),
    ],
)
def test_skypilot_refuses_mistakes(skypilot: Says, tmp_path: Path, old: str, new: str, named: str) -> None:
    assert named in skypilot(changed(tmp_path, SKYPILOT, old, new), *NAMED)["error"]


def test_dstack_takes_the_task(dstack: Says) -> None:
    task = dstack("-f", DSTACK, "--", "--test-ml1m", "--set", "name=two words")
    assert (task["type"], task["name"], task["spot_policy"]) == ("task", "recpod", "spot")
    assert "image.sh --test-ml1m --set 'name=two words' --processes" in task["commands"][-1]
    assert task["max_price"] == float(task["env"]["PRICE_PER_HOUR"])


def test_dstack_takes_the_page_s_several_nodes(dstack: Says, tmp_path: Path) -> None:
    text = (ROOT / DSTACK).read_text(encoding="utf-8")
    volume = "recpod-workspace-${{ dstack.node_rank }}:/workspace"
    assert volume in text  # as its comment says
    path = tmp_path / "dstack.yaml"
    path.write_text(text.replace("- recpod-workspace:/workspace", f"- {volume}").replace("nodes: 1", "nodes: 2"))
    task = dstack("-f", str(path))
    assert (task["nodes"], task["volumes"]) == (2, [{"name": volume.partition(":")[0], "path": "/workspace"}])
    fleet = changed(tmp_path, "configs/cloud/dstack-fleet.yaml", "nodes: 0..1", "nodes: 0..2\nplacement: cluster")
    answer = dstack("-f", fleet)
    assert (answer["nodes"]["max"], answer["placement"]) == (2, "cluster")


def test_dstack_submits_again_what_was_interrupted_and_nothing_else(dstack: Says) -> None:
    again = {reason for reason, retried in dstack("-f", DSTACK)["restarts"].items() if retried}
    assert again == {"failed_to_start_due_to_no_capacity", "interrupted_by_no_capacity"}


def test_dstack_s_fleet_and_volume_are_the_task_s(dstack: Says) -> None:
    task = dstack("-f", DSTACK)
    fleet = dstack("-f", "configs/cloud/dstack-fleet.yaml")
    volume = dstack("-f", "configs/cloud/dstack-volume.yaml")
    assert (fleet["type"], volume["type"]) == ("fleet", "volume")
    assert task["volumes"] == [{"name": volume["name"], "path": "/workspace"}]
    assert volume["backend"] in fleet["backends"]
    assert (fleet["spot_policy"], fleet["max_price"]) == (task["spot_policy"], task["max_price"])
    assert {key: fleet["resources"][key] for key in ("gpu", "memory", "disk")} == {
        key: task["resources"][key] for key in ("gpu", "memory", "disk")
    }
    assert fleet["nodes"] == {"min": 0, "max": task["nodes"]}


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("spot_policy: spot", "spot_policy: cheap", "spot_policy"),
        ("on_events: [no-capacity, interruption]", "on_events: [preemption]", "on_events"),
        ("recpod-workspace:/workspace", "recpod-workspace:workspace", "path must be absolute"),
        ("\nmax_price: 4", "\nmax_prize: 4", "max_prize"),
        ("${{ run.args }}", "${{ run.arguments }}", "run.arguments"),
    ],
)
def test_dstack_refuses_mistakes(dstack: Says, tmp_path: Path, old: str, new: str, named: str) -> None:
    assert named in dstack("-f", changed(tmp_path, DSTACK, old, new))["error"]


@pytest.mark.parametrize("command", commands("sky jobs launch configs"), ids=" ".join)
def test_skypilot_takes_the_page_s_commands(skypilot: Says, command: list[str]) -> None:
    task = skypilot(*command[3:])
    assert task["secrets"]["WANDB_API_KEY"] == "from-the-shell"
    assert task["envs"]["FLAGS"].startswith("--")


@pytest.mark.parametrize("command", commands("dstack apply"), ids=" ".join)
def test_dstack_takes_the_page_s_commands(dstack: Says, command: list[str]) -> None:
    answer = dstack(*command[2:])
    assert "error" not in answer, answer
    if answer["type"] == "task":
        assert answer["env"]["WANDB_API_KEY"] == "from-the-shell"


def test_the_page_names_the_versions_that_were_asked(cloud_python: Path) -> None:
    from pipelines.machine import read_pins

    page, pins = (ROOT / "docs" / "cloud.md").read_text(encoding="utf-8"), read_pins()
    assert f"SkyPilot {pins['CLOUD_SKYPILOT']}, dstack {pins['CLOUD_DSTACK']}" in page
    for package in ("skypilot", "dstack"):
        (info,) = (cloud_python.parents[1] / "lib").glob(f"python*/site-packages/{package}-*.dist-info")
        assert info.name == f"{package}-{pins[f'CLOUD_{package.upper()}']}.dist-info"
