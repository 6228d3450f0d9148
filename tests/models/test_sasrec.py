"""SASRec and TiSASRec, with and without hyper-connections: causal, blind, really different, able to learn."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from models.batch import SequenceBatch
from models.kernels.packed_attention import packed_attention
from models.sasrec import SASRec, SASRecOptions
from models.tasks import Retrieval
from models.tisasrec import TiSASRec, TiSASRecOptions
from tests.models.conftest import random_batch

Model = SASRec | TiSASRec
FORMS = list(product((SASRec, TiSASRec), ("post", "pre", "query"), (False, True)))


def model(kind: type[Retrieval] = SASRec, seed: int = 0, **options: Any) -> Model:
    torch.manual_seed(seed)
    chosen = {"hidden": 16, "dropout": 0.0, "max_length": 12, **options}
    if kind is TiSASRec:
        return TiSASRec(30, TiSASRecOptions(**{"time_span": 8, "time_unit": "hour", **chosen}))
    return SASRec(30, SASRecOptions(**chosen))


def prefix(batch: SequenceBatch, row: int, length: int) -> SequenceBatch:
    first = int(batch.offsets[row])
    end = first + length
    return replace(
        batch,
        offsets=torch.tensor([0, length]),
        items=batch.items[first:end],
        timestamps=batch.timestamps[first:end],
        targets=batch.targets[first:end],
        request_time=batch.timestamps[end : end + 1],
        user_index=batch.user_index[row : row + 1],
    )


@pytest.mark.parametrize(("kind", "norm", "mhc"), FORMS)
def test_later_events_do_not_reach_earlier_states_nor_other_rows(
    batch: SequenceBatch, kind: type[Retrieval], norm: str, mhc: bool
) -> None:
    task = model(kind, norm=norm, mhc=mhc)
    items = batch.items.clone()
    items[12] = items[12] % 30 + 1  # inside row 2 (tokens 6 to 14)
    changed, before = task.token_states(replace(batch, items=items)), task.token_states(batch)
    assert torch.allclose(changed[:12], before[:12], atol=1e-6)
    assert torch.allclose(changed[15:], before[15:], atol=1e-6)
    assert (changed[12:15] - before[12:15]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("kind", [SASRec, TiSASRec])
def test_counted_from_the_oldest_one_pass_gives_the_state_of_every_prefix(
    batch: SequenceBatch, kind: type[Retrieval]
) -> None:
    for positions, equal in (("oldest", True), ("newest", False)):
        task = model(kind, positions=positions)
        states = task.token_states(batch)
        alone = task.encode(prefix(batch, 2, 4))  # row 2 has 9 events
        assert torch.allclose(alone[0], states[int(batch.offsets[2]) + 3], atol=1e-5) == equal


@pytest.mark.parametrize("kind", [SASRec, TiSASRec])
def test_the_request_is_not_an_input(batch: SequenceBatch, kind: type[Retrieval]) -> None:
    task = model(kind)
    later = replace(batch, request_time=batch.request_time + 10**7)
    assert torch.equal(task.encode(batch), task.encode(later))
    assert task.query_time == "blind"


@pytest.mark.parametrize("unit", [None, "hour"])
def test_tisasrec_reads_the_time_between_events_and_sasrec_does_not(batch: SequenceBatch, unit: str | None) -> None:
    rows = torch.repeat_interleave(torch.arange(4), batch.lengths)
    times = batch.timestamps + 9000 * torch.arange(18) ** 2
    apart, shifted = replace(batch, timestamps=times), replace(batch, timestamps=batch.timestamps + 86400 * rows)
    time_aware, plain = model(TiSASRec, time_unit=unit), model(SASRec)
    assert not torch.allclose(time_aware.encode(batch), time_aware.encode(apart), atol=1e-3)
    assert torch.equal(time_aware.encode(batch), time_aware.encode(shifted))  # only differences count
    assert torch.equal(plain.encode(batch), plain.encode(apart))


def test_order_is_read_through_positions(batch: SequenceBatch) -> None:
    task, items = model(), batch.items.clone()
    items[6:8] = items[[7, 6]]  # two older events of row 2 change places
    assert not torch.allclose(task.encode(replace(batch, items=items))[2], task.encode(batch)[2], atol=1e-4)


@pytest.mark.parametrize(("kind", "norm", "mhc"), FORMS)
def test_every_parameter_gets_a_gradient_and_padding_none(
    batch: SequenceBatch, kind: type[Retrieval], norm: str, mhc: bool
) -> None:
    task = model(kind, norm=norm, mhc=mhc)
    task.loss(batch).sum.backward()
    silent = [name for name, p in task.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert silent == []
    assert task.item_embedding.weight.grad is not None
    assert torch.equal(task.item_embedding.weight.grad[0], torch.zeros(16))


@pytest.mark.parametrize("kind", [SASRec, TiSASRec])
def test_forms_are_different_models(batch: SequenceBatch, kind: type[Retrieval]) -> None:
    base = {"norm": "post", "activation": "relu", "positions": "newest", "mhc": False, "scale_embedding": True}
    changes = {"norm": "pre", "activation": "gelu", "positions": "oldest", "mhc": True, "scale_embedding": False}
    states = model(kind, **base).encode(batch)
    for key, value in changes.items():
        assert not torch.allclose(model(kind, **{**base, key: value}).encode(batch), states, atol=1e-4), key
    streams = model(kind, mhc=True).encode(batch)
    assert not torch.equal(model(kind, mhc=True, mhc_expansion_rate=2).encode(batch), streams)


def test_dropout_works_in_training_and_repeats_with_the_seed(batch: SequenceBatch) -> None:
    for kind in (SASRec, TiSASRec):
        task, states = model(kind, dropout=0.3), []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            states.append(task.token_states(batch))
        assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
        task.eval()
        assert torch.equal(task.token_states(batch), task.token_states(batch))


def test_float64_agrees_with_the_reference_kernel(batch: SequenceBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    task = model().double()
    fast = task.token_states(batch)
    monkeypatch.setenv("RECPOD_KERNELS", "packed_attention=reference")
    assert (task.token_states(batch) - fast).abs().max() < 1e-10
    monkeypatch.delenv("RECPOD_KERNELS")
    assert (task.float().token_states(batch) - fast).abs().max() < 1e-4


def test_a_row_longer_than_the_positions_is_refused() -> None:
    for kind in (SASRec, TiSASRec):
        with pytest.raises(ValueError, match=r"a row has 13 items.*raise model\.max_length"):
            model(kind).encode(random_batch([3, 13]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, r"heads: 3 does not divide hidden \(64\)"),
        ({"blocks": 0}, "blocks: 0 is less than 1"),
        ({"dropout": 1.0}, r"dropout: 1.0 is not in \[0, 1\)"),
        ({"norm": "middle"}, "norm: 'middle' is not one of post, pre, query"),
        ({"positions": "left"}, "positions: 'left' is not one of newest, oldest"),
        ({"activation": "tanh"}, "activation: 'tanh' is not one of relu, gelu, silu, swiglu"),
        ({"feed_forward": 0}, "feed_forward: 0 is less than 1"),
        ({"mhc_expansion_rate": 1}, "mhc_expansion_rate: 1 is less than 2"),
        ({"mhc_init_gate": math.nan}, "mhc_init_gate: nan is not finite"),
        ({"mhc_init_gate": -math.inf}, "mhc_init_gate: -inf is not finite"),
        ({"time_span": 0}, "time_span: 0 is less than 1"),
        ({"time_unit": "week"}, "time_unit: 'week' is not one of second, minute, hour, day"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TiSASRecOptions(**options)


@pytest.mark.parametrize(("kind", "mhc"), [(SASRec, False), (SASRec, True), (TiSASRec, False), (TiSASRec, True)])
def test_learns_a_successor_rule(kind: type[Retrieval], mhc: bool) -> None:
    """Item i is always followed by i + 1: a model that reads its input gets there, one that does not cannot."""
    torch.manual_seed(1)
    batch = random_batch([10] * 20, 30)
    items = (torch.randint(0, 30, (20, 1)) + torch.arange(11)) % 30 + 1
    batch = replace(batch, items=items[:, :-1].flatten(), targets=items[:, 1:].flatten())
    task = model(kind, mhc=mhc, norm="pre")
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = task.loss(batch)
        mean = loss.sum / loss.count
        mean.backward()
        optimizer.step()
    assert mean.item() < 0.3  # chance is log(30) = 3.4


def test_rows_in_another_order_give_the_same_states(batch: SequenceBatch) -> None:
    """One fused call serves all rows: a row's numbers may not depend on its neighbours."""
    q, k, v = torch.randn(3, 18, 2, 8)
    whole = packed_attention(q, k, v, batch.offsets)
    for row in range(4):
        own = slice(int(batch.offsets[row]), int(batch.offsets[row + 1]))
        alone = packed_attention(q[own], k[own], v[own], torch.tensor([0, own.stop - own.start]))
        assert torch.equal(alone, whole[own])


@pytest.mark.parametrize(("norm", "mhc", "blocks"), product(("post", "pre", "query"), (False, True), (1, 3)))
def test_asked_for_the_newest_token_alone_the_state_is_the_same(
    batch: SequenceBatch, norm: str, mhc: bool, blocks: int
) -> None:
    task = model(SASRec, norm=norm, mhc=mhc, blocks=blocks).eval()
    with torch.no_grad():
        for parameter in task.parameters():  # LayerNorms that differ from one
            parameter.add_(0.1 * torch.randn_like(parameter))
        whole = batch.jagged(task.token_states(batch)).last()
        assert torch.allclose(task.encode(batch), whole, atol=1e-5)
