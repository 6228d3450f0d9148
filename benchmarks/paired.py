"""Is one model better than another on the same test queries? Reads run folders that are finished, trains nothing.

    python -m benchmarks.paired runs/sasrec-ml1m,runs/seed2 runs/hstu-ml1m-blind --claim sasrec-ml1m-blind-hstu-paired

Both sides are what ``recpod compare`` takes: a run, or its seeds; the difference of the mean NDCG@10 of the second side
over the first is quoted with its bootstrap interval over users. It is met where the whole interval is above 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.result_file import RESULTS, write_result
from pipelines.errors import ConfigError
from pipelines.evaluation.compare import compare_runs, find_runs

METRIC = "NDCG@10"


def report(base: str, other: str, claim: str, folder: Path) -> Path:
    """The result of one comparison.

    Raises:
        ConfigError: runs of ranking models, which have no NDCG.
        DataError: runs that were not asked the same questions.
    """
    found = compare_runs(find_runs(base), find_runs(other)).as_dict()
    by_metric = {one["metric"]: one for one in found["differences"]}
    if METRIC not in by_metric:
        raise ConfigError(f"the runs have no {METRIC}", where=base, fix="compare retrieval runs")
    one, hits = by_metric[METRIC], by_metric["HR@10"]
    return write_result(
        claim=claim,
        value=round(one["difference"], 4),
        unit=f"test {METRIC} more ({one['low']:.4f} to {one['high']:.4f}, p {one['p_value']:.4f}), HR@10 "
        f"{hits['difference']:.4f} more; paired by query, {found['queries']:,} queries, {found['protocol']}: "
        f"{found['run_b']} ({one['b']:.4f})",
        target="> 0 with its whole 95% interval",
        met=one["low"] > 0,
        peer=f"{found['run_a']} ({one['a']:.4f})",
        command=f"python -m benchmarks.paired {_folders(base)} {_folders(other)} --claim {claim}",
        runs=found,
        folder=folder,
    )


def _folders(side: str) -> str:
    """The runs of a side as a command takes them where they lie in runs/."""
    return ",".join(f"runs/{path.name}" for path in find_runs(side))


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a run folder, or its seeds: a,b or 'a-seed-*'")
    parser.add_argument("other", help="as base")
    parser.add_argument("--claim", required=True, help="name of the result file")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    print(report(options.base, options.other, options.claim, options.out))


if __name__ == "__main__":
    main()
