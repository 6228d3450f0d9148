"""BCE and gBCE against autograd through their plain formulas in float64, and what gBCE's calibration promises."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.losses import (
    LossOptions,
    PopularitySampler,
    binary_cross_entropy,
    compute_loss,
    gbce_target_weight,
    in_batch_negatives,
    uniform_negatives,
)

DOUBLE = torch.float64


def problem(
    tokens: int, items: int, dim: int, *, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = DOUBLE
) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    states = (scale * torch.randn(tokens, dim, generator=generator, dtype=DOUBLE)).to(dtype)
    table = torch.randn(items + 1, dim, generator=generator, dtype=DOUBLE).to(dtype)
    targets = torch.randint(1, items + 1, (tokens,), generator=generator)
    return states.requires_grad_(), table.requires_grad_(), targets, generator


def plain(states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor, beta: float = 1.0) -> Tensor:
    """Token by token and term by term, as the papers write it."""
    total = states.sum() * 0 + table.sum() * 0
    rows = negatives.expand(len(targets), -1) if negatives.ndim == 1 else negatives
    for state, target, row in zip(states, targets.tolist(), rows.tolist(), strict=True):
        others = [item for item in row if item != target]
        terms = -beta * F.logsigmoid(state @ table[target])
        for item in others:
            terms = terms - F.logsigmoid(-(state @ table[item]))
        total = total + terms / (1 + len(others))
    return total


def values_and_gradients(value: Tensor, states: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    """Of a seventh of the value: a scale that a forgotten grad_output would miss."""
    return (value.detach(), *torch.autograd.grad(value / 7, (states, table)))


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 30),
    items=st.integers(1, 25),
    dim=st.integers(1, 9),
    k=st.integers(1, 40),
    shared=st.booleans(),
    beta=st.sampled_from([1.0, 0.3, 0.01]),
    chunk=st.one_of(st.none(), st.integers(1, 40)),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
    seed=st.integers(0, 2**20),
)
def test_any_shape_equals_the_formula(
    tokens: int, items: int, dim: int, k: int, shared: bool, beta: float, chunk: int | None, scale: float, seed: int
) -> None:
    """Few items: repeats, accidental hits, and tokens all of whose negatives are the target."""
    states, table, targets, generator = problem(tokens, items, dim, seed=seed, scale=scale)
    negatives = uniform_negatives(items, k if shared else (tokens, k), generator, "cpu")
    found = binary_cross_entropy(states, table, targets, negatives, target_weight=beta, chunk=chunk)
    expected = plain(states, table, targets, negatives, beta)
    assert found.dtype == DOUBLE
    for left, right in zip(
        values_and_gradients(found, states, table), values_and_gradients(expected, states, table), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 1.5e-2)])
def test_shared_negatives_in_lower_precision_are_close(precision: str, tolerance: float) -> None:
    states, table, targets, generator = problem(800, 300, 32, dtype=torch.float32)
    negatives = uniform_negatives(300, 64, generator, "cpu")
    found = values_and_gradients(
        binary_cross_entropy(states, table, targets, negatives, precision=precision), states, table
    )
    doubles = states.detach().double().requires_grad_(), table.detach().double().requires_grad_()
    expected = values_and_gradients(plain(*doubles, targets, negatives), *doubles)
    for left, right in zip(found, expected, strict=True):
        assert left.dtype == torch.float32
        assert float((left - right).norm() / right.norm()) <= tolerance


@pytest.mark.parametrize("k", [1, 4])
def test_own_negatives_that_are_equal_for_all_are_shared_negatives(k: int) -> None:
    states, table, targets, generator = problem(50, 20, 8)
    negatives = uniform_negatives(20, k, generator, "cpu")
    torch.testing.assert_close(
        binary_cross_entropy(states, table, targets, negatives),
        binary_cross_entropy(states, table, targets, negatives.repeat(50, 1)),
    )


@pytest.mark.parametrize("shared", [False, True])
class TestTheContractOfEveryLoss:
    def draw(self, items: int, tokens: int, shared: bool, generator: torch.Generator) -> Tensor:
        return uniform_negatives(items, 5 if shared else (tokens, 5), generator, "cpu")

    def test_no_tokens(self, shared: bool) -> None:
        states, table, targets, generator = problem(0, 12, 4)
        value, grad_states, grad_table = values_and_gradients(
            binary_cross_entropy(states, table, targets, self.draw(12, 0, shared, generator)), states, table
        )
        assert float(value) == 0 and grad_states.shape == (0, 4) and torch.count_nonzero(grad_table) == 0

    def test_padding_row_gets_no_gradient_and_no_weight(self, shared: bool) -> None:
        states, table, targets, generator = problem(30, 12, 4)
        negatives = self.draw(12, 30, shared, generator)
        value, _, grad_table = values_and_gradients(
            binary_cross_entropy(states, table, targets, negatives), states, table
        )
        assert torch.count_nonzero(grad_table[0]) == 0 and torch.count_nonzero(grad_table[1:]) > 0
        changed = table.detach().clone()
        changed[0] = 1e3
        assert torch.equal(binary_cross_entropy(states, changed, targets, negatives).detach(), value)

    def test_validation_and_single_gradients(self, shared: bool) -> None:
        states, table, targets, generator = problem(30, 12, 4)
        negatives = self.draw(12, 30, shared, generator)
        value, grad_states, grad_table = values_and_gradients(
            binary_cross_entropy(states, table, targets, negatives), states, table
        )
        with torch.no_grad():
            alone = binary_cross_entropy(states, table, targets, negatives)
        assert not alone.requires_grad and torch.equal(alone, value)
        (one,) = torch.autograd.grad(binary_cross_entropy(states, table.detach(), targets, negatives) / 7, states)
        assert torch.equal(one, grad_states)
        (one,) = torch.autograd.grad(binary_cross_entropy(states.detach(), table, targets, negatives) / 7, table)
        assert torch.equal(one, grad_table)


def test_negatives_of_another_shape_are_refused() -> None:
    states, table, targets, _ = problem(4, 6, 2)
    for shape in ((3, 2), (4, 0), (0,), (4, 2, 2)):
        with pytest.raises(ValueError, match="M = 4"):
            binary_cross_entropy(states, table, targets, torch.ones(shape, dtype=torch.int64))


def test_target_weight_by_hand() -> None:
    """101 items, 10 negatives: alpha = 0.1; t = 0 is BCE, t = 1 is alpha, t = .75 is 1 - .75 x .9."""
    assert gbce_target_weight(101, 10, 0.0) == 1.0
    assert gbce_target_weight(101, 10, 1.0) == pytest.approx(0.1)
    assert gbce_target_weight(101, 10, 0.75) == pytest.approx(0.325)
    assert gbce_target_weight(11, 10, 1.0) == gbce_target_weight(11, 500, 1.0) == 1.0  # all negatives: nothing to mend
    alpha, t = 256 / 3415, 0.6
    assert gbce_target_weight(3416, 256, t) == pytest.approx(alpha * (t * (1 - 1 / alpha) + 1 / alpha))


def test_full_calibration_gives_the_true_probability() -> None:
    """One state, three of 41 items are ever the target, in 20, 50 and 30% of the cases; 4 negatives.

    At the minimum gBCE's sigmoid (t = 1) is the probability that the item is the next one; BCE's is far above it.
    """
    shares = torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE)
    items, k, draws = 41, 4, 60_000
    generator = torch.Generator().manual_seed(0)
    targets = torch.multinomial(shares, draws, replacement=True, generator=generator) + 1
    negatives = uniform_negatives(items - 1, (draws, k), generator, "cpu")
    negatives += (negatives >= targets[:, None]).long()  # uniform over the items that are not the target
    states = torch.ones(draws, 1, dtype=DOUBLE)
    found = {}
    for t in (0.0, 1.0):
        table = torch.zeros(items + 1, 1, dtype=DOUBLE, requires_grad=True)
        optimizer = torch.optim.LBFGS([table], max_iter=60, line_search_fn="strong_wolfe")

        def closure(t: float = t, table: Tensor = table, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            weight = gbce_target_weight(items, k, t)
            loss = binary_cross_entropy(states, table, targets, negatives, target_weight=weight) / draws
            loss.backward()
            return loss

        optimizer.step(closure)
        found[t] = torch.sigmoid(table[1:4, 0]).detach()
    torch.testing.assert_close(found[1.0], shares, rtol=0.06, atol=0)
    assert float(found[0.0].min()) > 0.6


@pytest.mark.parametrize("name", ["bce", "gbce"])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("sampler", ["uniform", "popularity", "in_batch"])
def test_compute_loss_applies_its_options(name: str, share: bool, sampler: str) -> None:
    if name == "gbce" and sampler != "uniform":
        with pytest.raises(ValueError, match="sampler must be uniform"):
            LossOptions(name="gbce", sampler=sampler)  # type: ignore[arg-type]
        return
    states, table, targets, _ = problem(50, 20, 8)
    popularity = PopularitySampler.from_counts(torch.arange(21))
    options = LossOptions(name=name, num_negatives=6, sampler=sampler, share_negatives=share, calibration=0.9)  # type: ignore[arg-type]
    found = compute_loss(options, states, table, targets, torch.Generator().manual_seed(3), popularity)
    shape = 6 if share else (50, 6)
    generator = torch.Generator().manual_seed(3)
    negatives = {
        "uniform": lambda: uniform_negatives(20, shape, generator, "cpu"),
        "popularity": lambda: popularity.sample(shape, generator, "cpu"),
        "in_batch": lambda: in_batch_negatives(targets, shape, generator),
    }[sampler]()
    beta = 1 - 0.9 * (1 - 6 / 19) if name == "gbce" else 1.0
    torch.testing.assert_close(found, plain(states, table, targets, negatives, beta))


def test_defaults_are_the_papers() -> None:
    states, table, targets, _ = problem(40, 2000, 4)
    for name, k, beta in (("bce", 1, 1.0), ("gbce", 256, 1 - 0.75 * (1 - 256 / 1999))):
        found = compute_loss(LossOptions(name=name), states, table, targets, torch.Generator().manual_seed(1))  # type: ignore[arg-type]
        negatives = uniform_negatives(2000, (40, k), torch.Generator().manual_seed(1), "cpu")
        torch.testing.assert_close(found, binary_cross_entropy(states, table, targets, negatives, target_weight=beta))


def test_options_refuse_what_makes_no_sense() -> None:
    for wrong, what in (
        ({"name": "gbce", "calibration": 1.1}, "calibration"),
        ({"name": "gbce", "calibration": math.nan}, "calibration"),
        ({"name": "bpr", "share_negatives": True}, "share_negatives"),
    ):
        with pytest.raises(ValueError, match=what):
            LossOptions(**wrong)  # type: ignore[arg-type]
