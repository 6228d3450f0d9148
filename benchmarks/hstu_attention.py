"""HSTU's attention on the CPU against the same formula on padded rows, its memory, and what recomputing saves.

Run: ``python -m benchmarks.hstu_attention [--out FOLDER]`` (about three minutes on two cores). Writes:

* ``hstu-attention-cpu-speed``: processor time of forward and backward at ML-1M's lengths, against plain PyTorch on
  rectangles ``[B, H, L, L]`` with the same masks and bias tables; both in turn, so that a busy machine slows both.
* ``hstu-attention-memory``: bytes a token needs at the peak of forward and backward, rows of 512 to 4,096 tokens.
* ``hstu-recompute-memory``: peak of a training step of 8 blocks with the input norm and SiLU kept and made again.

Memory is the process' own, each case in a fresh process: see benchmarks/loss_memory.py.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.loss_memory import status_bytes
from benchmarks.result_file import RESULTS, write_result
from models.batch import Jagged, SequenceBatch
from models.hstu import HSTU, HSTUOptions
from models.kernels.hstu_attention import AttentionMask, RelativeBias, hstu_attention, time_bucket

TENTHS = (20, 29, 41, 57, 78, 106, 145, 200, 200, 200)  # middles of the tenths of ML-1M's training lengths, at most 200
ROWS, N, SPEED_TARGET = 128, 200, 3.0
SHAPES = ((1, 64), (2, 32))  # heads, width of a head
BIASES = ("none", "position", "position_time")
LENGTHS = (512, 1024, 2048, 4096)
COMMAND = "python -m benchmarks.hstu_attention"


class Problem:
    """Inputs of one attention layer.

    Args:
        lengths: tokens of each row.
        heads: of attention.
        width: of a head.
        bias: ``none``, ``position`` or ``position_time``.
    """

    def __init__(self, lengths: list[int], heads: int, width: int, bias: str) -> None:
        random = torch.Generator().manual_seed(0)
        self.offsets, self.longest = torch.tensor([0, *lengths]).cumsum(0), max(lengths)
        tokens = int(self.offsets[-1])
        self.mixed = torch.randn(tokens, heads, 4 * width, generator=random).requires_grad_()
        self.position = torch.randn(2 * N - 1, generator=random).requires_grad_() if bias != "none" else None
        self.time = torch.randn(128, generator=random).requires_grad_() if bias == "position_time" else None
        # half of the events come in the same second as the one before, as in ML-1M
        gaps = torch.randint(0, 9, (tokens,), generator=random) ** 5 * torch.randint(0, 2, (tokens,), generator=random)
        self.times = gaps.cumsum(0)
        self.next_times = self.times + gaps.roll(-1)
        self.seen = AttentionMask().seen(self.offsets, tokens)

    def ours(self) -> Tensor:
        """The project's path for this machine."""
        _, v, q, k = self.mixed.chunk(4, dim=2)
        bias = RelativeBias(self.position, self.time, self.times, self.next_times)
        return hstu_attention(q, k, v, self.offsets, max_length=N, mask=self.seen, bias=bias)

    def padded(self) -> Tensor:
        """The formula on rectangles, by PyTorch's own operations."""
        _, v, q, k = self.mixed.chunk(4, dim=2)
        q, k, v = (Jagged(x, self.offsets).to_padded(self.longest).transpose(1, 2) for x in (q, k, v))  # [B, H, L, d]
        scores = q @ k.transpose(-1, -2)
        places = torch.arange(self.longest)
        if self.position is not None:
            apart = (places[:, None] - places[None, :]).clamp(1 - N, N - 1)
            scores = scores + self.position[apart + N - 1]
        if self.time is not None:
            own, following = (Jagged(x, self.offsets).to_padded(self.longest) for x in (self.times, self.next_times))
            buckets = time_bucket(following[:, :, None] - own[:, None, :], 128)
            scores = scores + self.time[buckets][:, None]
        weights = functional.silu(scores) / N * torch.ones(self.longest, self.longest, dtype=torch.bool).tril()
        return Jagged.from_padded((weights @ v).transpose(1, 2), self.offsets).values

    def step(self, function: Callable[[], Tensor]) -> None:
        """Forward and backward."""
        leaves = [leaf for leaf in (self.mixed, self.position, self.time) if leaf is not None]
        out = function()
        torch.autograd.grad(out, leaves, torch.ones_like(out))


