"""Ranking runs to convergence as result files: reads run folders that are finished, trains nothing.

    RECPOD_MIRROR=FOLDER ./runpod_entrypoint.sh --config configs/runs/ranking-ml1m.yaml
    python -m benchmarks.ranking_auc runs/ranking-ml1m

Several runs are seeds: all are kept, their mean is the value. The peer is the baseline of the same runs, each item's
average answer in the training events. Writes ``hstu-ml1m-ranking-auc``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.result_file import RESULTS, write_result
from pipelines.errors import RunError
from pipelines.run_folder import RunFolder, read_json

CLAIMS = {"ranking-ml1m": "hstu-ml1m-ranking-auc"}
METRIC = "AUC"


def summary(path: Path) -> dict[str, Any]:
    """What a run folder says.

    Raises:
        RunError: the run is not evaluated, or is no ranking run that a claim is made for.
    """
    folder = RunFolder(path)
    metrics = read_json(folder.metrics)
    if not metrics:
        raise RunError("the run has no metrics.json", where=str(path), fix="let it end first")
    if metrics["recipe"] not in CLAIMS:
        what = f"no claim is made for recipe '{metrics['recipe']}'"
        raise RunError(what, where=path.name, fix=f"known: {', '.join(CLAIMS)}")
    environment = read_json(folder.environment)
    kept = ("recipe", "protocol", "test", "valid", "baselines", "intervals", "asked", "model")
    return {
        "run": path.name,
        **{key: metrics[key] for key in kept},
        "epochs": metrics["training"]["epochs"],
        "hours": round(metrics["training"]["seconds"] / 3600, 3),
        "trained_on": {key: environment.get(key) for key in ("machine", "versions", "commit", "kernels")},
    }


def report(recipe: str, runs: Sequence[dict[str, Any]], folder: Path) -> Path:
    """The result of a recipe: the mean over its runs, which differ by their seeds."""
    card = runs[0]["protocol"]
    (name, baseline), *_ = runs[0]["baselines"].items()
    mean = {metric: statistics.fmean(run["test"][metric] for run in runs) for metric in runs[0]["test"]}
    others = ", ".join(f"{metric} {value:.4f}" for metric, value in mean.items() if metric != METRIC)
    low, high = runs[0]["intervals"]["test"][METRIC]
    return write_result(
        claim=CLAIMS[recipe],
        value=round(mean[METRIC], 4),
        unit=f"test {METRIC} [{low:.4f}, {high:.4f} over users], {others}; {card['name']}, {card['asked_events']}, "
        f"{runs[0]['asked']['test']:,} events of {card['users']:,} users, query-time {card['query_time']}, mean of "
        f"{len(runs)} seed(s), {'/'.join(str(run['epochs']) for run in runs)} epochs",
        target=f"> {baseline[METRIC]:.4f} (the baseline; none is published under this protocol)",
        met=mean[METRIC] > baseline[METRIC],
        peer=f"{name} in the same run: {', '.join(f'{metric} {value:.4f}' for metric, value in baseline.items())}",
        command=f"RECPOD_MIRROR=$RECPOD_MIRROR ./runpod_entrypoint.sh --config configs/runs/{recipe}.yaml",
        runs={"runs": list(runs)},
        folder=folder,
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="finished run folders of one recipe or several")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in map(summary, options.folders):
        runs.setdefault(run["recipe"], []).append(run)
    for recipe, seeds in runs.items():
        print(report(recipe, seeds, options.out))


if __name__ == "__main__":
    main()
