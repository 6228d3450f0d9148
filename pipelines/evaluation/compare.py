"""Two runs on the same queries: how much better is the second, and how sure is that?

Both runs must have been asked the same thing: the protocol cards are compared first, and a difference in the
catalogue, the split or the counting is an error that names it. What may differ (the model's window, whether it reads
the time of the request, seeds, code) is printed beside the numbers.

Either side may be several runs, the seeds of one model: a query's value is then the mean over them. Ranking models
are compared by their AUC on the same events: see :mod:`pipelines.evaluation.compare_ranking`.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import RunError
from pipelines.evaluation.compare_ranking import ranking_differences
from pipelines.evaluation.comparison import Comparison, Difference, Slice
from pipelines.evaluation.ranking_significance import RESAMPLES
from pipelines.evaluation.significance import bootstrap_interval, paired_test
from pipelines.finished_run import configuration_of, settings_digest
from pipelines.run_folder import RunFolder, read_json

METRICS = ("HR@10", "NDCG@10", "MRR@10")
# What makes two numbers incomparable, the plainest first: it is the one that is named.
_MUST_AGREE = (
    "catalogue_items",
    "data_hash",
    "split",
    "split_digest",
    "test_queries",
    "ranking",
    "masked",
    "ties",
)
_RANKING_MUST_AGREE = (
    "catalogue_items",
    "data_hash",
    "split",
    "split_digest",
    "test_queries",
    "ranking",
    "actions",
    "asked_events",
    "ties",
)
_MAY_DIFFER = ("query_time", "context", "max_length", "validation", "seeds", "commit")
_COLUMNS = ("user_id", "target_item_id", "history_length", "rank")
_REMEDY = "evaluate both runs with this code and one protocol: recpod evaluate RECIPE"


def compare_runs(
    run_a: Path | Sequence[Path], run_b: Path | Sequence[Path], *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare two evaluated runs, or the seeds of two models.

    Args:
        run_a: folder of the run compared against, or folders of its seeds.
        run_b: folder of the run in question, or folders of its seeds.
        resamples: sign assignments of each test, and bootstrap resamples of each interval; of ranking models at most
            :data:`pipelines.evaluation.ranking_significance.RESAMPLES`, each of which goes through all events.
        seed: of both.

    Raises:
        RunError: a run that was not evaluated, or not since its training went on; cards that differ in what matters;
            ranks or predictions that are not those of the card's queries or of the metrics recorded; or seeds of a side
            that are not those of one configuration.
    """
    side_a, side_b = ([run] if isinstance(run, Path) else list(run) for run in (run_a, run_b))
    cards = {path: _card(path) for path in (*side_a, *side_b)}
    first = side_a[0]
    for path in cards:
        _require_agreement(cards[first], cards[path], first, path)
    for side in (side_a, side_b):
        _check_seeds(side, cards)
    whole = _comparison(side_a, side_b, cards)
    if _ranks_items(cards[first]):
        asked, found = ranking_differences(side_a, side_b, cards[first], resamples=min(resamples, RESAMPLES), seed=seed)
        return replace(whole, events=asked, differences=found)
    queries = _ranks(first)
    ranks_a, ranks_b = (np.stack([_ranks_of(path, queries) for path in side]) for side in (side_a, side_b))

    def differences(chosen: np.ndarray) -> tuple[Difference, ...]:
        pair = ranks_a[:, chosen], ranks_b[:, chosen]
        return tuple(_difference(*pair, metric, resamples, seed) for metric in METRICS)

    everyone = np.ones(ranks_a.shape[1], dtype=bool)
    return replace(
        whole,
        queries=len(everyone),
        differences=differences(everyone),
        slices=tuple(
            Slice(name, int(chosen.sum()), differences(chosen))
            for name, chosen in _quarters(queries["history_length"]).items()
        ),
    )


