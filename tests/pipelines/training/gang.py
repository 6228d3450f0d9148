"""Groups of real processes over gloo, forked from one that has imported what they need: TorchRec takes 10 s to import.

``run_gang`` starts one Python that imports a test module, and then, for each size, forks so many processes; each runs
the module's functions of the given names, in order, and their answers come back by name, a list with one a process.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from pipelines.training.distributed import World, process_group

ROOT = Path(__file__).resolve().parents[3]
_PARENT = "import sys; from tests.pipelines.training.gang import parent; parent(*sys.argv[1:])"


def run_gang(
    module: str, plan: Mapping[int, Sequence[str]], folder: Path, seconds: float = 220
) -> dict[str, list[Any]]:
    """Answers of ``module``'s functions ``function(world, folder)``; ``plan`` is processes to names.

    Raises:
        AssertionError: a process failed, or it took longer than ``seconds``; with what was printed.
    """
    steps = [f"{size}:{','.join(names)}" for size, names in plan.items()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, "-c", _PARENT, module, str(folder), *steps],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        said = f"not done after {seconds} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # nobody is left waiting for one that has failed
    assert process.wait() == 0, said[-4000:]
    names = [name for group in plan.values() for name in group]
    sizes = {name: size for size, group in plan.items() for name in group}
    return {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(sizes[name])]
        for name in names
    }


def parent(module: str, folder: str, *steps: str) -> None:
    """Import, then fork each group in turn."""
    loaded = __import__(module, fromlist=["_"])
    getattr(loaded, "warm_up", lambda: None)()
    for step in steps:
        size, _, names = step.partition(":")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        functions = [getattr(loaded, name) for name in names.split(",")]
        arguments = (int(size), port, functions, Path(folder))
        torch.multiprocessing.start_processes(_member, args=arguments, nprocs=int(size), start_method="fork")


def _member(rank: int, size: int, port: int, functions: Sequence[Any], folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    world = World(rank, size, rank)
    with process_group(world):
        for function in functions:
            answer = function(world, folder)
            torch.save(answer, folder / f"{function.__name__}-{rank}.pt")
