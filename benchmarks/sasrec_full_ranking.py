"""Full-ranking evaluation of SASRec, encoder included, in users per second: against RecTools and RecBole.

    RECPOD_MIRROR=FOLDER python -m benchmarks.sasrec_full_ranking [--rounds 3] [--peers ENVIRONMENT]

All rank the whole catalogue for every user of ML-1M with a SASRec of d 64, 2 blocks, 2 heads and histories of 200,
weights untrained, and take turns:

* ``ours``: the evaluator on the test queries: batches from the store, encoder, exact rank of each target among all
  unseen items, metrics.
* ``RecTools``: its own ``recommend``, ten unseen items for each user. It gives no rank of a target that is not among
  the ten.
* ``RecBole, N rows``: its own ``evaluate`` of its leave-one-out test split, seen items competing; the fastest N counts.

RecTools needs an environment of its own: ``--peers``, made with pip where it is not yet there. Medians over rounds are
quoted. Writes ``sasrec-full-ranking-vs-rectools`` and ``sasrec-full-ranking-vs-recbole``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.peer_process import Peer, Turn
from benchmarks.result_file import write_result
from benchmarks.sasrec_train_speed import Bench, add_peer_options, measure, median_rates, raw, rectools_python
from models.losses import LossOptions
from models.sasrec import SASRecOptions
from pipelines import stages
from pipelines.config import load_config
from pipelines.evaluation.evaluator import evaluate
from pipelines.evaluation.protocols import get_protocol

COMMAND = "RECPOD_MIRROR=$RECPOD_MIRROR python -m benchmarks.sasrec_full_ranking"
RECBOLE_ROWS = (128, 512)
# Claim: what names of the peer's variants begin with, the ratio asked for, what the peer is.
CLAIMS = {
    "sasrec-full-ranking-vs-rectools": ("RecTools", 5.0, "RecTools' own recommend, k = 10, seen items filtered"),
    "sasrec-full-ranking-vs-recbole": ("RecBole", 20.0, "RecBole's own evaluate, full mode"),
}


class Ours:
    """The project's evaluator on the test queries.

    Args:
        bench: data and sizes.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench, self.task = bench, bench.task(LossOptions())
        self.parts: list[dict[str, float]] = []

    def turn(self) -> Turn:
        """All users once."""
        return Turn.of(self._evaluate)

    def _evaluate(self) -> int:
        found = evaluate(
            self.task,
            self.bench.store,
            self.bench.split.test,
            protocol=get_protocol("loo-full-masked"),
            max_length=self.bench.options.max_length,
        )
        parts = {"encode_seconds": found.encode_seconds, "rank_seconds": found.rank_seconds}
        self.parts.append({name: round(value, 4) for name, value in parts.items()})
        return found.num_queries


def turn_of(peer: Peer, users: int, **request: Any) -> Turn:
    """A peer's turn.

    Raises:
        SystemExit: it answers another number of users.
    """
    answer = peer.ask(request)
    if answer["users"] != users:
        raise SystemExit(f"{peer.module} answers {answer['users']:,} users, ours {users:,}")
    return Turn.from_answer(answer)


def turns_of(
    bench: Bench, ours: Ours, python: str | None, rows: tuple[int, ...], stack: ExitStack
) -> dict[str, Callable[[], Turn]]:
    """A function for each variant that takes its turn; ours has had one, a peer its fit or its first step."""
    users = len(bench.split.test)
    recbole = stack.enter_context(bench.recbole("evaluate", rows))
    rectools = None if python is None else stack.enter_context(bench.rectools("recommend", python))
    turns: dict[str, Callable[[], Turn]] = {"ours": ours.turn}
    if rectools is not None:
        asked = rectools
        print(f"RecTools is ready: {rectools.reply()}", flush=True)
        turns["RecTools"] = lambda: turn_of(asked, users)
    print(f"RecBole is ready: {recbole.reply()}", flush=True)
    for count in rows:
        turns[f"RecBole, {count} rows"] = lambda count=count: turn_of(  # type: ignore[misc]
            recbole, users, rows=count
        )
    ours.turn()
    ours.parts.clear()
    return turns


def report(bench: Bench, ours: Ours, taken: Mapping[str, list[Turn]], folder: Path) -> None:
    """A result file for each peer that was measured."""
    (median, cpu), users = median_rates(taken), len(bench.split.test)
    for name, (begin, target, words) in CLAIMS.items():
        peers = [peer for peer in median if peer.startswith(begin)]
        if not peers:
            print(f"{name}: not measured in this run")
            continue
        fastest = max(peers, key=lambda peer: median[peer])
        ratio = median["ours"] / median[fastest]
        path = write_result(
            claim=name,
            value=round(ratio, 2),
            unit=f"times the users/s, SASRec's encoder and ranking of the whole catalogue, {users:,} users, "
            f"{bench.store.manifest['source']['name']}, {bench.threads} threads, medians of {len(taken[fastest])}: "
            f"{median['ours']:,.0f} users/s, {users / median['ours']:.2f} s",
            target=f">= {target:g}",
            met=ratio >= target,
            peer=f"{words}, same sizes, data and machine, in the same run: {fastest} {median[fastest]:,.0f} users/s, "
            f"{users / median[fastest]:.2f} s; {cpu['ours'] / cpu[fastest]:.2f} times in seconds of the processor",
            command=COMMAND,
            runs={"turns": raw(taken), "parts_of_ours": ours.parts, "threads": bench.threads},
            folder=folder,
        )
        print(f"{path.name}: {ratio:.2f} times (target {target:g}), {cpu['ours'] / cpu[fastest]:.2f} by processor")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_peer_options(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recbole-rows", type=int, nargs="+", default=list(RECBOLE_ROWS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(COMMAND, flush=True)
    started, python = time.monotonic(), rectools_python(options)
    config = load_config("sasrec-ml1m", [f"dataset.name={options.dataset}"])
    with tempfile.TemporaryDirectory(prefix="sasrec-ranking-") as work, ExitStack() as stack:
        bench = Bench(stages.prepare(config), SASRecOptions(max_length=options.max_length), Path(work), options.threads)
        ours = Ours(bench)
        turns = turns_of(bench, ours, python, tuple(options.recbole_rows), stack)
        taken = measure(turns, options.rounds, "users/s", started + options.seconds)
        report(bench, ours, taken, options.out)


if __name__ == "__main__":
    main()
