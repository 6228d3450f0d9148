"""Peak memory and time of the catalogue losses.

Run: ``python -m benchmarks.loss_memory`` (about two minutes on two cores). Writes three result files:

* ``front-loss-memory-sampled.json``: peak memory of ``sampled_softmax`` at 3k, 30k and 300k items; must be flat.
* ``front-loss-memory-full.json``: of ``full_softmax``; must grow by no more than a small constant per item.
* ``front-loss-time.json``: ``full_softmax`` against plain ``F.cross_entropy``, 12,000 targets x 3,707 items x d 64.

Memory is the process' own: each case runs in a fresh process, which warms torch up on a small problem, resets the
kernel's high-water mark (``/proc/self/clear_refs``), takes one loss forward and backward, and reads ``VmHWM``. What was
resident before (the table and the states) and the two gradients that come out are subtracted; the rest is the loss'.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.result_file import write_result
from models.losses import full_softmax, sampled_softmax, uniform_negatives

CATALOGUES = (3_000, 30_000, 300_000)
TOKENS, DIM, NEGATIVES, SEEDS = 12_000, 64, 1024, 3
COMMAND = "python -m benchmarks.loss_memory"


def problem(items: int, tokens: int = TOKENS, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States ``[tokens, 64]``, table ``[items + 1, 64]``, targets ``[tokens]``, negatives ``[1024]``."""
    generator = torch.Generator().manual_seed(seed)
    states = (0.5 * torch.randn(tokens, DIM, generator=generator)).requires_grad_()
    table = (0.3 * torch.randn(items + 1, DIM, generator=generator)).requires_grad_()
    targets = torch.randint(1, items + 1, (tokens,), generator=generator)
    return states, table, targets, uniform_negatives(items, NEGATIVES, generator, "cpu")


def loss_of(name: str, states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """The loss called ``name``."""
    if name == "sampled":
        return sampled_softmax(states, table, targets, negatives)
    if name == "full":
        return full_softmax(states, table, targets)
    return F.cross_entropy(states @ table[1:].t(), targets - 1, reduction="sum")


def status_bytes(field: str) -> int:
    """A line of ``/proc/self/status``, such as VmRSS or VmHWM, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def measure_memory(name: str, items: int, seed: int) -> int:
    """Bytes that one forward and backward needed at its peak, apart from inputs and gradients; in this process."""
    loss_of(name, *problem(256, tokens=256)).backward()
    inputs = problem(items, seed=seed)
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    (loss_of(name, *inputs) / TOKENS).backward()
    gradients = sum(tensor.grad.nbytes for tensor in inputs[:2] if tensor.grad is not None)
    return status_bytes("VmHWM") - before - gradients


def memory_in_fresh_process(name: str, items: int, seed: int) -> int:
    """:func:`measure_memory` in a process of its own.

    There malloc gives freed blocks back at once: what it otherwise keeps for later swings by 15 MiB from run to run.
    """
    command = [sys.executable, "-m", "benchmarks.loss_memory", "--measure", name, str(items), str(seed)]
    frugal = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **frugal})
    return int(json.loads(done.stdout))


def milliseconds(step: Callable[[], object], repeats: int) -> list[float]:
    """Wall time of each of ``repeats`` calls, after two that do not count."""
    step(), step()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        times.append((time.perf_counter() - started) * 1e3)
    return times


def report_memory() -> None:
    """Writes the two memory results."""
    runs = {
        name: {
            str(items): [memory_in_fresh_process(name, items, seed) for seed in range(SEEDS)] for items in CATALOGUES
        }
        for name in ("sampled", "full")
    }
    peak = {name: [statistics.median(runs[name][str(items)]) for items in CATALOGUES] for name in runs}
    growth = max(peak["sampled"]) / min(peak["sampled"])
    per_item = (peak["full"][-1] - peak["full"][0]) / (CATALOGUES[-1] - CATALOGUES[0])
    for name in runs:
        print(
            name,
            [f"{items:,} items: {size / 2**20:.1f} MiB" for items, size in zip(CATALOGUES, peak[name], strict=True)],
        )
    write_result(
        claim="front-loss-memory-sampled",
        value=round(growth, 3),
        unit="largest / smallest peak memory of sampled softmax from 3k to 300k items, table and gradient apart",
        target="<= 1.1",
        met=growth <= 1.1,
        peer="itself at 3,000 items",
        command=COMMAND,
        runs={"bytes": runs["sampled"], "tokens": TOKENS, "dim": DIM, "negatives": NEGATIVES},
    )
    write_result(
        claim="front-loss-memory-full",
        value=round(per_item, 1),
        unit="bytes per item of the catalogue, table and gradient apart",
        target=f"<= {4 * DIM * 4} (four rows of the table)",
        met=per_item <= 4 * DIM * 4,
        peer=f"plain cross-entropy keeps logits and their softmax, {2 * 4 * TOKENS} bytes per item",
        command=COMMAND,
        runs={"bytes": runs["full"], "tokens": TOKENS, "dim": DIM},
    )


def report_time(repeats: int) -> None:
    """Writes the time result; the variants take turns, so that a busy machine slows all alike."""
    states, table, targets, _ = problem(3_707)

    def step(loss: Callable[[], Tensor]) -> None:
        states.grad = table.grad = None
        loss().backward()

    variants: dict[str, Callable[[], Tensor]] = {
        "plain float32": lambda: loss_of("plain", states, table, targets, targets),
        "full_softmax float32": lambda: full_softmax(states, table, targets, precision="float32"),
        "full_softmax auto": lambda: full_softmax(states, table, targets),
    }
    runs: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(3):
        for name, loss in variants.items():
            runs[name] += milliseconds(lambda loss=loss: step(loss), repeats)  # type: ignore[misc]
    median = {name: statistics.median(times) for name, times in runs.items()}
    print({name: f"median {median[name]:.1f} ms, best {min(runs[name]):.1f} ms" for name in runs})
    write_result(
        claim="front-loss-time",
        value=round(median["full_softmax auto"], 1),
        unit="ms, forward and backward, 12,000 targets x 3,707 items x d 64, median",
        target="<= 79 ms (chunks with the gradient in the forward, bfloat16, on this kind of machine)",
        met=median["full_softmax auto"] <= 79,
        peer=f"plain F.cross_entropy, float32, in the same run: {median['plain float32']:.1f} ms",
        command=COMMAND,
        runs={"milliseconds": {name: [round(value, 2) for value in times] for name, times in runs.items()}},
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs=3, metavar=("LOSS", "ITEMS", "SEED"), help="one memory case in this process")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls a variant and turn (default 10)")
    arguments = parser.parse_args()
    if arguments.measure:
        name, items, seed = arguments.measure
        print(measure_memory(name, int(items), int(seed)))
        return
    report_memory()
    report_time(arguments.repeats)


if __name__ == "__main__":
    main()
