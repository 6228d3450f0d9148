"""HSTU for ranking: what a prediction may depend on, and what it must not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from models.batch import SequenceBatch
from models.hstu_ranking import HSTURanking, HSTURankingOptions
from models.layers.interleave import interleave
from models.ranking import RankingData, asked_labels, asked_tokens
from models.registry import RANKING_MODELS, build_ranking

ITEMS, BITS = 30, ("click", "like", "share")
DATA = RankingData("bits", BITS, {"user_id": 6, "sex": 3})
VARIANTS: list[dict[str, Any]] = [
    {},
    {"relative_bias": "position_time", "scale_by_dim": False, "norm_affine": False},
    {"context": False, "positions": False, "output_norm": "l2", "head_activation": "gelu", "head_bias": False},
    {"context_mask": False, "item_dim": 8, "context_dim": 4, "output_norm": "none", "recompute_norm": True},
]


def batch_of(lengths: list[int], candidates: int | None, seed: int = 0) -> SequenceBatch:
    draw = torch.Generator().manual_seed(seed)
    tokens, rows = sum(lengths), len(lengths)
    sizes = torch.tensor(lengths)
    actions = torch.randint(0, 8, (tokens,), generator=draw)
    times = torch.randint(0, 9999, (tokens,), generator=draw)
    steps = torch.repeat_interleave(torch.arange(rows), sizes) * 10**6
    return SequenceBatch(
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]),
        items=torch.randint(1, ITEMS + 1, (tokens,), generator=draw),
        timestamps=(times + steps).sort().values,
        targets=torch.zeros(tokens, dtype=torch.int64),
        request_time=torch.zeros(rows, dtype=torch.int64),
        user_index=torch.arange(rows),
        actions=actions,
        labels=(actions[:, None] >> torch.arange(3)) & 1,
        num_candidates=None if candidates is None else torch.full((rows,), candidates).minimum(sizes),
        context={"user_id": torch.arange(1, rows + 1), "sex": torch.tensor([1, 2, 0] * rows)[:rows]},
    )


def model_of(**options: Any) -> HSTURanking:
    torch.manual_seed(3)
    sizes = {"hidden": 16, "heads": 2, "max_length": 12, "candidates": 3, "head": (8, 3), **options}
    model = HSTURanking(ITEMS, HSTURankingOptions(**sizes), DATA).double().eval()
    for parameter in model.parameters():  # the start is too near to zero for anything to be seen
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def change(tensor: torch.Tensor, place: int, value: int) -> torch.Tensor:
    changed = tensor.clone()
    changed[place] = value
    return changed


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_candidate_changes_no_other_s_prediction(variant: dict[str, Any]) -> None:
    model, batch = model_of(**variant), batch_of([7, 3, 5], candidates=3)
    before = model.predict(batch)
    assert before.shape == (9, 3)
    asked = asked_tokens(batch)
    assert asked is not None
    for row, place in enumerate(asked.nonzero().squeeze(1).tolist()):
        other = change(batch.items, place, int(batch.items[place]) % ITEMS + 1)
        after = model.predict(replace(batch, items=other))
        moved = (after - before).abs().amax(dim=1) > 1e-12
        assert moved.tolist() == [position == row for position in range(9)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_candidate_s_own_action_is_never_read(variant: dict[str, Any]) -> None:
    model, batch = model_of(**variant), batch_of([7, 3, 5], candidates=3)
    assert batch.actions is not None
    asked = asked_tokens(batch)
    assert asked is not None
    other = torch.where(asked, (batch.actions + 1) % 8, batch.actions)
    assert torch.equal(model.predict(replace(batch, actions=other)), model.predict(batch))
    history = change(batch.actions, 0, (int(batch.actions[0]) + 1) % 8)  # what was done before counts
    moved = (model.predict(replace(batch, actions=history)) - model.predict(batch)).abs().amax(dim=1) > 1e-12
    assert moved.tolist() == [True] * 3 + [False] * 6


@pytest.mark.parametrize("variant", VARIANTS)
def test_candidates_one_by_one_are_ranked_as_together(variant: dict[str, Any]) -> None:
    model, batch = model_of(**variant), batch_of([7], candidates=3)
    together = model.predict(batch)
    for number in range(3):
        kept = torch.tensor([0, 1, 2, 3, 4 + number])
        assert batch.actions is not None
        alone = replace(
            batch,
            offsets=torch.tensor([0, 5]),
            items=batch.items[kept],
            timestamps=batch.timestamps[kept],
            actions=batch.actions[kept],
            num_candidates=torch.tensor([1]),
        )
        torch.testing.assert_close(model.predict(alone)[0], together[number])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_future_changes_nothing(variant: dict[str, Any]) -> None:
    model, batch = model_of(**variant), batch_of([8, 4], candidates=None)
    before = model.predict(batch)
    assert before.shape == (12, 3)
    assert batch.actions is not None
    for place in range(8):
        changed = replace(
            batch,
            items=change(batch.items, place, int(batch.items[place]) % ITEMS + 1),
            actions=change(batch.actions, place, (int(batch.actions[place]) + 1) % 8),
        )
        same = (model.predict(changed) - before).abs().amax(dim=1) < 1e-12
        assert same[:place].all() and same[8:].all()
        assert not same[place:8].any()
    acted = replace(batch, actions=change(batch.actions, 3, (int(batch.actions[3]) + 1) % 8))
    same = (model.predict(acted) - before).abs().amax(dim=1) < 1e-12
    assert same[:4].all() and not same[4:8].any()  # an item's own action comes after it


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_newest_event_as_a_candidate_is_asked_what_it_is_asked_in_the_row(variant: dict[str, Any]) -> None:
    model = model_of(**variant)
    every, newest = batch_of([8, 4], candidates=None), batch_of([8, 4], candidates=1)
    torch.testing.assert_close(model.predict(newest), model.predict(every)[[7, 11]])


def test_the_users_features_count_where_they_are_asked_for() -> None:
    batch = batch_of([7, 3], candidates=2)
    assert batch.context is not None
    other = replace(batch, context={**batch.context, "sex": torch.tensor([2, 2])})
    moved = (model_of().predict(other) - model_of().predict(batch)).abs().amax(dim=1) > 1e-12
    assert moved.tolist() == [True, True, False, False]  # the second user's stays
    without = model_of(context=False)
    assert torch.equal(without.predict(other), without.predict(batch))
    with pytest.raises(ValueError, match="lacks the user features user_id, sex"):
        model_of().predict(replace(batch, context=None))


def test_a_group_of_candidates_sees_its_own_past() -> None:
    model, batch = model_of(target_group_size=2, candidates=4), batch_of([7], candidates=4)
    before = model.predict(batch)
    moved = (
        model.predict(replace(batch, items=change(batch.items, 3, 1 + int(batch.items[3]) % ITEMS))) - before
    ).abs()
    assert (moved.amax(dim=1) > 1e-12).tolist() == [True, True, False, False]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.none() | st.integers(1, 4), st.integers(0, 3))
def test_tokens_stand_where_a_loop_puts_them(lengths: list[int], candidates: int | None, context: int) -> None:
    batch = batch_of(lengths, candidates)
    found, expected, event = interleave(batch, context), [], 0
    for row, length in enumerate(lengths):
        past = length - min(candidates or 0, length)
        expected += [("context", row, place) for place in range(context)]
        for place in range(length):
            expected.append(("item", event, min(place, past)))
            if place < past:
                expected.append(("action", event, place))
            event += 1
    assert found.tokens == len(expected) == int(found.offsets[-1])
    assert [expected[place][1:] for place in found.item.tolist()] == list(
        zip(range(event), found.event.tolist(), strict=True)
    )
    history = found.history.nonzero().squeeze(1).tolist()
    assert [expected[place][:2] for place in found.action.tolist()] == [("action", number) for number in history]
    assert [expected[place] for place in found.prefix.flatten().tolist()] == [
        ("context", row, place) for row in range(len(lengths)) for place in range(context)
    ]


def test_bits_have_binary_losses_and_classes_share_one() -> None:
    batch = batch_of([7, 3], candidates=2)
    model = model_of()
    output, logits, labels = model.loss(batch), model.predict(batch), asked_labels(batch)
    each = -(labels * functional.logsigmoid(logits) + (1 - labels) * functional.logsigmoid(-logits))
    torch.testing.assert_close(output.sum, each.mean(dim=1).sum())
    assert output.count == 4
    classes = HSTURanking(ITEMS, HSTURankingOptions(hidden=16, head=(8,)), RankingData("classes", tuple("01234567")))
    assert batch.actions is not None
    by_class = replace(batch, labels=batch.actions[:, None], context=None)
    output, logits = classes.eval().loss(by_class), classes.predict(by_class)
    chosen = logits.log_softmax(dim=1)[torch.arange(4), asked_labels(by_class)[:, 0]]
    torch.testing.assert_close(output.sum, -chosen.sum())


def test_every_weight_learns() -> None:
    model = model_of(relative_bias="position_time").train()
    model.loss(batch_of([7, 3, 5], candidates=2)).sum.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_learns_what_an_item_brings() -> None:
    torch.manual_seed(0)
    options = HSTURankingOptions(hidden=16, max_length=12, head=(16, 3), dropout=0.0)
    model = build_ranking("hstu-ranking", ITEMS, options, DATA)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(150):
        batch = batch_of([8] * 5, None, seed=step)
        actions = batch.items % 8  # what is done depends on the item alone
        batch = replace(batch, actions=actions, labels=(actions[:, None] >> torch.arange(3)) & 1)
        output = model.loss(batch)
        optimizer.zero_grad()
        (output.sum / output.count).backward()
        optimizer.step()
    assert output.sum.item() / output.count < 0.1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"head": ()}, "head"),
        ({"head": (8, 0)}, "head"),
        ({"candidates": -1}, "candidates: -1 is negative"),
        ({"hidden": 10, "heads": 3}, "heads: 3 does not divide"),
        ({"output_norm": "batch"}, "output_norm: 'batch' is not one of layer, l2, none"),
        ({"head_activation": "tanh"}, "head_activation"),
        ({"dropout": 1.0}, "dropout"),
        ({"item_dim": 0}, "item_dim"),
        ({"scaling_length": 0}, "scaling_length"),
        ({"norm_eps": 0}, "norm_eps"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        HSTURankingOptions(**options)


def test_mistakes_are_named() -> None:
    assert RANKING_MODELS["hstu-ranking"].kind == "ranking"
    with pytest.raises(ValueError, match="5 outputs for 3 bits: click, like, share"):
        HSTURanking(ITEMS, HSTURankingOptions(), DATA)
    model, batch = model_of(), batch_of([7], candidates=1)
    with pytest.raises(ValueError, match="without|reads actions"):
        model.predict(replace(batch, actions=None))
    with pytest.raises(ValueError, match="needs a batch with labels"):
        model.loss(replace(batch, labels=None))
    with pytest.raises(ValueError, match="13 events, the model has learned positions for 12"):
        model.predict(batch_of([14], candidates=1))


def test_attention_is_divided_by_the_longest_interleaved_row_when_asked() -> None:
    """Behind two user features: nine items with actions, or six with actions and three candidates without."""
    for candidates, longest in ((None, 2 + 9 + 9), (3, 2 + 6 + 6 + 3)):
        batch = batch_of([4, 9, 5], candidates)
        found, expected = (model_of(scaling_length=length).predict(batch) for length in (-1, longest))
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, model_of(scaling_length=longest + 5).predict(batch))
    with pytest.raises(ValueError, match="scaling_length: 0 is less than 1"):
        model_of(scaling_length=0)


def test_projections_begin_with_the_standard_deviation_that_is_asked_for() -> None:
    model = HSTURanking(ITEMS, HSTURankingOptions(hidden=64, head=(8, 3), dense_init_std=0.3), DATA)
    for block in model.blocks:
        assert float(block.project_out.weight.detach().std()) == pytest.approx(0.3, rel=0.1)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="dense_init_std: -1 is not above 0"):
        HSTURankingOptions(dense_init_std=-1)
