"""Runs to convergence as result files: reads run folders that are finished, trains nothing.

    RECPOD_MIRROR=FOLDER ./runpod_entrypoint.sh --test-ml1m --debug
    RECPOD_MIRROR=FOLDER ./runpod_entrypoint.sh --test-ml1m --debug --set name=ml1m-blind --set model.query_time=blind
    python -m benchmarks.accuracy runs/ml1m runs/ml1m-blind --tried N
    RECPOD_MIRROR=FOLDER ./runpod_entrypoint.sh --config configs/runs/sasrec-ml1m.yaml --set seed=2 --set name=seed2
    python -m benchmarks.accuracy runs/sasrec-ml1m runs/seed2 --tried N

Which claim a run belongs to stands in its own metrics: its recipe, and whether it was told the time of the request.
Several runs of one claim are its seeds: all are kept, their mean is the value. ``--tried`` says how many configurations
were compared, on validation only, before this one was chosen.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.result_file import RESULTS, write_result
from pipelines.errors import RunError
from pipelines.run_folder import RunFolder, read_json

MASKED, OPEN = "loo-full-masked", "loo-full"
FRONT_DOOR = "RECPOD_MIRROR=$RECPOD_MIRROR ./runpod_entrypoint.sh"


@dataclass(frozen=True)
class Claim:
    """What the runs of a recipe are held against.

    Attributes:
        name: of the result file.
        hr: HR@10 to exceed, seen items masked.
        ndcg: NDCG@10 to exceed, seen items masked.
        published: whose figures these are, on the same catalogue.
        arguments: of the front door.
    """

    name: str
    hr: float
    ndcg: float
    published: str
    arguments: str

    @property
    def targets(self) -> dict[str, float]:
        """By metric."""
        return {"HR@10": self.hr, "NDCG@10": self.ndcg}


def _recipe(name: str) -> str:
    return f"--config configs/runs/{name}.yaml"


PLAN = "the plan's aim, no published figure"
BLIND = Claim(
    "front-ml1m-blind", 0.25, 0.20, PLAN, "--test-ml1m --debug --set name=ml1m-blind --set model.query_time=blind"
)
CLAIMS = {
    ("ml1m", "aware"): Claim("front-ml1m-aware", 0.25, 0.20, PLAN, "--test-ml1m --debug"),
    ("ml1m", "blind"): BLIND,
    ("ml1m-blind", "blind"): BLIND,
    ("sasrec-ml1m", "blind"): Claim(
        "sasrec-ml1m-blind", 0.3058, 0.1779, "SASRec with softmax as RecTools reports it", _recipe("sasrec-ml1m")
    ),
    ("sasrec-ml1m-3416", "blind"): Claim(
        "sasrec-ml1m-3416-blind",
        0.3152,
        0.1821,
        "SASRec with full softmax (with 3,000 negatives: HR@10 .3159, NDCG@10 .1857, the best of the time-blind)",
        _recipe("sasrec-ml1m-3416"),
    ),
    ("ml1m-blind-3416", "blind"): Claim(
        "front-ml1m-3416-blind",
        0.3159,
        0.1857,
        "SASRec with 3,000 negatives, the best of the time-blind on this catalogue",
        _recipe("ml1m-blind-3416"),
    ),
    ("hstu-ml1m", "aware"): Claim(
        "hstu-ml1m-aware",
        0.3097,
        0.1720,
        "HSTU of 2 layers as its authors report it (of 8: HR@10 .3294, NDCG@10 .1893; HSTU-large in RecTools: .3642, "
        ".2164, the best)",
        _recipe("hstu-ml1m"),
    ),
    ("hstu-large-ml1m", "aware"): Claim(
        "hstu-large-ml1m-aware",
        0.3294,
        0.1893,
        "HSTU of 8 layers as its authors report it (HSTU-large in RecTools: HR@10 .3642, NDCG@10 .2164, the best)",
        _recipe("hstu-large-ml1m"),
    ),
    ("hstu-large-ml1m-blind", "blind"): Claim(
        "hstu-large-ml1m-blind",
        0.3058,
        0.1779,
        "SASRec with softmax as RecTools reports it",
        _recipe("hstu-large-ml1m-blind"),
    ),
    ("hstu-ml1m-blind", "blind"): Claim(
        "hstu-ml1m-blind",
        0.3023,
        0.1718,
        "HSTU without the time bias in RecTools (SASRec there: .3058, .1779)",
        _recipe("hstu-ml1m-blind"),
    ),
    ("sasrec-beauty", "blind"): Claim(
        "sasrec-beauty-blind",
        0.0921,
        0.0531,
        "SASRec with sampled softmax (BSARec with softmax: HR@10 .1004, NDCG@10 .0609, the best)",
        _recipe("sasrec-beauty"),
    ),
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
        "recipe": metrics["recipe"],
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


def report(claim: Claim, runs: Sequence[dict[str, Any]], tried: int, folder: Path) -> Path:
    """The result of a claim: the mean over its runs, which differ by their seeds."""

    def values(protocol: str, metric: str) -> list[float]:
        return [run["test"][protocol][metric] for run in runs]

    def mean(protocol: str, metric: str) -> str:
        return f"{metric} {statistics.fmean(values(protocol, metric)):.4f}"

    def spread(metric: str) -> str:
        return f" ({min(values(MASKED, metric)):.4f} to {max(values(MASKED, metric)):.4f})" if len(runs) > 1 else ""

    ndcg, card = statistics.fmean(values(MASKED, "NDCG@10")), runs[0]["protocol"]
    valid = statistics.fmean(run["valid"]["NDCG@10"] for run in runs)
    text = (
        f"test NDCG@10{spread('NDCG@10')}, {mean(MASKED, 'HR@10')}{spread('HR@10')} ({MASKED}); seen items not masked: "
        f"{mean(OPEN, 'NDCG@10')}, {mean(OPEN, 'HR@10')}; validation NDCG@10 {valid:.4f}; query-time "
        f"{card['query_time']}, {card['catalogue_items']} items, mean of {len(runs)} seed(s), {tried} configuration(s) "
        f"tried, {'/'.join(str(run['epochs']) for run in runs)} epochs, "
        f"{'/'.join(format(run['hours'], '.2f') for run in runs)} h"
    )
    popularity = runs[0]["popularity"][MASKED]
    return write_result(
        claim=claim.name,
        value=round(ndcg, 4),
        unit=text,
        target=f"> {claim.ndcg:g} (and HR@10 > {claim.hr:g}): {claim.published}",
        met=all(statistics.fmean(values(MASKED, metric)) > least for metric, least in claim.targets.items()),
        peer=f"popularity in the same run: NDCG@10 {popularity['NDCG@10']:.4f}, HR@10 {popularity['HR@10']:.4f}",
        command=f"{FRONT_DOOR} {claim.arguments}",
        runs={"configurations_tried": tried, "runs": list(runs)},
        folder=folder,
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="run folders of any claims in any order")
    parser.add_argument("--tried", type=int, required=True, help="configurations compared on validation")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    claims: dict[Claim, list[dict[str, Any]]] = {}
    for run in map(summary, options.folders):
        key = (run["recipe"], run["protocol"]["query_time"])
        if key not in CLAIMS:
            known = ", ".join(sorted({recipe for recipe, _ in CLAIMS}))
            raise RunError(f"no claim is made for recipe '{key[0]}', {key[1]}", where=run["run"], fix=f"known: {known}")
        claims.setdefault(CLAIMS[key], []).append(run)
    for claim, runs in claims.items():
        print(report(claim, runs, options.tried, options.out))


if __name__ == "__main__":
    main()
