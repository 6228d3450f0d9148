"""``test_distributed``: do several processes start here, agree, and equal one?

    [NUM_GPUS=N] python -m pipelines.compat.sasrec test_distributed [--device=auto|cpu|cuda]

It trains a small SASRec on made-up data twice, in N processes that share each batch and in one, through the same
launcher, loader and trainer as every run, in float64 and without dropout. Processes that do not hear each other, or
hear something else, end up with other losses. N is NUM_GPUS, else the number of GPUs, and at least 2; with fewer GPUs
than that it runs on the CPU and says so: NCCL is tested by two GPUs or more.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from pipelines.compat.sasrec_flags import Parser
from pipelines.errors import ConfigError, MachineError
from pipelines.training import launcher
from pipelines.training.checkpoint import checkpoint_path, checkpoint_steps, load_checkpoint
from pipelines.training.events import read_events

TOLERANCE = 1e-6
_FIRST_SPEAKS = 20.0  # seconds
RECIPE = """
name: small
dataset: {folder}/small.csv
model: {{name: sasrec, hidden: 16, blocks: 1, dropout: 0.0, max_length: 12}}
loader: {{max_length: 12, windows: all, rows_per_batch: 16}}
training: {{epochs: 2, patience: 0, log_every: 1, precision: float64}}
tracking: {{wandb: "off"}}
device: {device}
runs: {folder}/{name}
"""


@dataclass(frozen=True)
class Trained:
    """What a training has left.

    Attributes:
        processes: how many took part.
        losses: of each update, over the whole batch.
        metrics: of each validation.
    """

    processes: int
    losses: list[float]
    metrics: list[float]


def test_distributed(arguments: Sequence[str]) -> int:
    """The command; 0 when the processes agree with each other and with one.

    Raises:
        ConfigError: a flag, or NUM_GPUS, that is none; or it is called under torchrun.
        MachineError: the processes do not start, or do not agree.
    """
    parser = Parser(prog="python -m pipelines.compat.sasrec test_distributed", allow_abbrev=False)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=f"not used: {__name__} starts its own processes")
    asked = parser.parse_args(arguments)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("starts its processes itself", where="test_distributed", fix="run it without torchrun")
    here = launcher.parse(["--processes=auto", "--", "none"]).processes
    processes = wanted_processes() or max(2, here)
    if processes < 2:
        raise ConfigError("one process alone has nobody to agree with", where="NUM_GPUS", fix="give 2 or more")
    device = asked.device if asked.device != "auto" else "cuda" if 1 < here >= processes else "cpu"
    means = "NCCL between GPUs" if device == "cuda" else "gloo on the CPU: NCCL is not tested"
    print(f"{processes} processes, {means}", flush=True)
    with tempfile.TemporaryDirectory(prefix="recpod-processes-") as folder:
        write_events(Path(folder) / "small.csv")
        several, one = (train(Path(folder), device, number) for number in (processes, 1))
    print(report(several, one, processes))
    return 0


def report(several: Trained, one: Trained, processes: int) -> str:
    """The verdict in a line.

    Raises:
        MachineError: fewer processes took part, or they differ from one.
    """
    if several.processes != processes:
        raise MachineError(f"{several.processes} of {processes} processes took part", where="test_distributed")
    if not one.losses or len(one.losses) != len(several.losses) or len(one.metrics) != len(several.metrics):
        what = f"{len(several.losses)} updates where one process made {len(one.losses)}"
        raise MachineError(what, where="test_distributed")
    losses = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(several.losses, one.losses, strict=True)]
    metrics = [abs(a - b) for a, b in zip(several.metrics, one.metrics, strict=True)]
    if not all(difference <= TOLERANCE for difference in (*losses, *metrics)):  # NaN is no agreement
        by = f"losses differ by {max(losses):.1e}, metrics by {max(metrics):.1e}"
        fix = "check drivers and network between the GPUs (NCCL_DEBUG=INFO)"
        raise MachineError(f"{processes} processes do not equal one: {by}", where="test_distributed", fix=fix)
    updates = len(one.losses)
    return f"passed: {processes} processes equal one: losses of {updates} updates differ by {max(losses):.1e} at most"


def wanted_processes() -> int | None:
    """NUM_GPUS; None where it is not set.

    Raises:
        ConfigError: it is no number of processes.
    """
    text = os.environ.get("NUM_GPUS", "").strip()
    if text and (not text.isdigit() or int(text) < 1):
        raise ConfigError(f"'{text}' is no number of processes", where="NUM_GPUS", fix="give 1 or more, or unset it")
    return int(text) if text else None


def write_events(path: Path) -> None:
    """Made-up events: item ``i`` is mostly followed by ``i + 1``; rows of different lengths."""
    rows = [
        f"{u},{(u * 7 + i + (i % 5 == 4) * u) % 40},{1000 * u + 60 * i}" for u in range(60) for i in range(5 + u % 9)
    ]
    path.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n", encoding="utf-8")


def train(folder: Path, device: str, processes: int) -> Trained:
    """The small recipe in so many processes.

    Raises:
        MachineError: it did not come to its end; the last line that it said.
    """
    name = f"of-{processes}"
    recipe = folder / f"{name}.yaml"
    recipe.write_text(RECIPE.format(folder=folder, name=name, device=device), encoding="utf-8")
    start = ["pipelines"] if processes == 1 else ["pipelines.training.launcher", f"--processes={processes}", "--"]
    variables = {"RECPOD_DATA": str(folder / f"data-{name}"), "OMP_NUM_THREADS": "1"}
    log = folder / f"{name}.log"
    code = run_child([sys.executable, "-m", *start, "train", str(recipe)], {**os.environ, **variables}, log)
    if code:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        last = lines[-1].removeprefix("error: ") if lines else "it said nothing"
        raise MachineError(
            f"training in {processes} process(es) ended with code {code}: {last}", where="test_distributed"
        )
    run = folder / name / "small"
    newest = checkpoint_path(run / "checkpoints", checkpoint_steps(run / "checkpoints")[-1])
    events = read_events(run / "events.jsonl")
    return Trained(
        processes=len(load_checkpoint(newest)["rng"]),  # a random state of each
        losses=[event["loss"] for event in events if event["kind"] == "train"],
        metrics=[event[key] for event in events if event["kind"] == "valid" for key in ("NDCG@10", "HR@10")],
    )


def run_child(command: Sequence[str], variables: Mapping[str, str], log: Path | None = None) -> int:
    """Run a command to its end and give its code; SIGTERM and SIGINT are passed on to it.

    Args:
        command: what to run.
        variables: its environment.
        log: where its output goes; None: where this process's goes.
    """
    with open(log or os.devnull, "wb") as file:
        output = None if log is None else file
        child = subprocess.Popen(command, env=variables, stdout=output, stderr=output)

        def stop(number: int, frame: FrameType | None) -> None:
            child.terminate()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_as_worker(verb: Sequence[str], folder: Path) -> int:
    """The run as a child of this worker of torchrun's, in its place among the workers; this one writes what follows.

    torchrun itself knows success and failure alone: it reports any code but 0 as a failure.
    """
    code_file = (folder / f".exit-code-{os.environ['GROUP_RANK']}").absolute()  # one a node
    code_file.parent.mkdir(parents=True, exist_ok=True)
    variables = {**os.environ, "RECPOD_EXIT_CODE_FILE": str(code_file)}
    code = run_child([sys.executable, "-m", "pipelines", *verb], variables)
    if code or not code_file.exists():
        return code or 1
    text = code_file.read_text(encoding="utf-8")
    if (line := text.partition("\n")[2].strip()) and os.environ["LOCAL_RANK"] == "0":
        print(line, file=sys.stderr)
    return int(text.split()[0])


def leave_after_the_first() -> None:
    """Wait until the first process has said why it ends and has written its files.

    torchrun ends all of them as soon as one has failed. What they all meet, the first one says: this one is ended
    here; it goes on where it has met something alone.
    """
    time.sleep(_FIRST_SPEAKS)