def _comparison(side_a: Sequence[Path], side_b: Sequence[Path], cards: Mapping[Path, Mapping[str, Any]]) -> Comparison:
    """What the cards say of two sides, without a difference yet."""
    sides = [[cards[path] for path in side] for side in (side_a, side_b)]
    unlike = {field: (_of_all(sides[0], field), _of_all(sides[1], field)) for field in _MAY_DIFFER}
    return Comparison(
        run_a=", ".join(path.resolve().name for path in side_a),
        run_b=", ".join(path.resolve().name for path in side_b),
        protocol=str(sides[0][0].get("name")),
        queries=int(sides[0][0]["test_queries"]),
        differences=(),
        slices=(),
        unlike={field: pair for field, pair in unlike.items() if pair[0] != pair[1]},
    )


def _ranks_items(card: Mapping[str, Any]) -> bool:
    """Whether it is the card of a ranking model, which predicts actions."""
    return isinstance(card.get("actions"), dict)


def _must_agree(card: Mapping[str, Any]) -> Sequence[str]:
    return _RANKING_MUST_AGREE if _ranks_items(card) else _MUST_AGREE


def _require_agreement(a: Mapping[str, Any], b: Mapping[str, Any], run_a: Path, run_b: Path) -> None:
    for field in _must_agree(a):
        if a.get(field) != b.get(field):
            what = f"the runs differ in '{field}': {a.get(field)!r} in {run_a.name}, {b.get(field)!r} in {run_b.name}"
            raise RunError(f"{what}; their numbers are not comparable", where=str(run_b), fix=_REMEDY)


def _check_seeds(side: Sequence[Path], cards: Mapping[Path, Mapping[str, Any]]) -> None:
    """Several runs of one side are one configuration's, each with a seed of its own.

    The model alone says so where a run has no config.yaml.

    Raises:
        RunError: they are not, or a run's metrics are not of its config.yaml and newest checkpoint.
    """
    metrics = [read_json(RunFolder(path).metrics) for path in side]
    models = [one.get("model") or {} for one in metrics]
    configs = [configuration_of(RunFolder(path), one) for path, one in zip(side, metrics, strict=True)]
    known = [(path, settings_digest(config)) for path, config in zip(side, configs, strict=True) if config]
    for path, settings in known:
        if settings != known[0][1]:
            what = f"this is of another configuration than {known[0][0].name}: more than the seed differs"
            raise RunError(what, where=str(path), fix="give one configuration's seeds on each side")
    seeds = [seed for path in side for seed in cards[path].get("seeds", [])]
    for path, model in zip(side, models, strict=True):
        if not _alike(model, models[0]) or cards[path].get("query_time") != cards[side[0]].get("query_time"):
            what = f"this is another model, or another configuration of it, than {side[0].name}"
            raise RunError(what, where=str(path), fix="give one model's seeds on each side")
    if len(side) > 1 and len(set(seeds)) < len(side):
        raise RunError(f"the seeds of one side are {seeds}: each may count once", where=str(side[0]))


def _alike(one: Any, other: Any) -> bool:
    """Whether what both say is equal; an option that came later is not in older runs."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(_alike(one[key], other[key]) for key in one.keys() & other.keys())
    return bool(one == other)


def _of_all(cards: Sequence[Mapping[str, Any]], field: str) -> Any:
    """What a side's cards say: the one value, or all that there are."""
    values = [card.get(field) for card in cards]
    if field == "seeds":
        return [seed for seeds in values for seed in seeds or []]
    distinct = [value for place, value in enumerate(values) if value not in values[:place]]
    return distinct[0] if len(distinct) == 1 else distinct


def _difference(ranks_a: np.ndarray, ranks_b: np.ndarray, metric: str, resamples: int, seed: int) -> Difference:
    """``ranks_a`` and ``ranks_b`` are ``[seeds, Q]``."""
    test = paired_test(ranks_a, ranks_b, metric, resamples=resamples, seed=seed)
    means = [[bootstrap_interval(one, metric, resamples=1).mean for one in ranks] for ranks in (ranks_a, ranks_b)]
    a, b = (float(np.mean(values)) for values in means)
    spreads = [float(np.std(values, ddof=1)) if len(values) > 1 else None for values in means]
    return Difference(metric, a, b, test.difference, test.low, test.high, test.p_value, *spreads)


