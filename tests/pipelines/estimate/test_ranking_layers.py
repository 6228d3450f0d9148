"""What an event of HSTU for ranking costs, held against torch's own counters on real models."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.batch import SequenceBatch
from models.hstu_ranking import HSTURanking, HSTURankingOptions
from models.layers.interleave import interleave
from models.ranking import RankingData, asked_labels
from pipelines.estimate.layer_work import Formats
from pipelines.estimate.ranking_layers import RankingShape, tokens_of_event
from pipelines.estimate.ranking_work import RankingWork, find_ranking_work
from tests.pipelines.estimate.live_tensors import LiveBytes

ITEMS, LENGTH = 300, 40
DATA = RankingData("bits", ("click", "like", "share"), {"user_id": 60, "sex": 3})
FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"candidates": 6, "target_group_size": 2, "blocks": 3, "norm_affine": False},
    {"item_dim": 24, "context_dim": 8, "positions": False, "output_norm": "none", "head": (48, 20, 3)},
    {"context": False, "relative_bias": "position", "head_bias": False, "dropout": 0.0, "head_activation": "gelu"},
    {"recompute_norm": True, "recompute_silu": True, "candidates": 10, "context_mask": False, "heads": 4},
)
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(f"{k}={v}" for k, v in form.items()))


def batch_of(lengths: list[int], candidates: int) -> SequenceBatch:
    draw, sizes = torch.Generator().manual_seed(0), torch.tensor(lengths)
    tokens = int(sizes.sum())
    actions = torch.randint(0, 8, (tokens,), generator=draw)
    return SequenceBatch(
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]),
        items=torch.randint(1, ITEMS + 1, (tokens,), generator=draw),
        timestamps=torch.arange(tokens),
        targets=torch.zeros(tokens, dtype=torch.int64),
        request_time=torch.zeros(len(lengths), dtype=torch.int64),
        user_index=torch.arange(len(lengths)),
        actions=actions,
        labels=(actions[:, None] >> torch.arange(3)) & 1,
        num_candidates=torch.full((len(lengths),), candidates) if candidates else None,
        context={"user_id": torch.arange(len(lengths)) % 60, "sex": torch.ones(len(lengths), dtype=torch.int64)},
    )


def shape_of(lengths: list[int], candidates: int) -> tuple[RankingShape, float]:
    mean, asked = sum(lengths) / len(lengths), candidates * len(lengths) / sum(lengths) if candidates else 1.0
    shape = RankingShape(DATA.context, 8, "bits", 3, mean, asked)
    return shape, sum(length**2 for length in lengths) / sum(lengths)


def make(form: dict[str, Any], lengths: list[int], narrow: int = 4) -> tuple[HSTURanking, RankingWork, SequenceBatch]:
    options = HSTURankingOptions(**{"max_length": LENGTH, "head": (32, 3), **form})
    shape, shared = shape_of(lengths, options.candidates)
    work = find_ranking_work(options, ITEMS, shape, shared, Formats("cpu", narrow, 4))
    return HSTURanking(ITEMS, options, DATA).train(), work, batch_of(lengths, options.candidates)


@every_form
def test_parameters_are_those_of_the_model(form: dict[str, Any]) -> None:
    model, work, _ = make(form, [LENGTH])
    assert work.parameters == sum(p.numel() for p in model.parameters())


@every_form
def test_an_event_becomes_as_many_tokens_and_sees_as_many_as_the_mask_says(form: dict[str, Any]) -> None:
    """The pairs are those that the mask shows, whatever the lengths of the windows."""
    lengths = [12, 40, 25, 18, 31]
    model, work, batch = make(form, lengths)
    places = interleave(batch, len(model.context_embedding))
    assert tokens_of_event(model.options, work.shape) * sum(lengths) == pytest.approx(places.tokens)
    seen = model._layout(batch, places).seen
    shown = (seen[:, 0] + (seen[:, 2] - torch.maximum(seen[:, 0], seen[:, 1])).clamp(min=0)).sum()
    block = model.options.block(len(model.context_embedding))
    a_pair = model.options.blocks * block.heads * 2.0 * (4 * block.attention_dim + 3 * block.linear_dim)
    assert work.layers.attention_flops * sum(lengths) == pytest.approx(a_pair * float(shown))


@every_form
def test_products_are_those_that_torch_counts(form: dict[str, Any]) -> None:
    """torch's counter does not see the compiled attention: everything else is left."""
    lengths = [12, 40, 25, 18, 31]
    model, work, batch = make(form, lengths)
    with FlopCounterMode(display=False) as counter:
        model.loss(batch).sum.backward()
    assert counter.get_total_flops() == pytest.approx(3 * work.layers.product_flops * sum(lengths), rel=1e-12)
    assert work.loss_flops == 0 and work.flops == pytest.approx(
        (3 * (work.layers.product_flops + work.layers.scan_flops) + work.layers.attention_flops) / work.shape.asked
    )


@every_form
@pytest.mark.parametrize("narrow", [4, 2])
def test_bytes_kept_are_those_alive_between_the_passes(form: dict[str, Any], narrow: int) -> None:
    """Within 2%, 3% under autocast, which keeps casts of weights too."""
    model, work, batch = make(form, [LENGTH] * 96, narrow)
    known = [*model.parameters(), *(v for v in vars(batch).values() if isinstance(v, torch.Tensor))]
    known += [*(batch.context or {}).values()]
    mixed = torch.autocast("cpu", dtype=torch.bfloat16) if narrow == 2 else contextlib.nullcontext()
    with LiveBytes(known) as bytes_, mixed:
        loss = model.loss(batch)
        alive = bytes_.live
    assert loss.count == len(asked_labels(batch))
    assert work.layers.saved * batch.num_tokens == pytest.approx(alive, rel=0.02 if narrow == 4 else 0.03)


def test_a_target_that_is_one_of_many_events_costs_all_of_them() -> None:
    few, many = (make({"candidates": number}, [LENGTH])[1] for number in (4, 20))
    assert few.shape.asked == 0.1 and many.shape.asked == 0.5
    assert few.flops > 4 * many.flops
    assert few.moved(1e9) > 4 * many.moved(1e9)
    assert replace(few, step_targets=7.0).candidates == 0
