"""Two nodes against one process: the same global batch, so the same losses?

    python -m benchmarks.two_nodes [--epochs 3] [--repeats 2]

One process trains a small run through the command line. Then two nodes train it, each through ``entrypoints/launch.sh``
with data and runs of its own, joined by gloo: two network namespaces with a veth pair between them where they can be
made (root on Linux), else two launches on the loopback interface; the result says which. Without dropout and in float64
the logged losses may differ by the order of additions alone, so by about 1e-15 a step. A third run shows what that
order does in float32, where one process sums the same batch in two halves.

Writes ``container-two-nodes``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.result_file import RESULTS, write_result
from pipelines.training.events import read_events

ROOT = Path(__file__).resolve().parents[1]
NODES = ("rp-node-0", "rp-node-1")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
TARGET, PATIENCE = 1e-6, 600.0
RECIPE = """
name: nodes
dataset: {data}
model: {{name: ss4rec, hidden: 32, s5_state: 8, d_state: 8, layers: 2, dropout: 0.0}}
loader: {{max_length: 20, windows: all, rows_per_batch: {rows}}}
training: {{epochs: {epochs}, patience: 0, log_every: 1, precision: {precision}, accumulate: {accumulate}}}
tracking: {{wandb: "off"}}
runs: {runs}
"""


@contextlib.contextmanager
def namespaces() -> Iterator[bool]:
    """Two network namespaces that reach each other and nothing else; whether they could be made."""
    if os.geteuid() != 0 or subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode:
        yield False
        return
    try:
        made = all(ip("netns", "add", node) for node in NODES) and connect()
        yield made
    finally:
        for node in NODES:
            ip("netns", "del", node)


def connect() -> bool:
    """A veth pair, one end in each namespace, with an address each."""
    ends = ("rp-veth-0", "rp-veth-1")
    if not ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1]):
        return False
    done = []
    for node, end, address in zip(NODES, ends, ADDRESSES, strict=True):
        done += [
            ip("link", "set", end, "netns", node),
            ip("-n", node, "addr", "add", f"{address}/24", "dev", end),
            ip("-n", node, "link", "set", "lo", "up"),
            ip("-n", node, "link", "set", end, "up"),
        ]
    return all(done)


def ip(*arguments: str) -> bool:
    """Whether ``ip ARGUMENTS`` succeeded."""
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0


def write_data(path: Path, users: int) -> None:
    """Sequences that mostly step forward by one to three items."""
    rng, rows = random.Random(20), ["user_id,item_id,timestamp"]
    for user in range(users):
        first = rng.randrange(300)
        rows += [f"{user},{(first + step * rng.randrange(1, 4)) % 300},{60 * step}" for step in range(30)]
    path.write_text("\n".join(rows) + "\n")


class Comparison:
    """Runs of one recipe in a folder.

    Args:
        folder: of everything.
        epochs: length of a run.
        users: of the generated data.
    """

    def __init__(self, folder: Path, epochs: int, users: int) -> None:
        self.folder, self.epochs = folder, epochs
        write_data(folder / "clicks.csv", users)

    def recipe(self, name: str, precision: str, accumulate: int = 1) -> Path:
        """The recipe as a file, with runs of its own; a batch summed in parts is the same batch."""
        path = self.folder / f"{name}.yaml"
        parts = {"precision": precision, "accumulate": accumulate, "rows": 32 // accumulate, "epochs": self.epochs}
        path.write_text(RECIPE.format(data=self.folder / "clicks.csv", runs=self.folder / f"runs-{name}", **parts))
        return path

    def alone(self, name: str, precision: str, accumulate: int = 1) -> list[float]:
        """The losses of one process."""
        command = [sys.executable, "-m", "pipelines", "train", str(self.recipe(name, precision, accumulate))]
        self.wait([self.start(name, command)])
        return self.losses(name)

    def nodes(self, attempt: int, separate: bool) -> tuple[list[float], float]:
        """The losses of two nodes, and the seconds that it took; ``separate``: in network namespaces."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        begin, launches = time.monotonic(), []
        for rank in (0, 1):
            name = f"nodes-{attempt}-{rank}"
            place = ["--nodes", "2", "--node-rank", str(rank), "--processes", "1"]
            place += ["--rendezvous", f"{ADDRESSES[0] if separate else '127.0.0.1'}:{port}"]
            command = [str(ROOT / "entrypoints/launch.sh"), *place, "--", "train", str(self.recipe(name, "float64"))]
            inside = ["ip", "netns", "exec", NODES[rank]] if separate else []
            launches.append(self.start(name, [*inside, *command]))
        self.wait(launches)
        return self.losses(f"nodes-{attempt}-0"), time.monotonic() - begin

    def start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """A run with data of its own, as on a machine of its own."""
        own = {"RECPOD_DATA": str(self.folder / f"data-{name}"), "OMP_NUM_THREADS": "1"}
        own |= {"RECPOD_PYTHON": sys.executable, "RECPOD_VENV": str(self.folder / "none")}
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, cwd=ROOT, env=os.environ | own, stdout=log, stderr=subprocess.STDOUT)

    def wait(self, processes: list[subprocess.Popen[bytes]]) -> None:
        """Until all have ended well.

        Raises:
            SystemExit: one has not; what it said is shown.
        """
        try:
            codes = [process.wait(timeout=PATIENCE) for process in processes]
        finally:
            for process in processes:
                process.terminate()
        if any(codes):
            said = "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("*.log")))
            raise SystemExit(f"exit codes {codes}\n{said}")

    def losses(self, name: str) -> list[float]:
        """The loss of every update."""
        events = read_events(self.folder / f"runs-{name}" / "nodes" / "events.jsonl")
        return [float(event["loss"]) for event in events if event["kind"] == "train"]


