"""HSTU for retrieval: causal, told of the request or not as asked, one similarity everywhere, able to learn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from models.batch import SequenceBatch
from models.hstu import HSTU, HSTUOptions
from models.losses import Drawn, LossOptions
from tests.models.conftest import random_batch


def model(seed: int = 0, items: int = 30, **options: Any) -> HSTU:
    torch.manual_seed(seed)
    task = HSTU(items, HSTUOptions(**{"hidden": 16, "dropout": 0.0, "max_length": 12, **options}))
    with torch.no_grad():  # a start at which nothing is negligible
        for parameter in task.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        task.item_embedding.weight[0] = 0
    return task


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


@pytest.mark.parametrize("query_time", ["aware", "blind"])
def test_later_events_do_not_reach_earlier_states_nor_other_rows(batch: SequenceBatch, query_time: str) -> None:
    task = model(query_time=query_time)
    items, times = batch.items.clone(), batch.timestamps.clone()
    items[12] = items[12] % 30 + 1  # inside row 2 (tokens 6 to 14)
    times[12:15] += 10**6
    changed, before = task.token_states(replace(batch, items=items, timestamps=times)), task.token_states(batch)
    told = 12 - (query_time == "aware")  # token 11 is told when the next event happens, and nothing else of it
    assert torch.equal(changed[:told], before[:told])
    assert torch.equal(changed[15:], before[15:])
    assert (changed[told:15] - before[told:15]).abs().amax(1).min() > 1e-4
    only_items = task.token_states(replace(batch, items=items))
    assert torch.equal(only_items[:12], before[:12])


@pytest.mark.parametrize("query_time", ["aware", "blind"])
@pytest.mark.parametrize("positions", ["oldest", "none"])
def test_one_pass_gives_the_state_of_every_prefix(batch: SequenceBatch, query_time: str, positions: str) -> None:
    """Training and evaluation see the same: the request stands where the next event's time stood."""
    task = model(query_time=query_time, positions=positions)
    states = task.token_states(batch)
    for length in range(1, 9):
        alone = task.token_states(prefix(batch, 2, length))
        assert torch.allclose(alone, states[6 : 6 + length], atol=1e-5)


def test_the_request_is_an_input_of_the_aware_model_alone(batch: SequenceBatch) -> None:
    later = replace(batch, request_time=batch.request_time + 10**7)
    never = replace(batch, request_time=None)  # type: ignore[arg-type]
    aware, blind = model(), model(query_time="blind")
    assert not torch.allclose(aware.encode(batch), aware.encode(later), atol=1e-4)
    assert torch.equal(blind.encode(batch), blind.encode(later))
    assert torch.equal(blind.encode(batch), blind.encode(never))  # it is not even read
    assert (aware.query_time, blind.query_time) == ("aware", "blind")
    for bias in ("position", "none"):
        task = model(relative_bias=bias)
        assert task.query_time == "blind" and torch.equal(task.encode(batch), task.encode(never))


def test_only_differences_of_times_count(batch: SequenceBatch) -> None:
    rows = torch.repeat_interleave(torch.arange(4), batch.lengths)
    shifted = replace(
        batch,
        timestamps=batch.timestamps + 86400 * rows,
        request_time=batch.request_time + 86400 * torch.arange(4),
    )
    task = model()
    assert torch.equal(task.encode(batch), task.encode(shifted))


