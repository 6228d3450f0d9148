"""Time and memory of preparing a file of MovieLens 20M's shape, and of opening the store.

    python -m benchmarks.prepare_ml20m [--runs 5] [--rows 20000263] [--work FOLDER]

The data are SYNTHETIC: a ratings.csv in GroupLens's layout with 20,000,263 rows, 138,493 users and 27,278 items,
long-tailed in both, sorted by user and then by film as the real one is, so that every user's times are out of order. (A
pair of user and film may repeat, which the real file does not have and which costs nothing either way.) Each run is a
fresh process that goes through the project's own path (checksum, reader, store); its wall time includes the start of
Python and all imports, its peak memory is the resident set that the kernel reports for it, file-backed pages included.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.result_file import write_result

ROWS, USERS, ITEMS, HIGHEST_ITEM = 20_000_263, 138_493, 27_278, 131_262
_COMMAND = "python -m benchmarks.prepare_ml20m"

_PREPARE = """
import sys
from pathlib import Path
from pipelines.data.dataset_store import dataset_store
from pipelines.data.datasets import DatasetSpec
spec = DatasetSpec(name="ml-20m-synthetic", format="movielens", path=Path(sys.argv[1]))
store = dataset_store(spec, Path(sys.argv[2]))
print(store.path, store.num_users, store.num_items, store.num_events)
"""
_PANDAS = """
import sys
from pathlib import Path
import numpy as np
import pandas as pd
table = pd.read_csv(sys.argv[1]).sort_values(["userId", "timestamp"], kind="stable")
folder = Path(sys.argv[2])
folder.mkdir()
users, counts = np.unique(table.userId.to_numpy(), return_counts=True)
items, codes = np.unique(table.movieId.to_numpy(), return_inverse=True)
np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]))
np.save(folder / "items.npy", (codes + 1).astype(np.int32))
np.save(folder / "timestamps.npy", table.timestamp.to_numpy())
np.save(folder / "ratings.npy", table.rating.to_numpy(np.float32))
print(folder)
"""
_GENERATE = """
import sys
from pathlib import Path
from benchmarks.prepare_ml20m import generate
generate(Path(sys.argv[1]), int(sys.argv[2]))
"""
_OPEN = """
import sys, time
from pathlib import Path
from pipelines.data.store import SequenceStore
begin = time.perf_counter()
store = SequenceStore.open(Path(sys.argv[1]))
print(time.perf_counter() - begin)
"""


def generate(path: Path, rows: int, seed: int = 20) -> None:
    """Write a synthetic ratings.csv of ``rows`` rows; users and items shrink with it."""
    import polars as pl

    rng = np.random.default_rng(seed)
    users, items = max(rows * USERS // ROWS, 2), max(rows * ITEMS // ROWS, 2)
    wanted = rng.lognormal(mean=4.2, sigma=1.15, size=users)
    lengths = np.maximum((wanted * (rows - 20 * users) / wanted.sum()).astype(np.int64) + 20, 1)
    lengths[np.argmax(lengths)] += rows - lengths.sum()
    user = np.repeat(np.arange(1, users + 1), lengths)
    popularity = 1.0 / (np.arange(items) + 30.0) ** 1.15
    rank = np.searchsorted(np.cumsum(popularity) / popularity.sum(), rng.random(rows)).clip(max=items - 1)
    rank[rng.choice(rows, items, replace=False)] = np.arange(items)  # every item occurs
    ids = np.sort(rng.choice(np.arange(1, max(HIGHEST_ITEM, items) + 1), items, replace=False))
    item = rng.permutation(ids)[rank]
    start = rng.integers(789_652_009, 1_400_000_000, users)  # the real file's first rating is of 9 January 1995
    time_of = np.repeat(start, lengths) + rng.integers(0, 40 * 86_400, rows) // 30 * 30  # multiples of 30 s: many ties
    by_user_and_item = np.argsort(user * (HIGHEST_ITEM + items) + item, kind="stable")
    columns = {
        "userId": user,
        "movieId": item[by_user_and_item],
        "rating": rng.integers(1, 11, rows) / 2,
        "timestamp": time_of,
    }
    pl.DataFrame(columns).write_csv(path)


def run_child(code: str, *arguments: str) -> tuple[str, float, float]:
    """Output, wall seconds and peak resident bytes of a fresh Python process."""
    begin = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - begin
    if child.returncode:
        raise SystemExit(f"the measured process ended with code {child.returncode}")
    return output.strip(), wall, usage.ru_maxrss * 1024.0


def main() -> None:
    """Generate, measure, write the result files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--rows", type=int, default=ROWS, help="fewer for a trial; result files are written for the full size only"
    )
    parser.add_argument("--work", type=Path, default=None, help="folder for the file and the stores (about 1.5 GB)")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="prepare-ml20m-", dir=options.work))
    walls, peaks, opens = [], [], []
    try:
        ratings = work / "ratings.csv"
        run_child(_GENERATE, str(ratings), str(options.rows))  # apart: a child's peak starts at its parent's size
        print(f"{ratings.name}: {ratings.stat().st_size / 1e6:.0f} MB, {options.rows:,} synthetic rows", flush=True)
        for run in range(options.runs):
            shutil.rmtree(work / "cache", ignore_errors=True)
            output, wall, peak = run_child(_PREPARE, str(ratings), str(work / "cache"))
            folder, users, _, events = output.rsplit(" ", 3)
            assert int(events) == options.rows, output
            walls.append(wall)
            peaks.append(peak / 1e9)
            opens.append(float(run_child(_OPEN, folder)[0]) * 1000)
            print(
                f"run {run + 1}: {wall:.2f} s, {peaks[-1]:.2f} GB; open {opens[-1]:.2f} ms; {users} users",
                flush=True,
            )
        _, seconds, peak = run_child(_PANDAS, str(ratings), str(work / "pandas"))
        pandas = (seconds, peak / 1e9)
        print(f"pandas: {pandas[0]:.2f} s, {pandas[1]:.2f} GB")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if options.rows == ROWS:
        report(walls, peaks, opens, pandas)


def report(walls: list[float], peaks: list[float], opens: list[float], pandas: tuple[float, float]) -> None:
    """Write the three result files."""
    wall = statistics.median(walls)
    write_result(
        claim="front-prepare-ml20m-seconds",
        value=round(wall, 2),
        unit="s, whole process, 20,000,263 synthetic rows in MovieLens 20M's layout, median",
        target="< 40",
        met=wall < 40,
        peer=f"pandas read_csv, stable sort and numpy.unique in the same run: {pandas[0]:.2f} s",
        command=_COMMAND,
        runs=[round(value, 3) for value in walls],
    )
    write_result(
        claim="front-prepare-ml20m-memory",
        value=round(max(peaks), 3),
        unit="GB (10^9 bytes), peak resident set of the process, largest run",
        target="< 4",
        met=max(peaks) < 4,
        peer=f"pandas read_csv, stable sort and numpy.unique in the same run: {pandas[1]:.2f} GB",
        command=_COMMAND,
        runs=[round(value, 3) for value in peaks],
    )
    write_result(
        claim="front-open-store",
        value=round(max(opens), 3),
        unit="ms, a store of 20,000,263 events in a fresh process, imports apart, slowest run",
        target="< 50",
        met=max(opens) < 50,
        peer="none",
        command=_COMMAND,
        runs=[round(value, 3) for value in opens],
    )


if __name__ == "__main__":
    main()