def largest_difference(one: list[float], other: list[float]) -> float:
    """The largest relative difference between two runs' losses.

    Raises:
        SystemExit: runs of different length.
    """
    if len(one) != len(other) or not one:
        raise SystemExit(f"{len(one)} losses against {len(other)}")
    return max(abs(a - b) / abs(a) for a, b in zip(one, other, strict=True))


def measure(epochs: int, users: int, repeats: int, out: Path) -> Path:
    """Run and compare; the result file."""
    with tempfile.TemporaryDirectory() as folder, namespaces() as separate:
        comparison = Comparison(Path(folder), epochs, users)
        alone = comparison.alone("alone", "float64")
        single = comparison.alone("single", "float32")
        halves = comparison.alone("halves", "float32", accumulate=2)
        pairs = [comparison.nodes(attempt, separate) for attempt in range(repeats)]
    differences = [largest_difference(alone, losses) for losses, _ in pairs]
    runs: dict[str, Any] = {
        "between": "two network namespaces joined by veth" if separate else "two launches on the loopback interface",
        "updates": len(alone),
        "largest_relative_difference": differences,
        "seconds": [round(seconds, 1) for _, seconds in pairs],
        "first_and_last_loss_alone": [alone[0], alone[-1]],
        "first_and_last_loss_of_two_nodes": [[losses[0], losses[-1]] for losses, _ in pairs],
        "float32_rounding_of_one_process": largest_difference(single, halves),
    }
    value = max(differences)
    return write_result(
        claim="container-two-nodes",
        value=value,
        unit=f"largest relative difference of the losses of {len(alone)} updates, float64, no dropout, {repeats} pairs",
        target=f"<= {TARGET:g}",
        met=value <= TARGET,
        peer="one process with the same global batch, same run",
        command="python -m benchmarks.two_nodes",
        runs=runs,
        folder=out,
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3, help="length of a run (default %(default)s)")
    parser.add_argument("--users", type=int, default=200, help="of the generated data (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="pairs of nodes (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    options = parser.parse_args(arguments)
    print(measure(options.epochs, options.users, options.repeats, options.out).read_text())


if __name__ == "__main__":
    main()
