"""Full ranking, given user states: users a second on two threads.

Run: ``python -m benchmarks.full_ranking`` (about a minute). Writes ``front-full-ranking-users-per-second.json``.

States and item vectors are normal, 3,706 items at d = 64 as on ML-1M; each user has 165 seen items that do not
compete (the mean history of ML-1M). The peers in the same run score everybody at once and take the ten best
(``topk``), or sort. They do less: no seen items, and a top ten says nothing about a target that is not in it. The
variants take turns, so that a busy machine slows all alike; every round is in the file.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.result_file import write_result
from models.batch import Jagged
from models.popularity import Popularity
from pipelines.evaluation.ranking import count_ranks

ITEMS, WIDTH, HISTORY, TARGET = 3_706, 64, 165, 100_000


class Table(Popularity):
    """A task that is nothing but item vectors ``[ITEMS + 1, WIDTH]``."""

    def __init__(self, vectors: torch.Tensor) -> None:
        super().__init__(torch.zeros(len(vectors)))
        self.counts = vectors


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=24_160, help="four times ML-1M's 6,040 (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="times each variant has its turn (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    users = options.users
    states = torch.randn(users, WIDTH, generator=generator)
    task = Table(torch.randn(ITEMS + 1, WIDTH, generator=generator))
    targets = torch.randint(1, ITEMS + 1, (users,), generator=generator)
    seen = Jagged(
        torch.randint(1, ITEMS + 1, (users * HISTORY,), generator=generator), torch.arange(users + 1) * HISTORY
    )
    table = task.counts[1:]
    variants: dict[str, Callable[[], object]] = {
        "ranks, seen excluded": lambda: count_ranks(task, states, targets, seen),
        "ranks, nothing excluded": lambda: count_ranks(task, states, targets),
        "matrix product alone": lambda: states @ table.T,
        "topk(10) of the full matrix": lambda: (states @ table.T).topk(10),
        "sort of the full matrix": lambda: (states[:2048] @ table.T).sort(descending=True),
    }
    scored = dict.fromkeys(variants, users) | {"sort of the full matrix": min(users, 2048)}
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for variant in variants.values():
        variant()
    for _ in range(options.rounds):
        for name, variant in variants.items():
            speeds[name].append(scored[name] / seconds(variant))
    for name, values in speeds.items():
        print(f"{name:30} median {statistics.median(values):>10,.0f} users/s   best {max(values):>10,.0f}")
    median = {name: statistics.median(values) for name, values in speeds.items()}
    value = median["ranks, seen excluded"]
    write_result(
        claim="front-full-ranking-users-per-second",
        value=round(value),
        unit="users/s x 3,706 items, d = 64, given user states, seen items excluded, median",
        target=f">= {TARGET:,} on two cores",
        met=value >= TARGET,
        peer=f"torch.topk(10) of the full score matrix in the same run: {median['topk(10) of the full matrix']:,.0f}; "
        f"sorting it: {median['sort of the full matrix']:,.0f}",
        command="python -m benchmarks.full_ranking",
        runs={name: [round(speed) for speed in values] for name, values in speeds.items()},
    )


if __name__ == "__main__":
    main()
