"""HSTU training from one process to two on this CPU: tokens a second, each process on one thread.

    .venv/bin/python -m benchmarks.hstu_scaling [--steps 30] [--rounds 3] [--tensor] [--write]

One and two processes take turns, round by round, so that what else the machine does meets both. Both train on the same
global batches (synthetic histories of 20 to 200 events, 64 rows, 2 blocks of width 64 with 2 heads) through the plain
trainer's own functions: the batch is dealt by length^2, gradients are exchanged by DDP over gloo. The load average is
kept with each round: where other work takes the cores, the ratio says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from benchmarks.result_file import write_result
from models.batch import SequenceBatch
from models.hstu import HSTU, HSTUOptions
from models.losses import LossOptions
from pipelines.data.dealing import deal_balanced
from pipelines.training.dense.options import ParallelOptions
from pipelines.training.distributed import World, process_group, shared_loss

ITEMS, ROWS, LONGEST, WARM = 3706, 64, 200, 3
OPTIONS = HSTUOptions(hidden=64, blocks=2, heads=2, loss=LossOptions(name="sampled_softmax", num_negatives=512))


def make_batch(step: int, world: World) -> SequenceBatch:
    """This process' share of global batch ``step``."""
    generator = np.random.default_rng(step)
    lengths = np.minimum(generator.lognormal(4.4, 0.8, ROWS).astype(np.int64) + 20, LONGEST)
    starts = np.cumsum(lengths) - lengths
    items = generator.integers(1, ITEMS + 1, int(lengths.sum()) + 1)
    times = np.sort(generator.integers(0, 10**8, len(items)))
    rows = deal_balanced(np.arange(ROWS), lengths, world.rank, world.size)
    index = np.concatenate([np.arange(starts[row], starts[row] + lengths[row]) for row in rows])
    offsets = np.concatenate([[0], np.cumsum(lengths[rows])])
    return SequenceBatch(
        offsets=torch.from_numpy(offsets),
        items=torch.from_numpy(items[index]),
        timestamps=torch.from_numpy(times[index]),
        targets=torch.from_numpy(items[index + 1]),
        request_time=torch.from_numpy(times[index[offsets[1:] - 1] + 1]),
        user_index=torch.from_numpy(rows),
        all_targets=True,
    )


def train(world: World, steps: int, tensor: int) -> float:
    """Tokens a second of the whole, over ``steps`` updates after some to warm up."""
    torch.manual_seed(0)
    task = HSTU(ITEMS, OPTIONS)
    dealt = world
    if tensor > 1:
        from pipelines.training.dense.parallel_hstu import ParallelBlocks, process_mesh

        parallel = ParallelOptions(tensor=tensor)
        task.blocks = nn.ModuleList([ParallelBlocks(task.blocks, parallel, process_mesh(parallel, "cpu")["tensor"])])
        dealt = World()
    loss = shared_loss(task, dealt)
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-3, fused=True)
    batches = [make_batch(step, dealt) for step in range(WARM + steps)]
    tokens = begin = 0.0
    for step, batch in enumerate(batches):
        if step == WARM:
            begin, tokens = time.perf_counter(), 0.0
        optimizer.zero_grad()
        output = loss(batch)
        output.sum.backward()
        _, (count,) = dealt.add_up(torch.zeros((), dtype=torch.float64), output.count)
        gradients: list[Tensor] = [p.grad for p in task.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, count / dealt.size)
        optimizer.step()
        tokens += count
    return tokens / (time.perf_counter() - begin)


def member(rank: int, size: int, port: int, steps: int, tensor: int, answer: Path) -> None:
    """One of ``size`` processes; the first writes its figure."""
    os.environ |= {"RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    world = World(rank, size, rank)
    with process_group(world):
        speed = train(world, steps, tensor)
    if world.first:
        answer.write_text(json.dumps(speed), encoding="utf-8")


def measure(size: int, steps: int, tensor: int = 1) -> float:
    """Tokens a second of ``size`` processes."""
    with socket.socket() as probe, TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port, answer = probe.getsockname()[1], Path(folder) / "speed.json"
        probe.close()
        start_processes(member, args=(size, port, steps, tensor, answer), nprocs=size, start_method="fork")
        return float(json.loads(answer.read_text(encoding="utf-8")))


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write a result file where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tensor", action="store_true", help="also two processes that share each block (extra hstu)")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/hstu-scaling-two-processes.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = []
    for number in range(options.rounds):
        run = {"one": measure(1, options.steps), "two": measure(2, options.steps)}
        if options.tensor:
            run["two_tensor_parallel"] = measure(2, options.steps, tensor=2)
        run["load_average"] = os.getloadavg()[0]
        runs.append(run)
        print(f"round {number + 1}: " + ", ".join(f"{name} {value:,.1f}" for name, value in run.items()), flush=True)
    ratio = statistics.median(run["two"] / run["one"] for run in runs)
    print(f"two processes train {ratio:.2f} times as fast as one")
    if options.write:
        write_result(
            claim="hstu-scaling-two-processes",
            value=round(ratio, 3),
            unit="tokens per second of two processes over one, one thread each; median of the rounds",
            target=">= 1.6",
            met=ratio >= 1.6,
            peer="the same trainer as one process",
            command=f"python -m benchmarks.hstu_scaling {' '.join(arguments)}",
            runs=runs,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
