"""ML-1M to convergence, aware and blind, as result files: reads run folders that are finished, trains nothing.

    RECPOD_MIRROR=FOLDER ./runpod_entrypoint.sh --test-ml1m --debug
    RECPOD_MIRROR=FOLDER ./runpod_entrypoint.sh --test-ml1m --debug --set name=ml1m-blind --set model.query_time=blind
    python -m benchmarks.ml1m runs/ml1m runs/ml1m-blind --tried N
    RECPOD_MIRROR=FOLDER ./runpod_entrypoint.sh --config configs/runs/sasrec-ml1m.yaml
    python -m benchmarks.ml1m runs/sasrec-ml1m --tried N

Which run is which stands in its own metrics and protocol card. Several runs of one kind (seeds) are all kept; their
mean is the value. ``--tried`` says how many configurations were compared, on validation only, before this one was
chosen. Writes ``front-ml1m-aware``, ``front-ml1m-blind`` and ``sasrec-ml1m-blind``.
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

# Claim and targets of each model: SS4Rec's are the plan's; SASRec's what RecTools reports for it on 3,706 items.
CLAIMS = {
    "ss4rec": ("front-ml1m", {"HR@10": 0.25, "NDCG@10": 0.20}),
    "sasrec": ("sasrec-ml1m", {"HR@10": 0.3058, "NDCG@10": 0.1779}),
}
MASKED, OPEN = "loo-full-masked", "loo-full"
FRONT_DOOR = "RECPOD_MIRROR=$RECPOD_MIRROR ./runpod_entrypoint.sh"
COMMANDS = {
    ("ss4rec", "aware"): f"{FRONT_DOOR} --test-ml1m --debug",
    ("ss4rec", "blind"): f"{FRONT_DOOR} --test-ml1m --debug --set name=ml1m-blind --set model.query_time=blind",
    ("sasrec", "blind"): f"{FRONT_DOOR} --config configs/runs/sasrec-ml1m.yaml",
}


def summary(path: Path) -> dict[str, Any]:
    """What a run folder says: protocol card, test and validation values, baseline, epochs, hours.

    Raises:
        RunError: the run is not evaluated, or not under both protocols.
    """
    folder = RunFolder(path)
    metrics = read_json(folder.metrics)
    if not metrics:
        raise RunError("the run has no metrics.json", where=str(path), fix="let it end first")
    if metrics["protocol"]["name"] != MASKED or OPEN not in metrics["also"]:
        raise RunError(f"the run was not evaluated under {MASKED} and also {OPEN}", where=str(path))
    environment = read_json(folder.environment)
    return {
        "run": path.name,
        "model": metrics["model"]["name"],
        "protocol": metrics["protocol"],
        "test": {MASKED: metrics["test"], OPEN: metrics["also"][OPEN]["test"]},
        "popularity": {MASKED: metrics["baselines"]["popularity"], OPEN: metrics["also"][OPEN]["popularity"]},
        "intervals_95": metrics.get("intervals", {}).get("test", {}),
        "asked_otherwise": {name: asked["test"] for name, asked in metrics["also"].items() if name != OPEN},
        "valid": metrics["valid"],
        "gate": metrics["gate"],
        "epochs": metrics["training"]["epochs"],
        "ended": metrics["training"]["ended"],
        "hours": round(metrics["training"]["seconds"] / 3600, 3),
        "trained_on": {key: environment.get(key) for key in ("machine", "versions", "commit", "kernels")},
    }


def report(model: str, kind: str, runs: Sequence[dict[str, Any]], tried: int, folder: Path) -> Path:
    """The result of one kind of a model, ``aware`` or ``blind``."""
    claim, targets = CLAIMS[model]
    mean = {
        (name, metric): statistics.fmean(run["test"][name][metric] for run in runs)
        for name in (MASKED, OPEN)
        for metric in targets
    }
    first = runs[0]
    valid = statistics.fmean(run["valid"]["NDCG@10"] for run in runs)
    text = (
        f"test NDCG@10, HR@10 {mean[MASKED, 'HR@10']:.4f} ({MASKED}); seen items not masked: NDCG@10 "
        f"{mean[OPEN, 'NDCG@10']:.4f}, HR@10 {mean[OPEN, 'HR@10']:.4f}; validation NDCG@10 {valid:.4f}; "
        f"query-time {kind}, {first['protocol']['catalogue_items']} items, mean of {len(runs)} seed(s), {tried} "
        f"configuration(s) tried, {'/'.join(str(run['epochs']) for run in runs)} epochs, "
        f"{'/'.join(format(run['hours'], '.2f') for run in runs)} h"
    )
    popularity = first["popularity"][MASKED]
    return write_result(
        claim=f"{claim}-{kind}",
        value=round(mean[MASKED, "NDCG@10"], 4),
        unit=text,
        target=f"> {targets['NDCG@10']:g} (and HR@10 > {targets['HR@10']:g})",
        met=all(mean[MASKED, metric] > least for metric, least in targets.items()),
        peer=f"popularity in the same run: NDCG@10 {popularity['NDCG@10']:.4f}, HR@10 {popularity['HR@10']:.4f}",
        command=COMMANDS[model, kind],
        runs={"configurations_tried": tried, "runs": list(runs)},
        folder=folder,
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="run folders, aware and blind in any order")
    parser.add_argument("--tried", type=int, required=True, help="configurations compared on validation")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in map(summary, options.folders):
        kinds.setdefault((run["model"], run["protocol"]["query_time"]), []).append(run)
    for (model, kind), runs in kinds.items():
        print(report(model, kind, runs, options.tried, options.out))


if __name__ == "__main__":
    main()
