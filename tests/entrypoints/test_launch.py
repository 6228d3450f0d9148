"""launch.sh for real: codes that survive torchrun, killed workers that come back, signals, two nodes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipelines.errors import ConfigError
from pipelines.training import launcher
from pipelines.training.checkpoint import checkpoint_path, checkpoint_steps, load_checkpoint
from pipelines.training.events import read_events

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name: shared
dataset: clicks.csv
model: {name: ss4rec, hidden: 16, s5_state: 4, d_state: 4, layers: 1}
loader: {max_length: 10, windows: all, rows_per_batch: 16}
training: {epochs: 8, patience: 0, log_every: 1, checkpoint_minutes: 0.0}
tracking: {wandb: "off"}
gates: [{metric: NDCG@10, above: 1.1}]
"""


class Folder:
    """A working directory with a recipe, and launches in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.started = path, []  # type: ignore[var-annotated]
        path.mkdir(exist_ok=True)
        rows = [f"{u},{(u * 7 + i + (i % 5 == 4) * u) % 40},{1000 * u + 60 * i}" for u in range(60) for i in range(14)]
        (path / "clicks.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
        (path / "shared.yaml").write_text(RECIPE)

    def launch(self, *arguments: str, flags: tuple[str, ...] = ("--processes", "2")) -> subprocess.Popen[str]:
        variables = {**os.environ, "RECPOD_VENV": "nowhere", "RECPOD_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        variables["RECPOD_DATA"] = str(self.path / "data")
        process = subprocess.Popen(
            [str(ROOT / "entrypoints/launch.sh"), *flags, "--", *arguments],
            cwd=self.path,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, name: str) -> Path:
        return self.path / "runs" / name

    def newest(self, name: str) -> int:
        return (checkpoint_steps(self.run(name) / "checkpoints") or [-1])[-1]

    def wait_for_step(self, name: str, step: int) -> None:
        deadline = time.monotonic() + 150
        while self.newest(name) < step:
            assert time.monotonic() < deadline and self.started[-1].poll() is None, "no checkpoint came"
            time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "here")
    yield made
    for process in made.started:
        process.kill()


def workers(launch: subprocess.Popen[str]) -> dict[int, int]:
    """Local rank to process id of what ``launch`` has started."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(status.read_text().rpartition(")")[2].split()[1]), []).append(
                int(status.parent.name)
            )
        except (OSError, ProcessLookupError):
            continue  # it has ended meanwhile
    found = {}
    for agent in children.get(launch.pid, []):
        for worker in children.get(agent, []):
            place = dict(entry.partition("=")[::2] for entry in Path(f"/proc/{worker}/environ").read_text().split("\0"))
            found[int(place["LOCAL_RANK"])] = worker
    return found