def _quarters(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Up to four groups of about equally many queries, by length; equal lengths stay together."""
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75], method="lower"))
    group = np.searchsorted(edges, lengths, side="left")
    parts = {}
    for number in np.unique(group):
        chosen = group == number
        low, high = int(lengths[chosen].min()), int(lengths[chosen].max())
        parts[f"{low} items" if low == high else f"{low} to {high} items"] = chosen
    return parts if len(parts) > 1 else {}


def _card(path: Path) -> Mapping[str, Any]:
    """The protocol card of an evaluated run."""
    card = read_json(RunFolder(path).metrics).get("protocol")
    if not isinstance(card, dict):
        raise RunError("there is no evaluated run here (metrics.json with a protocol)", where=str(path), fix=_REMEDY)
    missing = [field for field in _must_agree(card) if field not in card]
    if missing:
        raise RunError(f"the protocol card does not say '{missing[0]}'", where=str(path), fix=_REMEDY)
    return card


def _ranks(path: Path) -> dict[str, np.ndarray]:
    """The columns of ranks.parquet, checked against metrics.json."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    file = RunFolder(path).ranks
    try:
        table = parquet.read_table(file, columns=list(_COLUMNS))
    except (OSError, arrow.ArrowException) as error:
        raise RunError(f"the ranks cannot be read ({error})", where=str(file), fix=_REMEDY) from None
    columns = {name: np.array(table[name].to_numpy()) for name in table.column_names}  # writable: torch reads them
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        raise RunError(f"ranks.parquet lacks the column {missing[0]}", where=str(file), fix=_REMEDY)
    recorded = read_json(RunFolder(path).metrics).get("test", {})
    for metric in METRICS:
        found = bootstrap_interval(columns["rank"], metric, resamples=1).mean
        if metric in recorded and abs(found - recorded[metric]) > 1e-9:
            what = f"ranks.parquet gives {metric} {found:.6f}, metrics.json says {recorded[metric]:.6f}"
            raise RunError(what, where=str(path), fix=_REMEDY)
    return columns


def _ranks_of(path: Path, queries: Mapping[str, np.ndarray]) -> np.ndarray:
    """The ranks of a run that was asked ``queries``.

    Raises:
        RunError: it was asked others.
    """
    found = _ranks(path)
    for column in _COLUMNS[:-1]:
        if not np.array_equal(queries[column], found[column]):
            raise RunError(f"ranks.parquet holds other queries ({column})", where=str(path), fix=_REMEDY)
    return found["rank"]


def find_runs(text: str, runs: Path = Path("runs")) -> list[Path]:
    """The folders of one run or of several seeds: paths or names in ``runs``, by commas, or a pattern such as ``a-*``.

    Raises:
        RunError: there is none.
    """
    found: list[Path] = []
    for part in text.split(","):
        if not any(sign in part for sign in "*?["):
            found.append(find_run(part, runs))
            continue
        places = ([Path(path) for path in sorted(glob.glob(place))] for place in (part, str(runs / part)))
        fitting = next((folders for paths in places if (folders := [path for path in paths if path.is_dir()])), [])
        if not fitting:
            raise RunError("no run fits this pattern", where=part)
        found += fitting
    return found


def find_run(run: str, runs: Path = Path("runs")) -> Path:
    """The folder of a run, given as a path or as a name in ``runs``.

    Raises:
        RunError: there is neither.
    """
    for path in (Path(run), runs / run):
        if path.is_dir():
            return path
    names = sorted(path.parent.name for path in runs.glob("*/metrics.json"))
    fix = f"evaluated runs: {', '.join(names)}" if names else "give the folder of an evaluated run"
    raise RunError("no such run", where=run, fix=fix)