def test_every_parameter_gets_a_gradient_and_padding_none(batch: SequenceBatch) -> None:
    for form in ({}, {"norm_affine": True, "scale_by_dim": True}, {"recompute_norm": True, "recompute_silu": True}):
        task = model(heads=2, time_buckets=30, **form)
        task.loss(batch).sum.backward()
        silent = [name for name, p in task.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
        assert silent == []
        assert torch.equal(task.item_embedding.weight.grad[0], torch.zeros(16))


def test_forms_are_different_models(batch: SequenceBatch) -> None:
    states = model().encode(batch)
    changes: dict[str, Any] = {
        "positions": "newest",
        "relative_bias": "position",
        "query_time": "blind",
        "scale_by_dim": True,
        "scale_embedding": False,
        "similarity": "dot",
        "heads": 2,
        "norm_eps": 0.3,
    }
    for key, value in changes.items():
        task, known = model(**{key: value}), model().state_dict()
        task.load_state_dict({name: known[name] for name in task.state_dict()})
        assert not torch.allclose(task.encode(batch), states, atol=1e-4), key
    for key, value in {"blocks": 1, "attention_dim": 3, "linear_dim": 5, "norm_affine": True}.items():
        assert model(**{key: value}).state_dict().keys() != model().state_dict().keys() or (
            sum(p.numel() for p in model(**{key: value}).parameters()) != sum(p.numel() for p in model().parameters())
        ), key


def test_one_similarity_in_training_and_evaluation(batch: SequenceBatch) -> None:
    """The loss is the cross-entropy of exactly the scores that the evaluator sees, over the temperature."""
    everything, targets = torch.arange(1, 31), batch.targets
    for similarity, temperature in (("cosine", 0.05), ("cosine", 0.4), ("dot", 1.0), ("dot", 3.0)):
        task = model(
            similarity=similarity, temperature=temperature, query_time="blind", loss=LossOptions(precision="float32")
        )
        states = torch.cat(
            [task.encode(prefix(batch, row, n + 1)) for row in range(4) for n in range(batch.lengths[row])]
        )
        scores = task.score_block(states, everything)
        if similarity == "cosine":
            assert torch.allclose(states.norm(dim=1), torch.ones(18)) and scores.abs().max() <= 1 + 1e-6
        expected = functional.cross_entropy(scores / temperature, targets - 1, reduction="sum")
        assert torch.allclose(task.loss(batch).sum, expected, rtol=1e-4)
        assert task.loss(batch).count == 18


def test_seen_items_are_no_candidates_where_the_loss_leaves_them_out(batch: SequenceBatch) -> None:
    loss = LossOptions(precision="float32", exclude_seen=True)
    task, everything = model(query_time="blind", loss=loss), torch.arange(1, 31)
    expected = torch.zeros(())
    for row in range(4):
        for n in range(1, int(batch.lengths[row]) + 1):
            asked, token = prefix(batch, row, n), int(batch.offsets[row]) + n - 1
            target = int(batch.targets[token])
            scores = task.score_block(task.encode(asked), everything)[0] / task.options.temperature
            seen = torch.zeros(31, dtype=torch.bool)
            seen[asked.items] = True
            seen[target] = False
            scores = scores.masked_fill(seen[1:], float("-inf"))
            expected = expected + functional.cross_entropy(scores, torch.tensor(target - 1))
    assert torch.allclose(task.loss(batch).sum, expected, rtol=1e-4)


def test_negatives_drawn_beforehand_are_used(batch: SequenceBatch) -> None:
    """All items drawn once each: the sampled softmax is the full one."""
    sampled = model(loss=LossOptions(name="sampled_softmax", precision="float32"))
    sampled.drawn = Drawn(torch.arange(1, 31), 30)
    full = model(loss=LossOptions(precision="float32"))
    assert torch.allclose(sampled.loss(batch).sum, full.loss(batch).sum, rtol=1e-4)


def test_an_item_s_length_does_not_change_its_cosine(batch: SequenceBatch) -> None:
    task, everything = model(), torch.arange(1, 31)
    vectors = task.item_vectors(everything)
    with torch.no_grad():
        task.item_embedding.weight.mul_(torch.rand(31, 1) + 0.5)
    assert torch.allclose(task.item_vectors(everything), vectors, atol=1e-6)
    with torch.no_grad():
        task.item_embedding.weight[7] = 0
    assert torch.isfinite(task.item_vectors(everything)).all()


def test_tokens_without_a_target_do_not_count(batch: SequenceBatch) -> None:
    task, targets = model(), batch.targets.clone()
    targets[[0, 5, 17]] = 0
    some = task.loss(replace(batch, targets=targets))
    assert some.count == 15 and some.sum < task.loss(batch).sum


class _Largest(TorchDispatchMode):
    """The most numbers of one tensor."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, *(v.numel() for v in tree_iter(result) if isinstance(v, Tensor)), 0)
        return result


@pytest.mark.parametrize("name", ["softmax", "sampled_softmax"])
def test_no_tensor_of_tokens_by_items(name: str) -> None:
    tokens, items = 2048, 5000
    batch = random_batch([64] * 32, num_items=items)
    loss = LossOptions(name=name, num_negatives=64, chunk=128)  # type: ignore[arg-type]
    task = model(items=items, hidden=8, max_length=64, loss=loss, query_time="blind")
    with _Largest() as largest:
        task.loss(batch).sum.backward()
    assert largest.numbers < tokens * items / 8


@pytest.mark.parametrize("name", ["softmax", "sampled_softmax"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_learns_a_cycle(name: str, similarity: str) -> None:
    """Items follow each other in a ring: after training the next one comes first."""
    torch.manual_seed(0)
    items = torch.arange(12).repeat(4) % 6 + 1
    batch = replace(random_batch([12] * 4), items=items, targets=items % 6 + 1)
    loss = LossOptions(name=name, num_negatives=16)  # type: ignore[arg-type]
    options = HSTUOptions(
        hidden=16, blocks=1, dropout=0.0, max_length=12, similarity=similarity,  # type: ignore[arg-type]
        temperature=0.1 if similarity == "cosine" else 1.0, loss=loss,
    )  # fmt: skip
    task = HSTU(6, options)
    optimizer = torch.optim.Adam(task.parameters(), 0.02)
    first = float(task.loss(batch).sum)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(batch).sum.div(48).backward()
        optimizer.step()
    assert float(task.loss(batch).sum) < first / 5
    found = task.score_block(task.encode(batch), torch.arange(1, 7)).argmax(1) + 1
    assert torch.equal(found, batch.targets[batch.offsets[1:] - 1])


def test_dropout_works_in_training_and_repeats_with_the_seed(batch: SequenceBatch) -> None:
    task, states = model(dropout=0.3), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(task.train().encode(batch))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    assert torch.equal(task.eval().encode(batch), task.eval().encode(batch))


def test_the_start_is_the_authors() -> None:
    torch.manual_seed(0)
    task = HSTU(2000, HSTUOptions())
    assert float(task.item_embedding.weight[1:].std()) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(task.item_embedding.weight[0], torch.zeros(64))
    block = task.blocks[0]
    assert float(block.project_in.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(block.project_out.weight.abs().max()) == pytest.approx(math.sqrt(6 / 128), rel=0.01)
    assert float(block.project_in.bias.abs().max()) == 0


def test_a_row_longer_than_the_positions_is_named() -> None:
    with pytest.raises(ValueError, match="raise model.max_length or lower loader.max_length"):
        model().token_states(random_batch([13]))
    assert model(positions="none").token_states(random_batch([13])).shape == (13, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 0}, "hidden: 0"),
        ({"heads": 3}, "heads: 3 does not divide hidden"),
        ({"temperature": 0.0}, "temperature: 0.0"),
        ({"similarity": "l2"}, "similarity: 'l2' is not one of cosine, dot"),
        ({"positions": "both"}, "positions: 'both'"),
        ({"query_time": "soon"}, "query_time: 'soon'"),
        ({"relative_bias": "some"}, "relative_bias: 'some'"),
        ({"dropout": 1.0}, "dropout: 1.0"),
        ({"attention_dim": 0}, "attention_dim: 0"),
    ],
)
def test_options_that_make_no_sense_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HSTUOptions(**{"hidden": 16, **change})


def test_attention_is_divided_by_the_longest_row_of_the_batch_when_asked(batch: SequenceBatch) -> None:
    """Rows 5, 1, 9, 3: the numbers are those of N = 9, and of another N for who is alone."""
    last, nine = (model(scaling_length=length).token_states(batch) for length in (-1, 9))
    torch.testing.assert_close(last, nine)
    assert not torch.allclose(nine, model().token_states(batch), atol=1e-3)  # max_length 12
    alone = prefix(batch, 0, 5)
    torch.testing.assert_close(
        model(scaling_length=-1).token_states(alone), model(scaling_length=5).token_states(alone)
    )
    for wrong in (0, -2):
        with pytest.raises(ValueError, match=f"scaling_length: {wrong} is less than 1"):
            model(scaling_length=wrong)


def test_projections_begin_with_the_standard_deviation_that_is_asked_for() -> None:
    for std in (None, 0.3):
        task = HSTU(30, HSTUOptions(hidden=64, blocks=2, dense_init_std=std))
        for block in task.blocks:
            own = [float(p.weight.detach().std()) for p in (block.project_in, block.project_out)]  # type: ignore[union-attr]
            assert own == pytest.approx([0.02, (1 / 64) ** 0.5] if std is None else [0.3, 0.3], rel=0.1)
    with pytest.raises(ValueError, match="dense_init_std: 0 is not above 0"):
        HSTUOptions(dense_init_std=0)
