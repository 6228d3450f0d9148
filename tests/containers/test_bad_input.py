"""What goes wrong before any money is spent: one line with the remedy, exit code 2."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.containers.conftest import Start, finish, wait_for

MISTAKE = 2


def one_line(said: str) -> str:
    """The one line that names the mistake."""
    assert "Traceback" not in said, said
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, said
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        (["--quickstart"], {"environment": {"RECPOD_IMAGE": "cuda"}}, ["GPU", "--gpus all", "image tag 'cpu'"]),
        (["--quickstat"], {}, ["unknown flag '--quickstat'", "--quickstart"]),
        (["quickstart"], {}, ["'quickstart'", "recpod run"]),
        (["--config", "nowhere.yaml"], {}, ["nowhere.yaml"]),
        (["--model", "ss5rec"], {}, ["ss5rec", "ss4rec"]),
        (["--test-ml1m", "--no-wandb"], {}, ["data source", "RECPOD_MIRROR"]),
        (["--quickstart"], {"tmpfs": {"/tmp": "", "/workspace": "size=2m"}}, ["GB free", "larger volume"]),
        (["--quickstart"], {"tmpfs": {}}, ["/tmp", "--tmpfs"]),
    ],
    ids=[
        "no-gpu",
        "unknown-flag",
        "unknown-command",
        "no-recipe",
        "unknown-model",
        "no-network",
        "volume-full",
        "no-scratch",
    ],
)
def test_a_mistake_is_one_line_with_a_remedy(
    start: Start, arguments: list[str], options: dict[str, Any], expected: list[str]
) -> None:
    options.setdefault("tmpfs", {"/tmp": "", "/workspace": "mode=1777"})
    begin = time.monotonic()
    code, said = finish(start(*arguments, **options), seconds=60)
    assert code == MISTAKE, said
    line = one_line(said)
    assert all(part in line for part in expected), line
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("mode", ["ro", "rw"], ids=["read-only", "of-somebody-else"])
def test_a_volume_that_cannot_be_written(start: Start, tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o755)
    volumes = {str(folder): {"bind": "/workspace", "mode": mode}}
    options = {"volumes": volumes, "user": "54321:54321"}
    code, said = finish(start("--quickstart", **options), seconds=60)
    assert code == MISTAKE, said
    assert "cannot be written" in one_line(said)
    assert list(folder.iterdir()) == []


def test_a_dry_run_writes_nothing(start: Start, volume: Path) -> None:
    code, said = finish(start("--quickstart", "--dry-run", volume=volume))
    assert (code, "nothing is fetched" in said) == (0, True), said
    assert not (volume / "runs").exists()


# --- health ---

EVERY_SECOND = {
    "interval": 10**9,
    "timeout": 10 * 10**9,
    "start_period": 10**6,
    "retries": 1,
}  # nanoseconds; 0: the image's


@pytest.mark.parametrize(("environment", "expected"), [({}, "healthy"), ({"RECPOD_IMAGE": "cuda"}, "unhealthy")])
def test_health(start: Start, volume: Path, environment: dict[str, str], expected: str) -> None:
    container = start("sleep", "120", volume=volume, environment=environment, healthcheck=EVERY_SECOND)

    def settled() -> bool:
        container.reload()
        return container.attrs["State"]["Health"]["Status"] != "starting"

    wait_for(settled, "verdict on health", seconds=60)
    health = container.attrs["State"]["Health"]
    assert health["Status"] == expected, health["Log"]
    if expected == "unhealthy":
        assert "GPU" in health["Log"][-1]["Output"]


def test_a_session_without_a_sign_of_life_is_unhealthy(start: Start, volume: Path) -> None:
    container = start("sleep", "120", volume=volume)
    code, output = container.exec_run("recpod preflight --fast")
    assert code == 0, output
    plant = (
        "import os; from pipelines.pod import heartbeat as h; h.folder().mkdir(mode=0o700); "
        "p = h.folder() / 'heartbeat-1'; p.touch(); os.utime(p, (1, 1))"
    )
    assert container.exec_run(["python", "-c", plant]).exit_code == 0
    code, output = container.exec_run("recpod preflight --fast")
    assert (code, b"session 1" in output) == (MISTAKE, True), output
