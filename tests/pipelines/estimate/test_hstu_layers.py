"""What a token of HSTU costs, held against torch's own counters on real layers."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.functional import silu
from torch.utils.flop_counter import FlopCounterMode

from models.hstu import HSTU, HSTUOptions
from models.losses import LossOptions
from pipelines.estimate.layer_work import Formats
from pipelines.estimate.work import Work, find_work
from tests.models.conftest import random_batch
from tests.pipelines.estimate.live_tensors import LiveBytes

ITEMS, LENGTH = 300, 64
FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"heads": 4, "blocks": 3, "norm_affine": True},
    {"relative_bias": "none", "positions": "none", "similarity": "dot", "dropout": 0.0},
    {"relative_bias": "position", "attention_dim": 24, "linear_dim": 40, "time_buckets": 9},
    {"recompute_norm": True, "recompute_silu": True, "scale_by_dim": True},
    {"recompute_silu": True, "query_time": "blind", "hidden": 50},
)
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(f"{k}={v}" for k, v in form.items()))


def make(form: dict[str, Any], **more: Any) -> tuple[HSTUOptions, HSTU]:
    options = HSTUOptions(**{"loss": LossOptions(precision="float32"), "max_length": LENGTH, **form, **more})
    return options, HSTU(ITEMS, options).train()


def work_of(options: HSTUOptions, narrow: int = 4, length: float = LENGTH) -> Work:
    return find_work("hstu", options, ITEMS, length, Formats("cpu", narrow, 4))


@every_form
def test_parameters_are_those_of_the_model(form: dict[str, Any]) -> None:
    options, model = make(form)
    assert work_of(options).parameters == sum(p.numel() for p in model.parameters())


@every_form
def test_products_are_those_that_torch_counts(form: dict[str, Any]) -> None:
    """torch's counter does not see the compiled attention: everything else is left, and nothing is multiplied again."""
    options, model = make(form)
    work, batch = work_of(options), dataclasses.replace(random_batch([LENGTH] * 4, ITEMS), all_targets=True)
    with FlopCounterMode(display=False) as counter:
        model.loss(batch).sum.backward()
    counted = counter.get_total_flops() / batch.num_tokens
    assert counted == pytest.approx(3 * work.layers.product_flops + work.loss_flops, rel=1e-12)


@every_form
def test_attention_is_the_causal_half_with_the_scores_again(form: dict[str, Any]) -> None:
    options, _ = make(form)
    block, half = options.block(), (LENGTH + 1) / (2 * LENGTH)
    q, k = (torch.randn(1, options.heads, LENGTH, block.attention_dim, requires_grad=True) for _ in range(2))
    v = torch.randn(1, options.heads, LENGTH, block.linear_dim, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        (silu(q @ k.transpose(-1, -2)) @ v).sum().backward()
    again = 2 * options.heads * LENGTH**2 * block.attention_dim
    square = options.blocks * (counter.get_total_flops() + again) / LENGTH
    assert work_of(options).layers.attention_flops == pytest.approx(half * square, rel=1e-12)
    short, middle, long = (work_of(options, length=length).layers.attention_flops for length in (50.0, 100.0, 150.0))
    assert middle > short and long - middle == pytest.approx(middle - short)


@every_form
@pytest.mark.parametrize("narrow", [4, 2])
@pytest.mark.parametrize("kernels", ["", "dropout=torch"])
def test_bytes_kept_are_those_alive_between_the_passes(
    kernels: str, form: dict[str, Any], narrow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1%, 2% under autocast, which keeps casts of weights too."""
    monkeypatch.setenv("RECPOD_KERNELS", kernels)
    options, model = make(form)
    batch = random_batch([LENGTH] * 128, ITEMS)
    known = [*model.parameters(), *(v for v in vars(batch).values() if isinstance(v, torch.Tensor))]
    mixed = torch.autocast("cpu", dtype=torch.bfloat16) if narrow == 2 else contextlib.nullcontext()
    with LiveBytes(known) as bytes_, mixed:
        out = model._measured(model.token_states(batch))
        alive = bytes_.live - out.numel() * out.element_size()
    counted = work_of(options, narrow).layers.saved * batch.num_tokens
    assert counted == pytest.approx(alive, rel=0.01 if narrow == 4 else 0.02)
