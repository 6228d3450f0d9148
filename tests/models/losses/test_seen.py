from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.batch import SequenceBatch
from models.losses import LossOptions, Seen, compute_loss, full_softmax
from models.sasrec import SASRec, SASRecOptions

ITEMS, WIDTH = 23, 8


def rows_of(lengths: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Items ``[T]``, targets ``[T]`` (some of them seen before) and offsets of rows with ``lengths``."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    items, targets = torch.randint(1, ITEMS + 1, (2, total), generator=generator)
    return items, targets, torch.tensor([0, *lengths]).cumsum(0)


def plain(states: Tensor, table: Tensor, items: Tensor, targets: Tensor, offsets: Tensor) -> Tensor:
    total = states.new_zeros(())
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for token in range(start, end):
            logits = states[token] @ table.t()
            target = int(targets[token])
            left_out = {0, *items[start : token + 1].tolist()} - {target}
            kept = [item for item in range(ITEMS + 1) if item not in left_out]
            total = total + F.cross_entropy(logits[kept], torch.tensor(kept.index(target)))
    return total


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    scale=st.sampled_from([0.3, 40.0]),
    chunk=st.sampled_from([1, 4, None]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_seen_items_are_no_candidates(lengths: list[int], scale: float, chunk: int | None, seed: int) -> None:
    items, targets, offsets = rows_of(lengths, seed)
    generator = torch.Generator().manual_seed(seed)
    states = (scale * torch.randn(len(items), WIDTH, generator=generator, dtype=torch.float64)).requires_grad_()
    table = torch.randn(ITEMS + 1, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    found = full_softmax(states, table, targets, seen=Seen.of_rows(items, offsets), chunk=chunk)
    expected = plain(states, table, items, targets, offsets)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    if len(items):
        gradients = zip(
            torch.autograd.grad(found, (states, table)), torch.autograd.grad(expected, (states, table)), strict=True
        )
        for left, right in gradients:
            torch.testing.assert_close(left[1:], right[1:], rtol=1e-7, atol=1e-7)


def test_chosen_tokens_keep_their_whole_history() -> None:
    items, targets, offsets = rows_of([5, 3], seed=1)
    chosen = torch.tensor([False, True, False, False, True, False, True, False])
    states, table = torch.randn(8, WIDTH, dtype=torch.float64), torch.randn(ITEMS + 1, WIDTH, dtype=torch.float64)
    whole = Seen.of_rows(items, offsets)
    one_by_one = sum(
        full_softmax(
            states[[token]],
            table,
            targets[[token]],
            seen=Seen(items, whole.first[[token]], whole.last[[token]], whole.longest),
        )
        for token in chosen.nonzero()[:, 0].tolist()
    )
    together = full_softmax(states[chosen], table, targets[chosen], seen=Seen.of_rows(items, offsets, chosen))
    torch.testing.assert_close(together, one_by_one)


def test_a_model_leaves_out_what_its_row_holds() -> None:
    items, targets, offsets = rows_of([6, 4], seed=3)
    batch = SequenceBatch(
        offsets=offsets,
        items=items,
        timestamps=torch.arange(10),
        targets=targets,
        request_time=torch.zeros(2, dtype=torch.int64),
        user_index=torch.arange(2),
        all_targets=True,
    )
    options = SASRecOptions(hidden=WIDTH, dropout=0, loss=LossOptions(exclude_seen=True, precision="float32"))
    model = SASRec(ITEMS, options).eval()
    states = model.token_states(batch)
    expected = plain(states, model.item_embedding.weight, items, targets, offsets)
    torch.testing.assert_close(model.loss(batch).sum, expected)
    whole = SASRec(ITEMS, SASRecOptions(hidden=WIDTH, dropout=0, loss=LossOptions(precision="float32"))).eval()
    whole.load_state_dict(model.state_dict())
    assert whole.loss(batch).sum > model.loss(batch).sum


def test_it_is_for_the_full_softmax() -> None:
    with pytest.raises(ValueError, match="exclude_seen is for softmax, not bce"):
        LossOptions(name="bce", exclude_seen=True)
    table = torch.randn(5, 2)
    with pytest.raises(ValueError, match="needs the tokens' histories"):
        compute_loss(LossOptions(exclude_seen=True), table[:1], table, torch.tensor([1]), torch.default_generator)