def measure_speed(heads: int, width: int, bias: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of processor time of both, each run; the first two, which compile and allocate, are left out.

    Raises:
        SystemExit: the two do not compute the same.
    """
    problem = Problem([TENTHS[row % len(TENTHS)] for row in range(ROWS)], heads, width, bias)
    with torch.no_grad():
        difference = float((problem.ours() - problem.padded()).abs().max())
    if difference > 1e-4:
        raise SystemExit(f"ours and the padded formula differ by {difference:.1e}: there is nothing to compare")
    found: dict[str, list[float]] = {"ours": [], "padded": []}
    for repeat in range(repeats + 2):
        for name, function in (("ours", problem.ours), ("padded", problem.padded)):
            begin = time.process_time()
            problem.step(function)
            if repeat > 1:
                found[name].append((time.process_time() - begin) * 1e3)
    return found


def report_speed(out: Path, repeats: int) -> None:
    """Writes ``hstu-attention-cpu-speed``: the authors' bias, the worse of the shapes."""
    runs = {
        f"{heads} x {width}, bias {bias}": measure_speed(heads, width, bias, repeats)
        for heads, width in SHAPES
        for bias in BIASES
    }
    ratios = {name: statistics.median(v["padded"]) / statistics.median(v["ours"]) for name, v in runs.items()}
    print({name: round(ratio, 2) for name, ratio in ratios.items()}, flush=True)
    value = min(ratio for name, ratio in ratios.items() if name.endswith("position_time"))
    unbiased = ", ".join(f"{ratio:.2f} ({name.partition(',')[0]})" for name, ratio in ratios.items() if "none" in name)
    write_result(
        claim="hstu-attention-cpu-speed",
        value=round(value, 3),
        unit="times the padded formula's processor time, forward and backward, medians, bias by position and time, "
        f"the smaller of {' and '.join(f'{h} head(s) of {w}' for h, w in SHAPES)}; without bias {unbiased}",
        target=f">= {SPEED_TARGET:.0f}",
        met=value >= SPEED_TARGET,
        peer="the same formula in plain PyTorch on rows padded to 200, in the same process and in turn",
        command=COMMAND,
        runs={"milliseconds": runs, "ratios": ratios, "threads": torch.get_num_threads()},
        folder=out,
    )


def peak_of(step: Callable[[], object]) -> int:
    """Bytes that ``step`` needs at its peak beyond what is in use; what malloc has kept of earlier work goes back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    step()
    return status_bytes("VmHWM") - before


def attention_peak(length: int, rows: int = 16) -> int:
    """Bytes of one forward and backward over ``rows`` of ``length`` tokens, 2 heads of 32; in this process."""
    small, problem = Problem([64], 2, 32, "position_time"), Problem([length] * rows, 2, 32, "position_time")
    small.step(small.ours)
    return peak_of(lambda: problem.step(problem.ours))


def training_peak(norm: bool, silu: bool, blocks: int = 8) -> int:
    """Bytes of a training step on 128 rows of 200 tokens; in this process."""
    torch.manual_seed(0)
    task = HSTU(3706, HSTUOptions(blocks=blocks, recompute_norm=norm, recompute_silu=silu)).train()

    def batch(rows: int) -> SequenceBatch:
        tokens = rows * 200
        times, targets = torch.arange(tokens), torch.randint(1, 3707, (tokens,))
        offsets = torch.arange(0, tokens + 1, 200)
        items = torch.randint(1, 3707, (tokens,))
        made = SequenceBatch(offsets, items, times, targets, times[offsets[1:] - 1] + 1, torch.arange(rows))
        return replace(made, all_targets=True)

    def step(on: SequenceBatch) -> None:
        task.loss(on).sum.backward()  # type: ignore[no-untyped-call]
        task.zero_grad(set_to_none=True)

    step(batch(2))
    whole = batch(128)
    return peak_of(lambda: step(whole))


def in_fresh_process(*arguments: object) -> int:
    """``--measure ARGUMENTS`` in a process of its own, which gives freed blocks back at once."""
    command = [sys.executable, "-m", "benchmarks.hstu_attention", "--measure", *map(str, arguments)]
    frugal = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **frugal})
    return int(json.loads(done.stdout))


def report_memory(out: Path) -> None:
    """Writes ``hstu-attention-memory`` and ``hstu-recompute-memory``."""
    tokens = {length: in_fresh_process("attention", length) / (16 * length) for length in LENGTHS}
    growth = tokens[LENGTHS[-1]] / tokens[LENGTHS[0]]
    print("bytes a token", tokens, flush=True)
    write_result(
        claim="hstu-attention-memory",
        value=round(growth, 3),
        unit="bytes a token at the peak of forward and backward: rows of 4,096 against rows of 512",
        target="<= 1.25",
        met=growth <= 1.25,
        peer="a tensor of scores would make it 8",
        command=COMMAND,
        runs={"bytes_a_token": tokens},
        folder=out,
    )
    flags = {"kept": (0, 0), "norm again": (1, 0), "silu again": (0, 1), "both again": (1, 1)}
    peaks = {name: [in_fresh_process("training", *flag) for _ in range(3)] for name, flag in flags.items()}
    share = statistics.median(peaks["both again"]) / statistics.median(peaks["kept"])
    print("peaks", peaks, flush=True)
    write_result(
        claim="hstu-recompute-memory",
        value=round(share, 3),
        unit="share of the peak of a training step (8 blocks, d 64, 128 rows of 200) that is left, medians",
        target="< 1",
        met=share < 1,
        peer="the same step with the input norm and SiLU kept",
        command=COMMAND,
        runs={"bytes": peaks},
        folder=out,
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        kind, *numbers = options.measure
        print(
            json.dumps(
                attention_peak(int(numbers[0])) if kind == "attention" else training_peak(*map(bool, map(int, numbers)))
            )
        )
        return
    report_speed(options.out, options.repeats)
    report_memory(options.out)


if __name__ == "__main__":
    main()
