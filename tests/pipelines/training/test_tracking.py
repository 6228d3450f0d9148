"""W&B and MLflow are really used: offline run folders are read back, the MLflow database is queried by its client."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipelines.errors import ConfigError, MachineError
from pipelines.training import tracking
from pipelines.training.events import read_events
from pipelines.training.tracking import (
    PatientTracker,
    Status,
    TrackingOptions,
    open_trackers,
    require,
    wandb_mode,
    without_secrets,
)

CONFIG = {"name": "tiny", "training": {"epochs": 2, "select": "NDCG@10"}, "ks": [1, 10]}
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # a .netrc of the developer's would count as a key for W&B


def offline_runs(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))


class TestWandb:
    options = TrackingOptions(wandb="offline", project="check")

    def test_an_offline_run_can_be_read_back_and_goes_on_under_its_id(self, tmp_path: Path) -> None:
        from tests.pipelines.training.wandb_log import read_offline_run

        tracker = open_trackers(self.options, run_name="tiny", config=CONFIG, folder=tmp_path, resume_ids={})
        tracker.log(10, {"train/loss": 2.5})
        tracker.log(20, {"train/loss": 2.25, "valid/HR@10": 0.125})
        ids = tracker.run_ids
        tracker.finish("interrupted")

        (path,) = offline_runs(tmp_path)
        run = read_offline_run(path)
        assert run.run_id == ids["wandb"] and run.name == "tiny" and run.project == "check"
        assert run.config["training"] == CONFIG["training"] and run.config["ks"] == [1, 10]
        assert [(row["global_step"], row["train/loss"]) for row in run.history] == [(10, 2.5), (20, 2.25)]
        assert run.history[1]["valid/HR@10"] == 0.125
        assert run.summary["status"] == "interrupted" and run.exit_code == 75

        again = open_trackers(self.options, run_name="tiny", config=CONFIG, folder=tmp_path, resume_ids=ids)
        assert again.run_ids == ids
        again.log(15, {"train/loss": 2.4})  # an earlier step: the checkpoint lay before the last log
        again.summary({"test/HR@10": 0.5})
        again.finish("finished")
        (last,) = [read_offline_run(other) for other in offline_runs(tmp_path) if other != path]
        assert last.exit_code == 0
        assert last.run_id == ids["wandb"] and last.history[0]["global_step"] == 15
        assert last.summary["test/HR@10"] == 0.5 and last.summary["status"] == "finished"

    def test_secrets_do_not_reach_the_run_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("ALERT_WEBHOOK_URL", "https://hooks.example/T00/B00/verysecret")
        config = {"note": f"my key is {KEY}", "alert": "https://hooks.example/T00/B00/verysecret"}
        folder = tmp_path / "run"
        tracker = open_trackers(self.options, run_name="tiny", config=config, folder=folder, resume_ids={})
        tracker.log(1, {"loss": 1.0})
        tracker.finish("finished")
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files
        for path in files:
            assert KEY.encode() not in path.read_bytes() and b"verysecret" not in path.read_bytes(), path

    def test_unreachable_at_the_start_means_offline_and_says_so(self, tmp_path: Path) -> None:
        """In a process of its own: the package reads its address once."""
        code = (
            "import sys; from pathlib import Path; from pipelines.training import tracking_wandb as w, tracking as t\n"
            "w._INIT_SECONDS = 2.0\n"
            "folder = Path(sys.argv[1])\n"
            "tracker = t.open_trackers(t.TrackingOptions(), run_name='n', config={}, folder=folder, resume_ids={})\n"
            "tracker.log(1, {'loss': 1.0}); tracker.finish('finished'); print('survived', tracker.run_ids['wandb'])"
        )
        environment = {**os.environ, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert "survived" in done.stdout
        assert "wandb cannot be reached" in done.stderr and KEY not in done.stdout + done.stderr
        (event,) = read_events(tmp_path / "events.jsonl")
        assert event["kind"] == "tracker" and "offline" in event["message"]
        from tests.pipelines.training.wandb_log import read_offline_run

        assert read_offline_run(offline_runs(tmp_path)[0]).history[0]["loss"] == 1.0

    def test_a_malformed_key_is_the_users_to_mend(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "too-short")
        with pytest.raises(ConfigError, match="WANDB_API_KEY") as caught:
            open_trackers(TrackingOptions(wandb="online"), run_name="n", config={}, folder=tmp_path, resume_ids={})
        assert "too-short" not in str(caught.value)


@pytest.mark.slow  # making the database takes seconds, importing mlflow as many
class TestMlflow:
    def test_a_run_can_be_queried_and_goes_on_under_its_id(self, tmp_path: Path) -> None:
        from mlflow import MlflowClient

        uri = f"sqlite:///{tmp_path}/mlruns.sqlite"
        options = TrackingOptions(wandb="off", mlflow=uri, project="check")
        tracker = open_trackers(options, run_name="tiny", config=CONFIG, folder=tmp_path, resume_ids={})
        tracker.log(10, {"train/loss": 2.5})
        tracker.log(20, {"train/loss": 2.25, "valid/HR@10": 0.125})
        ids = tracker.run_ids
        tracker.finish("interrupted")
        client = MlflowClient(tracking_uri=uri)
        run = client.get_run(ids["mlflow"])
        assert run.info.status == "KILLED" and run.info.run_name == "tiny"
        assert run.info.experiment_id == client.get_experiment_by_name("check").experiment_id
        assert run.data.params == {
            "name": "tiny",
            "training.epochs": "2",
            "training.select": "NDCG@10",
            "ks": "[1, 10]",
        }

        again = open_trackers(options, run_name="tiny", config=CONFIG, folder=tmp_path, resume_ids=ids)
        assert again.run_ids == ids
        assert client.get_run(ids["mlflow"]).info.status == "RUNNING"
        again.log(30, {"train/loss": 2.0})
        again.summary({"test/HR@10": 0.5})
        again.finish("finished")
        history = client.get_metric_history(ids["mlflow"], "train/loss")
        assert [(point.step, point.value) for point in history] == [(10, 2.5), (20, 2.25), (30, 2.0)]
        run = client.get_run(ids["mlflow"])
        assert run.info.status == "FINISHED"
        assert run.data.metrics["valid/HR_at_10"] == 0.125 and run.data.metrics["test/HR_at_10"] == 0.5
        assert len(client.search_runs([run.info.experiment_id])) == 1

        with pytest.raises(ConfigError, match="MLflow cannot be used"):  # the same database: making one takes seconds
            open_trackers(options, run_name="n", config={}, folder=tmp_path, resume_ids={"mlflow": "0" * 32})

    def test_an_address_mlflow_cannot_track_to_is_refused(self) -> None:
        for address in ("mlruns", "file:///tmp/mlruns", "file:mlruns"):
            with pytest.raises(ConfigError, match="sqlite:///"):
                TrackingOptions(mlflow=address)


class Flaky:
    """A tracker that fails while ``down``."""

    def __init__(self) -> None:
        self.down = False
        self.told: list[object] = []

    @property
    def run_ids(self) -> dict[str, str]:
        return {"flaky": "7"}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._tell((step, dict(values)))

    def summary(self, values: Mapping[str, float]) -> None:
        self._tell(dict(values))

    def finish(self, status: Status) -> None:
        self._tell(status)

    def _tell(self, what: object) -> None:
        if self.down:
            raise ConnectionError(f"no route with key {KEY}")
        self.told.append(what)


class TestPatience:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [1000.0]
        monkeypatch.setattr(tracking.time, "monotonic", lambda: now[0])
        return now

    def messages(self, path: Path) -> list[str]:
        return [event["message"] for event in read_events(path) if event["kind"] == "tracker"]

    def test_an_outage_is_told_once_recorded_and_caught_up(
        self, tmp_path: Path, clock: list[float], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        flaky, events = Flaky(), tmp_path / "events.jsonl"
        tracker = PatientTracker("flaky", flaky, events)
        tracker.log(1, {"loss": 1.0})
        flaky.down = True
        for step in (2, 3, 4):
            tracker.log(step, {"loss": 1.0 / step})
            clock[0] += 45
        assert len(caplog.records) == 1
        (message,) = self.messages(events)
        assert "ConnectionError: no route" in message and "training goes on" in message and KEY not in message
        assert read_events(events)[0]["step"] == 2
        flaky.down = False
        clock[0] += 100
        tracker.log(5, {"loss": 0.2})
        assert flaky.told == [(step, {"loss": 1.0 / step}) for step in (1, 2, 3, 4, 5)]
        assert self.messages(events)[1] == "works again; nothing was lost"
        tracker.finish("finished")
        assert flaky.told[-1] == "finished" and len(caplog.records) == 2

    def test_a_dead_tracker_is_not_asked_at_every_step(self, tmp_path: Path, clock: list[float]) -> None:
        flaky = Flaky()
        flaky.down = True
        asked: list[int] = []
        flaky.log = lambda step, values: (asked.append(step), flaky._tell(step))  # type: ignore[method-assign,assignment]
        tracker = PatientTracker("flaky", flaky, tmp_path / "events.jsonl")
        for step in range(120):
            tracker.log(step, {})
            clock[0] += 1
        assert len(asked) == 2

    def test_what_was_never_delivered_is_recorded(self, tmp_path: Path, clock: list[float]) -> None:
        flaky, events = Flaky(), tmp_path / "events.jsonl"
        flaky.down = True
        tracker = PatientTracker("flaky", flaky, events)
        tracker.log(1, {"loss": 1.0})
        tracker.summary({"x": 1.0})
        tracker.finish("finished")
        assert "3 deliveries were lost" in self.messages(events)[-1]
        assert tracker.run_ids == {"flaky": "7"}


def test_nothing_asked_for_is_nothing_done(tmp_path: Path) -> None:
    tracker = open_trackers(TrackingOptions(wandb="off"), run_name="n", config={}, folder=tmp_path, resume_ids={})
    tracker.log(1, {"loss": 1.0})
    tracker.summary({})
    tracker.finish("finished")
    assert tracker.run_ids == {} and not list(tmp_path.iterdir())


def test_auto_is_online_with_a_key_and_offline_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert wandb_mode(TrackingOptions()) == "offline"
    assert "no WANDB_API_KEY" in caplog.text and len(caplog.records) == 1
    with pytest.raises(ConfigError, match="set WANDB_API_KEY"):
        wandb_mode(TrackingOptions(wandb="online"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_mode(TrackingOptions()) == "online" and wandb_mode(TrackingOptions(wandb="offline")) == "offline"
    assert KEY not in caplog.text


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notthere").mkdir()  # a folder of data with the package's name, such as wandb's, is no package
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MachineError, match=r"package notthere is not installed.*recpod\[tracking\]"):
        require("notthere")
    monkeypatch.setattr(tracking, "installed", lambda package: False)
    assert wandb_mode(TrackingOptions()) == "off"
    with pytest.raises(MachineError, match="wandb"):
        open_trackers(TrackingOptions(wandb="offline"), run_name="n", config={}, folder=tmp_path, resume_ids={})


def test_a_mistyped_mode_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'offline'"):
        TrackingOptions(wandb="ofline")


def test_secrets_are_blotted_out_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "rp_secretsecret")
    monkeypatch.setenv("HARMLESS", "visible-value")
    config = {"a": [{"b": "x rp_secretsecret y"}], "uri": "postgresql://me:pass@host/db", "n": 3, "c": "visible-value"}
    assert without_secrets(config) == {
        "a": [{"b": "x *** y"}],
        "uri": "postgresql://***@host/db",
        "n": 3,
        "c": "visible-value",
    }
