"""Jagged tensors: padding and back, rows and positions."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from models.batch import Jagged, SequenceBatch

lengths = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def jagged(rows: list[int]) -> Jagged:
    offsets = torch.tensor([0, *torch.tensor(rows).cumsum(0).tolist()])
    return Jagged(torch.arange(1.0, 1.0 + sum(rows)), offsets)


@given(lengths)
def test_padding_and_back_gives_the_same_tokens(rows: list[int]) -> None:
    tokens = jagged(rows)
    padded = tokens.to_padded(fill=-1.0)
    assert padded.shape == (len(rows), max(rows))
    assert int((padded == -1).sum()) == len(rows) * max(rows) - sum(rows)
    assert torch.equal(Jagged.from_padded(padded, tokens.offsets).values, tokens.values)


@given(lengths)
def test_rows_and_positions_by_counting(rows: list[int]) -> None:
    tokens = jagged(rows)
    assert tokens.row_of_token().tolist() == [row for row, n in enumerate(rows) for _ in range(n)]
    assert tokens.position_of_token().tolist() == [place for n in rows for place in range(n)]
    assert tokens.last().tolist() == [sum(rows[: row + 1]) for row in range(len(rows))]


def test_to_moves_every_tensor_also_inside_dicts() -> None:
    one = torch.ones(1, dtype=torch.int64)
    batch = SequenceBatch(torch.tensor([0, 1]), one, one, one, one, one, ratings=one.float(), context={"age": one})
    moved = batch.to("meta")
    assert moved.items.device.type == "meta" and moved.ratings is not None and moved.ratings.device.type == "meta"
    assert moved.context is not None and moved.context["age"].device.type == "meta"
    assert moved.labels is None
