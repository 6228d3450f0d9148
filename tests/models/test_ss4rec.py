"""SS4Rec: causal, prefix-equal, really ablated, aware and blind, able to learn."""

from dataclasses import replace

import pytest
import torch

from models.batch import SequenceBatch
from models.layers.time_intervals import SCALINGS
from models.ss4rec import SS4Rec, SS4RecOptions
from tests.models.conftest import random_batch

SMALL = SS4RecOptions(hidden=16, s5_state=4, d_state=4, dropout=0.0)


def model(options: SS4RecOptions = SMALL, seed: int = 0) -> SS4Rec:
    torch.manual_seed(seed)
    return SS4Rec(30, options)


def prefix(batch: SequenceBatch, row: int, length: int) -> SequenceBatch:
    """The first ``length`` events of a row, asked at the time of the next event."""
    first = int(batch.offsets[row])
    end = first + length
    return SequenceBatch(
        offsets=torch.tensor([0, length]),
        items=batch.items[first:end],
        timestamps=batch.timestamps[first:end],
        targets=batch.targets[first:end],
        request_time=batch.timestamps[end : end + 1],
        user_index=batch.user_index[row : row + 1],
    )


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("query_time", ["aware", "blind"])
def test_one_causal_pass_gives_the_state_of_every_prefix(batch: SequenceBatch, query_time: str, scaling: str) -> None:
    ss4rec = model(replace(SMALL, query_time=query_time, interval_scaling=scaling))
    states = ss4rec.token_states(batch)
    for length in (1, 4, 8):  # row 2 has 9 events
        alone = ss4rec.encode(prefix(batch, 2, length))
        assert torch.allclose(alone[0], states[int(batch.offsets[2]) + length - 1], atol=1e-5)


def test_later_events_do_not_reach_earlier_states(batch: SequenceBatch) -> None:
    ss4rec = model()
    items = batch.items.clone()
    items[12] = items[12] % 30 + 1  # inside row 2 (tokens 6 to 14)
    changed = ss4rec.token_states(replace(batch, items=items))
    before = ss4rec.token_states(batch)
    assert torch.equal(changed[:12], before[:12]) and torch.equal(changed[15:], before[15:])
    assert not torch.allclose(changed[12:15], before[12:15])


def test_request_time_is_read_by_the_aware_model_only(batch: SequenceBatch) -> None:
    later = replace(batch, request_time=batch.request_time + 10**7)
    aware, blind = model(), model(replace(SMALL, query_time="blind"))
    assert not torch.allclose(aware.encode(batch), aware.encode(later))
    assert torch.equal(blind.encode(batch), blind.encode(later))
    assert (aware.query_time, blind.query_time) == ("aware", "blind")


@pytest.mark.parametrize("query_time", ["aware", "blind"])
def test_ignore_time_really_ignores_it(batch: SequenceBatch, query_time: str) -> None:
    ss4rec = model(replace(SMALL, use_time=False, query_time=query_time))
    shuffled = replace(batch, timestamps=batch.timestamps.flip(0), request_time=batch.request_time + 999)
    assert torch.equal(ss4rec.token_states(batch), ss4rec.token_states(shuffled))
    assert ss4rec.query_time == "blind"


@pytest.mark.parametrize(("options", "gone"), [({"use_s5": False}, "s5"), ({"use_mamba": False}, "mamba")])
def test_ablations_take_the_layer_out(batch: SequenceBatch, options: dict[str, bool], gone: str) -> None:
    ss4rec = model(replace(SMALL, **options))
    assert not [name for name, _ in ss4rec.named_parameters() if f".{gone}" in name]
    assert not torch.allclose(ss4rec.token_states(batch), model().token_states(batch))


def test_both_layers_off_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is left"):
        SS4RecOptions(use_s5=False, use_mamba=False)


def test_interval_scalings_differ(batch: SequenceBatch) -> None:
    states = [model(replace(SMALL, interval_scaling=name)).encode(batch) for name in ("log1p", "per_user", "raw")]
    assert not torch.allclose(states[0], states[1]) and not torch.allclose(states[0], states[2])


def test_every_parameter_gets_a_gradient_and_padding_none(batch: SequenceBatch) -> None:
    ss4rec = model()
    ss4rec.loss(batch).sum.backward()
    assert not [name for name, p in ss4rec.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert ss4rec.item_embedding.weight.grad is not None
    assert torch.equal(ss4rec.item_embedding.weight.grad[0], torch.zeros(16))


def test_loss_counts_only_positions_with_a_target(batch: SequenceBatch) -> None:
    ss4rec = model()
    half = torch.where(torch.arange(18) % 2 == 0, batch.targets, 0)
    whole, even = ss4rec.loss(batch), ss4rec.loss(replace(batch, targets=half))
    odd = ss4rec.loss(replace(batch, targets=batch.targets - half))
    assert (whole.count, even.count) == (18, 9)
    assert (even.sum + odd.sum).item() == pytest.approx(whole.sum.item(), rel=2e-3)  # bfloat16 products


def test_learns_a_successor_rule() -> None:
    """Item i is always followed by i + 1: a model that reads its input gets there, one that does not cannot."""
    torch.manual_seed(1)
    lengths = [10] * 20
    batch = random_batch(lengths, 30)
    items = (torch.randint(0, 30, (20, 1)) + torch.arange(11)) % 30 + 1
    batch = replace(batch, items=items[:, :-1].flatten(), targets=items[:, 1:].flatten())
    ss4rec = model()
    optimizer = torch.optim.Adam(ss4rec.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = ss4rec.loss(batch)
        mean = loss.sum / loss.count
        mean.backward()
        optimizer.step()
    assert mean.item() < 0.3  # chance is log(30) = 3.4
