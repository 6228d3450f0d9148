"""The same scores through RecBole's collector and evaluator and through ours: every number agrees.

RecBole takes the target's place from ``torch.topk``, which leaves the order of equal scores open, so scores here are
all different; ties are the oracle's business (test_ranking, test_metrics_oracle). It rounds to the digits asked for,
here more than matter, and divides coverage by a catalogue that counts padding, so the size is given by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.batch import Jagged
from pipelines.engines.recbole_environment import load_recbole
from pipelines.evaluation.beyond_accuracy import Exposure, top_k
from pipelines.evaluation.ranking import count_ranks, metric_values

KS = [1, 3, 5, 10, 20, 50]
QUERIES, ITEMS = 300, 200
# RecBole's evaluator logs in colour when it is imported; a set-up without that package has no whole RecBole.
pytest.importorskip("colorlog", reason="recbole is not installed with what it needs: entrypoints/setup.sh --test")

Asked = tuple[Tensor, Tensor, list[list[int]]]


class Given:
    """A task whose scores are given: the state is the number of the query."""

    def __init__(self, scores: Tensor) -> None:
        self.scores, self.num_items = scores, scores.shape[1] - 1

    def score_block(self, states: Tensor, ids: Tensor) -> Tensor:
        return self.scores[states[:, 0].long()][:, ids]


@pytest.fixture(scope="module")
def recbole() -> Callable[..., dict[str, float]]:
    """``recbole(metrics, scores, targets, **data)``: RecBole's own numbers for scores ``[Q, num_items + 1]``."""
    load_recbole()
    from recbole.evaluator import Collector, Evaluator

    def evaluate(metrics: list[str], scores: Tensor, targets: Tensor, **data: Any) -> dict[str, float]:
        config = {
            "metrics": metrics,
            "topk": KS,
            "eval_args": {"mode": "full"},
            "device": torch.device("cpu"),
            "metric_decimal_place": 15,
        }
        collector = Collector(config)
        for name, value in data.items():
            collector.data_struct.set(f"data.{name}", value)
        for rows in torch.arange(len(scores)).split(77):  # in batches, as its trainer does
            collector.eval_batch_collect(scores[rows], None, torch.arange(len(rows)), targets[rows])
        return dict(Evaluator(config).evaluate(collector.data_struct))

    return evaluate


@pytest.fixture(scope="module")
def asked() -> Asked:
    """Scores that are all different, targets of every rank, and histories."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.stack([torch.randperm(ITEMS + 1, generator=generator) for _ in range(QUERIES)]).float()
    targets = torch.randint(1, ITEMS + 1, (QUERIES,), generator=generator)
    lift = torch.rand(QUERIES, generator=generator) < 0.5  # half of the targets near the top
    scores[lift, targets[lift]] += 180.5
    seen = [torch.randint(1, ITEMS + 1, (12,), generator=generator).tolist() for _ in range(QUERIES)]
    seen = [[item for item in row if item != int(target)] for row, target in zip(seen, targets, strict=True)]
    return scores, targets, seen


@pytest.mark.parametrize("masked", [False, True])
def test_hit_ndcg_mrr_recall_agree_at_every_k(recbole, asked: Asked, masked: bool) -> None:  # type: ignore[no-untyped-def]
    scores, targets, seen = asked
    theirs = scores.clone()
    theirs[:, 0] = -torch.inf  # as its trainer does: padding never, history only when asked
    rows = None
    if masked:
        for query, row in enumerate(seen):
            theirs[query, row] = -torch.inf
        offsets = torch.tensor([0, *(len(row) for row in seen)]).cumsum(0)
        rows = Jagged(torch.tensor([item for row in seen for item in row]), offsets)
    expected = recbole(["Hit", "NDCG", "MRR", "Recall"], theirs, targets)
    ranks = count_ranks(Given(scores), torch.arange(QUERIES).float()[:, None], targets, rows)
    assert 0.2 < expected["hit@10"] < 0.8 and len(set(expected.values())) > 15
    for k in KS:
        for ours, name in (("HR", "hit"), ("Recall", "recall"), ("NDCG", "ndcg"), ("MRR", "mrr")):
            found = float(metric_values(ranks, f"{ours}@{k}").mean())
            assert found == pytest.approx(expected[f"{name}@{k}"], abs=1e-12), f"{ours}@{k}"


def test_lists_coverage_and_popularity_agree(recbole, asked: Asked) -> None:  # type: ignore[no-untyped-def]
    scores, targets, _ = asked
    scores = scores - 3.14159 * torch.arange(ITEMS + 1)  # lists have much in common: coverage is not complete
    assert all(len(row.unique()) == ITEMS + 1 for row in scores)
    theirs = scores.clone()
    theirs[:, 0] = -torch.inf
    counts = torch.randint(0, 30, (ITEMS + 1,), generator=torch.Generator().manual_seed(1))
    states = torch.arange(QUERIES).float()[:, None]
    exposure = Exposure(counts, KS)
    for rows in torch.arange(QUERIES).split(90):
        exposure.observe(Given(scores), states[rows])
    # RecBole averages whole numbers: twice the catalogue times our percentile is one.
    whole = {item: round(float(share) * 2 * ITEMS) for item, share in enumerate(exposure.percentiles)}
    expected = recbole(["ItemCoverage", "AveragePopularity"], theirs, targets, num_items=ITEMS, count_items=whole)
    found = exposure.metrics()
    assert 0 < expected["itemcoverage@1"] < expected["itemcoverage@10"] < 1
    for k in KS:
        assert found[f"Coverage@{k}"] == pytest.approx(expected[f"itemcoverage@{k}"], abs=1e-12)
        assert found[f"Popularity@{k}"] == pytest.approx(expected[f"averagepopularity@{k}"] / (2 * ITEMS), abs=1e-12)
    lists = torch.topk(theirs, 50).indices
    assert np.array_equal(top_k(Given(scores), states, 50).numpy(), lists.numpy())
