"""From scores to metrics by brute force: sort one user's catalogue, walk down the list, add up by the textbook."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.ranking import count_ranks, metric_values, metrics_from_ranks
from tests.pipelines.evaluation.scored_tasks import Scores, jagged


def walk(scores: dict[int, float], target: int, k: int) -> dict[str, float]:
    """One user's metrics by the definitions for many relevant items, with one: the target, the last of its equals."""
    order = sorted(scores, key=lambda item: (-scores[item], item == target))
    relevant, top = {target}, order[:k]
    hits = [item in relevant for item in top]
    gain = sum(hit / math.log2(place + 2) for place, hit in enumerate(hits))
    ideal = sum(1 / math.log2(place + 2) for place in range(min(len(relevant), k)))
    first = next((place + 1 for place, hit in enumerate(hits) if hit), None)
    return {
        "HR": float(any(hits)),
        "Recall": sum(hits) / len(relevant),
        "NDCG": gain / ideal,
        "MRR": 1 / first if first else 0.0,
    }


@st.composite
def cases(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    items, queries = draw(st.integers(1, 12)), draw(st.integers(1, 10))
    row = st.lists(st.integers(-3, 3), min_size=items + 1, max_size=items + 1)  # few values: many ties
    table = draw(st.lists(row, min_size=queries, max_size=queries))
    targets = draw(st.lists(st.integers(1, items), min_size=queries, max_size=queries))
    seen = draw(st.lists(st.lists(st.integers(1, items), max_size=6), min_size=queries, max_size=queries))
    return table, targets, seen, draw(st.integers(1, 14))


@given(cases())
@settings(max_examples=150, deadline=None)
def test_every_metric_at_every_k_equals_the_textbook(case) -> None:  # type: ignore[no-untyped-def]
    table, targets, seen, k = case
    scores = torch.tensor(table, dtype=torch.float32)  # [Q, num_items + 1]
    task, states = Scores(scores.T.contiguous()), torch.eye(len(table))  # score(query, item) = table[query][item]
    ranks = count_ranks(task, states, torch.tensor(targets), jagged(seen))
    expected = []
    for row, target, gone in zip(table, targets, seen, strict=True):
        left = {item: row[item] for item in range(1, len(row)) if item == target or item not in gone}
        expected.append(walk(left, target, k))
    for name in ("HR", "Recall", "NDCG", "MRR"):
        each = [user[name] for user in expected]
        assert metric_values(ranks, f"{name}@{k}").tolist() == pytest.approx(each, abs=1e-12)
        if name != "Recall":
            mean = metrics_from_ranks(ranks, (k,))[f"{name}@{k}"]
            assert mean == pytest.approx(sum(each) / len(each), abs=1e-12)