def end(launch: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = launch.communicate(timeout=200)
    return launch.returncode, err or out


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints"
    model: dict[str, torch.Tensor] = load_checkpoint(checkpoint_path(folder, checkpoint_steps(folder)[-1]))["model"]
    return model


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stopped_killed_and_restarted_is_bit_identical_to_undisturbed(folder: Folder) -> None:
    whole = folder.launch("run", "shared.yaml", "--set", "name=whole", "--set", "runs=runs")
    code, said = end(whole)
    assert code == 3, said  # the gate asks for more than there is, and nothing is started again for that

    first = folder.launch("train", "shared.yaml", "--set", "name=parts", "--resume", "never")
    folder.wait_for_step("parts", 10)
    first.send_signal(signal.SIGTERM)
    code, said = end(first)
    assert code == 75 and said.strip().splitlines() == ["stopped on request; start the same command again to go on"]
    stopped_at = folder.newest("parts")

    second = folder.launch("train", "shared.yaml", "--set", "name=parts")
    folder.wait_for_step("parts", stopped_at + 10)
    os.kill(workers(second)[1], signal.SIGKILL)
    assert end(second)[0] == 0
    kinds = [event["kind"] for event in read_events(folder.run("parts") / "events.jsonl")]
    assert kinds.count("start") == 3 and stopped_at + 10 < folder.newest("parts") == folder.newest("whole") == 64
    one, other = weights(folder.run("whole")), weights(folder.run("parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.timeout(300)
def test_a_killed_worker_does_not_begin_anew_what_was_begun_anew(folder: Folder) -> None:
    """``--resume never`` holds for the launch, not for each start of its workers."""
    launch = folder.launch("train", "shared.yaml", "--resume", "never", "--set", "training.epochs=4")
    folder.wait_for_step("shared", 5)
    os.kill(workers(launch)[0], signal.SIGKILL)
    code, said = end(launch)
    assert code == 0, said
    starts = [event["step"] for event in read_events(folder.run("shared") / "events.jsonl") if event["kind"] == "start"]
    assert starts[0] == 0 and starts[1] >= 5
    assert [path.name for path in (folder.path / "runs").iterdir()] == ["shared"]


@pytest.mark.timeout(300)
def test_mistakes_are_told_once_and_nothing_is_started_again(folder: Folder) -> None:
    wrong = folder.launch("train", "shared.yaml", "--set", "model.hiden=8")
    code, said = end(wrong)
    assert code == 2 and len(said.strip().splitlines()) == 1 and "did you mean 'hidden'?" in said
    (folder.path / "clicks.csv").write_text("user_id,item_id,timestamp\n1,2,3\n1,two\n")  # the first process finds out
    code, said = end(folder.launch("train", "shared.yaml"))
    assert code == 2 and len(said.strip().splitlines()) == 1 and "clicks.csv" in said, said


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_nodes_with_disks_of_their_own(tmp_path: Path) -> None:
    nodes = [Folder(tmp_path / name) for name in ("zero", "one")]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{probe.getsockname()[1]}"
    pair = []
    for rank, node in reversed(list(enumerate(nodes))):  # the second node comes first, and must wait
        flags = ("--processes", "1", "--nodes", "2", "--node-rank", str(rank), "--rendezvous", meeting)
        pair.append(node.launch("run", "shared.yaml", "--set", "training.epochs=2", flags=flags))
    try:
        codes = [end(launch) for launch in pair]
    finally:
        for launch in pair:
            launch.kill()
    assert [code for code, _ in codes] == [3, 3], codes
    assert (nodes[0].run("shared") / "report.html").exists() and not nodes[1].run("shared").exists()
    alone = folder_losses(nodes[0].run("shared"))
    assert len(alone) == 16 and alone[-1] < alone[0]


def folder_losses(run: Path) -> list[float]:
    return [event["loss"] for event in read_events(run / "events.jsonl") if event["kind"] == "train"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--proceses", "2", "--", "run", "x"], "unknown flag '--proceses'. did you mean '--processes'?"),
        (["--processes", "none", "--", "run", "x"], "--processes: 'none' is no number of processes"),
        (["--processes", "2"], "nothing to run"),
        (["--nodes", "2", "run", "x"], "add --rendezvous HOST:PORT"),
        (["--nodes", "2", "--node-rank", "2", "--rendezvous", "a:1", "run", "x"], "node 2 of 2. ranks are 0 to 1"),
        (["--max-restarts", "-1", "run", "x"], "--max-restarts: -1 is less than 0"),
        (["--nodes", "two", "run", "x"], "--nodes: invalid int value: 'two'"),
    ],
)
def test_wrong_flags(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        launcher.parse(arguments)
    assert message in str(raised.value)


def test_a_meeting_place_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = ["--processes", "1", "--nodes", "2", "--rendezvous"]
    assert launcher.main([*nodes, "no-such-host.invalid:29500", "--", "run", "x"]) == 2
    assert launcher.main([*nodes, "29500", "--", "run", "x"]) == 2
    first, second = capsys.readouterr().err.strip().splitlines()
    assert "'no-such-host.invalid' cannot be reached" in first and "'29500' is not HOST:PORT" in second


def test_one_process_a_gpu_and_no_threads_to_spare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launcher, "usable_cores", lambda: 7)
    options = launcher.parse(["--", "run", "x"])
    assert options.processes == 3 and options.command == ["run", "x"]
    assert launcher.environment(options, tmp_path)["OMP_NUM_THREADS"] == "2"


AGENT = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
if sys.argv[2]:
    pathlib.Path(sys.argv[1]).write_text(sys.argv[2])
print("up", flush=True)
time.sleep(60)
"""


def test_nodes_that_do_not_leave_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun itself waits five minutes for a node that was taken away."""
    monkeypatch.setattr(launcher, "_STRAGGLERS", 0.3)
    code = tmp_path / "code"
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        started = time.monotonic()
        assert launcher.Launch([sys.executable, "-c", AGENT, str(code), "75"], dict(os.environ), code).run() == 75
        assert time.monotonic() - started < 30
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_help_names_every_flag() -> None:
    result = subprocess.run([ROOT / "entrypoints/launch.sh", "--help"], capture_output=True, text=True, check=True)
    assert all(flag in result.stdout for flag in launcher.FLAGS)
