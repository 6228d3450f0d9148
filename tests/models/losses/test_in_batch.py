"""Negatives from the step's own targets: what is drawn, and the logQ correction that undoes their popularity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses import LossOptions, PopularitySampler, bpr, compute_loss, in_batch_negatives, sampled_softmax

DOUBLE = torch.float64


def popular_targets(tokens: int, items: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Targets with a few popular items, and the probabilities they were drawn from ``[items + 1]``."""
    weights = 1 / torch.arange(1, items + 1, dtype=DOUBLE)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.multinomial(weights, tokens, replacement=True, generator=generator) + 1
    return targets, torch.cat([torch.zeros(1, dtype=DOUBLE), weights / weights.sum()])


def test_a_shared_set_takes_every_target_at_most_once() -> None:
    targets = torch.arange(1, 101)
    drawn = in_batch_negatives(targets, 60, torch.Generator().manual_seed(0))
    assert len(drawn) == 60 == len(set(drawn.tolist()))
    every = in_batch_negatives(targets, 1000, torch.Generator().manual_seed(0))
    assert sorted(every.tolist()) == targets.tolist()
    assert torch.equal(drawn, in_batch_negatives(targets, 60, torch.Generator().manual_seed(0)))
    assert not torch.equal(drawn, in_batch_negatives(targets, 60, torch.Generator().manual_seed(1)))


def test_items_come_as_often_as_they_are_popular() -> None:
    targets, _ = popular_targets(500, 20)
    present = torch.bincount(targets, minlength=21) / 500
    own = in_batch_negatives(targets, (500, 200), torch.Generator().manual_seed(1))
    assert own.shape == (500, 200)
    assert float((torch.bincount(own.flatten(), minlength=21) / own.numel() - present).abs().max()) < 0.005
    shared = [in_batch_negatives(targets, 50, torch.Generator().manual_seed(seed)) for seed in range(400)]
    assert float((torch.bincount(torch.cat(shared), minlength=21) / 20_000 - present).abs().max()) < 0.02


def test_corrected_in_batch_softmax_estimates_the_full_softmax() -> None:
    """Over many batches the corrected gradient points where the full softmax' does; the uncorrected one does not."""
    items, dim, tokens = 30, 6, 4000
    generator = torch.Generator().manual_seed(2)
    table = (0.7 * torch.randn(items + 1, dim, generator=generator, dtype=DOUBLE)).requires_grad_()
    state = torch.randn(1, dim, generator=generator, dtype=DOUBLE).expand(tokens, dim)
    targets, probability = popular_targets(tokens, items)
    sampler = PopularitySampler.from_counts((probability * 1e9).round().long())
    total = compute_loss(
        LossOptions(name="sampled_softmax", sampler="in_batch", num_negatives=tokens),
        state,
        table,
        targets,
        generator,
        sampler,
    )
    (corrected,) = torch.autograd.grad(total, table)
    (uncorrected,) = torch.autograd.grad(sampled_softmax(state, table, targets, targets), table)
    (full,) = torch.autograd.grad(F.cross_entropy(state @ table[1:].T, targets - 1, reduction="sum"), table)

    def cosine(gradient: Tensor) -> float:
        return float(F.cosine_similarity(gradient.flatten(), full.flatten(), dim=0))

    assert cosine(corrected) > 0.97
    assert cosine(uncorrected) < 0.8


def test_compute_loss_corrects_with_the_training_counts() -> None:
    targets, probability = popular_targets(60, 15)
    generator = torch.Generator().manual_seed(4)
    states = torch.randn(60, 5, generator=generator, dtype=DOUBLE)
    table = torch.randn(16, 5, generator=generator, dtype=DOUBLE)
    sampler = PopularitySampler.from_counts((probability * 1000).round().long())
    options = LossOptions(name="sampled_softmax", sampler="in_batch", num_negatives=25)
    found = compute_loss(options, states, table, targets, torch.Generator().manual_seed(5), sampler)
    negatives = in_batch_negatives(targets, 25, torch.Generator().manual_seed(5))
    log_q = sampler.log_q.double()
    expected = 0.0
    for state, target in zip(states, targets.tolist(), strict=True):
        items = [target, *(item for item in negatives.tolist() if item != target)]
        logits = table[items] @ state - log_q[items]
        expected = expected - logits.log_softmax(0)[0]
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="'in_batch' needs the training counts"):
        compute_loss(options, states, table, targets, generator)


def test_bpr_takes_its_own_from_the_batch_and_no_tokens_need_none() -> None:
    targets, _ = popular_targets(30, 9)
    generator = torch.Generator().manual_seed(6)
    states, table = torch.randn(30, 4, generator=generator), torch.randn(10, 4, generator=generator)
    options = LossOptions(name="bpr", sampler="in_batch", num_negatives=3)
    found = compute_loss(options, states, table, targets, torch.Generator().manual_seed(7))
    negatives = in_batch_negatives(targets, (30, 3), torch.Generator().manual_seed(7))
    torch.testing.assert_close(found, bpr(states, table, targets, negatives))
    for name in ("bpr", "bce", "sampled_softmax"):
        none = LossOptions(name=name, sampler="in_batch")  # type: ignore[arg-type]
        counts = PopularitySampler.from_counts(torch.ones(10))
        assert float(compute_loss(none, states[:0], table, targets[:0], generator, counts)) == 0.0


def test_all_items_of_the_step_are_each_negative_once_and_nothing_is_corrected() -> None:
    targets, probability = popular_targets(80, 15)
    generator = torch.Generator().manual_seed(8)
    states = torch.randn(80, 5, generator=generator, dtype=DOUBLE)
    table = torch.randn(16, 5, generator=generator, dtype=DOUBLE).requires_grad_()
    sampler = PopularitySampler.from_counts((probability * 1000).round().long())
    options = LossOptions(name="sampled_softmax", sampler="in_batch", num_negatives=-1)
    before = generator.get_state()
    found = compute_loss(options, states, table, targets, generator, sampler)
    assert torch.equal(generator.get_state(), before)  # nothing is drawn
    present = sorted(set(targets.tolist()))
    assert len(present) < 15 < 80  # some items come often, some not at all
    logits = states @ table[present].T
    places = torch.tensor([present.index(target) for target in targets.tolist()])
    expected = F.cross_entropy(logits, places, reduction="sum")
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, table)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)
    none = compute_loss(options, states[:0], table, targets[:0], generator, sampler)
    assert none.item() == 0.0
    alone = compute_loss(options, states[:1], table, targets[:1], generator)
    assert alone.item() == 0.0  # nothing to tell the target from


@pytest.mark.parametrize(
    ("name", "sampler"), [("bce", "in_batch"), ("sampled_softmax", "uniform"), ("softmax", "uniform")]
)
def test_all_items_of_the_step_are_for_one_loss_alone(name: Any, sampler: Any) -> None:
    with pytest.raises(ValueError, match=f"num_negatives must be a number with {name}"):
        LossOptions(name=name, sampler=sampler, num_negatives=-1)
