"""Two ranking runs on the same events: their predictions, read and checked, and the difference of each AUC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import RunError
from pipelines.evaluation.comparison import Difference
from pipelines.evaluation.ranking_metrics import outcomes_of, scores_of
from pipelines.evaluation.ranking_significance import Asked, paired_ranking_tests, resampled_metrics
from pipelines.run_folder import RunFolder, read_json

_EVENT = ("user_id", "item_id", "action")
_REMEDY = "evaluate both runs with this code and one protocol: recpod evaluate RECIPE"
_SAME = 1e-6  # torchmetrics sums in another order


def ranking_differences(
    side_a: Sequence[Path], side_b: Sequence[Path], card: Mapping[str, Any], *, resamples: int, seed: int
) -> tuple[int, tuple[Difference, ...]]:
    """How many events were asked about, and the difference of every AUC and GAUC.

    Args:
        side_a: folders of the run compared against, one a seed.
        side_b: folders of the run in question.
        card: what all their protocol cards say.
        resamples: how many times the users are drawn.
        seed: of that.

    Raises:
        RunError: predictions that cannot be read, or are not those of the other runs' events or of the metrics
            recorded.
    """
    kind, names = card["actions"]["kind"], list(card["actions"]["names"])
    first = _predictions(side_a[0], names)
    users = np.unique(first["user_id"], return_inverse=True)[1]
    asked = Asked(users, outcomes_of(first["action"], kind, len(names)), names)
    scores = {}
    for path in (*side_a, *side_b):
        found = _predictions(path, names)
        for column in _EVENT:
            if not np.array_equal(first[column], found[column]):
                raise RunError(f"predictions.parquet holds other events ({column})", where=str(path), fix=_REMEDY)
        logits = np.stack([found[f"logit:{name}"] for name in names], axis=1)
        scores[path] = scores_of(logits, kind)
        _check_metrics(path, asked, scores[path])
    sides = [[scores[path] for path in side] for side in (side_a, side_b)]
    tests = paired_ranking_tests(asked, *sides, resamples=resamples, seed=seed)
    found_differences = []
    for metric, (values, test) in tests.items():
        parts = values[: len(side_a)], values[len(side_a) :]
        spreads = [float(np.std(part, ddof=1)) if len(part) > 1 else None for part in parts]
        a, b = (float(part.mean()) for part in parts)
        found_differences.append(Difference(metric, a, b, test.difference, test.low, test.high, test.p_value, *spreads))
    return len(users), tuple(found_differences)


def _predictions(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns of predictions.parquet.

    Raises:
        RunError: it is not there, is damaged, or lacks one of them.
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    file, columns = RunFolder(path).predictions, [*_EVENT, *(f"logit:{name}" for name in names)]
    try:
        there = parquet.read_schema(file).names
        missing = [name for name in columns if name not in there]
        if missing:
            raise RunError(f"predictions.parquet lacks the column {missing[0]}", where=str(file), fix=_REMEDY)
        table = parquet.read_table(file, columns=columns)
    except (OSError, arrow.ArrowException) as error:
        raise RunError(f"the predictions cannot be read ({error})", where=str(file), fix=_REMEDY) from None
    return {name: table[name].to_numpy() for name in columns}


def _check_metrics(path: Path, asked: Asked, scores: np.ndarray) -> None:
    """Refuse predictions that are not those of metrics.json."""
    recorded = read_json(RunFolder(path).metrics).get("test", {})
    for metric, values in resampled_metrics(asked, [scores], 0, 0).items():
        found = float(values[0, 0])
        if metric in recorded and abs(found - recorded[metric]) > _SAME:
            what = f"predictions.parquet gives {metric} {found:.6f}, metrics.json says {recorded[metric]:.6f}"
            raise RunError(what, where=str(path), fix=_REMEDY)
