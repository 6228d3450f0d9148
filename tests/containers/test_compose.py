"""docker/compose.yaml, up for real: training is tracked by the MLflow server, the viewer shows the report."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.docker.compose import compose
from tests.docker.conftest import brought
from tests.docker.registries import free_port

TINY = ["--quickstart", "--set", "training.epochs=1"]
UID = 12345
Run = Callable[..., CompletedProcess]


@pytest.fixture
def settings(image: str, tmp_path: Path) -> dict[str, str]:
    """A folder of its own as the volume, free ports, and a user that the image has never heard of."""
    store = tmp_path / "store"
    store.mkdir(mode=0o777)
    store.chmod(0o777)
    return {
        "RECPOD_TAG": image,
        "RECPOD_STORE": str(store),
        "RECPOD_USER": f"{UID}:{UID}",
        "RECPOD_VOLUME_NAME": f"recpod-test-{uuid.uuid4().hex[:8]}",
        "RECPOD_MLFLOW_PORT": str(free_port()),
        "RECPOD_VIEWER_PORT": str(free_port()),
    }


@pytest.fixture
def run(settings: dict[str, str]) -> Iterator[Run]:
    """Calls the compose program with arguments; everything that came up goes down again."""
    program = [brought("docker-compose")]
    project = ["--project-name", settings["RECPOD_VOLUME_NAME"]]

    def call(*arguments: str) -> CompletedProcess:
        return compose(program, *project, *arguments, settings=settings, timeout=600)

    yield call
    call("down", "--volumes", "--timeout", "5")  # the volume is the test's own, by its name


def ask(port: str, path: str, body: dict | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    given = {"Content-Type": "application/json"} | (headers or {})
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, given)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read()


def wait_until_healthy(engine: Any, names: set[str], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while True:
        states = {name: engine.containers.get(name).attrs["State"]["Health"]["Status"] for name in names}
        if set(states.values()) == {"healthy"}:
            return
        logs = "".join(engine.containers.get(name).logs(tail=20).decode() for name in names)
        assert time.monotonic() < end and "unhealthy" not in states.values(), f"{states}\n{logs}"
        time.sleep(1)


def test_training_is_tracked_and_its_report_served(engine: Any, run: Run, settings: dict[str, str]) -> None:
    up = run("up", "-d", "mlflow", "viewer")
    assert up.returncode == 0, up.stderr
    listed = engine.containers.list(filters={"name": settings["RECPOD_VOLUME_NAME"]})
    names = {container.name for container in listed}
    assert len(names) == 2
    wait_until_healthy(engine, names)

    address = "tracking.mlflow=http://mlflow:5000"
    train = run("run", "--rm", "train", *TINY, "--set", address)
    # 3: one epoch does not reach the quick start's gate.
    assert train.returncode in (0, 3), train.stdout[-2000:] + train.stderr[-2000:]

    port = settings["RECPOD_MLFLOW_PORT"]
    experiments = json.loads(ask(port, "/api/2.0/mlflow/experiments/search?max_results=9")[1])["experiments"]
    wanted = {"experiment_ids": [row["experiment_id"] for row in experiments]}
    (found,) = json.loads(ask(port, "/api/2.0/mlflow/runs/search", wanted)[1])["runs"]
    assert found["info"]["status"] == "FINISHED"
    tracked = {row["key"]: row["value"] for row in found["data"]["metrics"]}
    store = Path(settings["RECPOD_STORE"])
    events = [json.loads(line) for line in (store / "runs/quickstart/events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["kind"] == "train"]
    assert tracked["train/loss"] == pytest.approx(losses[-1])

    status, page = ask(settings["RECPOD_VIEWER_PORT"], "/quickstart/report.html")
    assert status == 200 and page == (store / "runs/quickstart/report.html").read_bytes()
    assert ask(port, "/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": "evil.example"})[0] == 403

    made = [path for path in store.rglob("*") if not path.is_symlink()]
    assert {path.stat().st_uid for path in made} == {UID}
    for container in listed:
        assert container.exec_run("touch /etc/x").exit_code != 0
        assert container.exec_run("id -u").output.decode().strip() == str(UID)
    viewer = next(container for container in listed if "viewer" in container.name)
    assert viewer.exec_run("touch /workspace/runs/x").exit_code != 0
