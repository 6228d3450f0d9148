"""Every loss against autograd through its plain, memory-hungry definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.losses import (
    LossOptions,
    PopularitySampler,
    bpr,
    compute_loss,
    full_softmax,
    sampled_softmax,
    uniform_negatives,
)
from models.losses.gradients import compute_dtype, cpu_multiplies_bfloat16, tokens_at_a_time

Gradients = tuple[Tensor, Tensor, Tensor]


def problem(
    tokens: int, items: int, dim: int, *, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    states = (scale * torch.randn(tokens, dim, generator=generator, dtype=torch.float64)).to(dtype)
    table = torch.randn(items + 1, dim, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(1, items + 1, (tokens,), generator=generator)
    return states.requires_grad_(), table.requires_grad_(), targets, generator


def differentiate(loss: Callable[[Tensor, Tensor], Tensor], states: Tensor, table: Tensor) -> Gradients:
    """Value and gradients of ``loss / 7``: a scale that a forgotten grad_output would miss."""
    value = loss(states, table)
    grad_states, grad_table = torch.autograd.grad(value / 7, (states, table))
    return value.detach(), grad_states, grad_table


def plain_softmax(states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(states @ table[1:].t(), targets - 1, reduction="sum")


def plain_sampled(
    states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor, log_q: Tensor | None = None
) -> Tensor:
    """``log_q`` is by item here."""
    candidates = torch.cat([targets[:, None], negatives.expand(len(targets), -1)], dim=1)  # [M, 1 + K]
    logits = torch.einsum("md,mkd->mk", states, table[candidates])
    if log_q is not None:
        logits = logits - log_q[candidates]
    hits = candidates == targets[:, None]
    hits[:, 0] = False
    return F.cross_entropy(logits.masked_fill(hits, float("-inf")), torch.zeros_like(targets), reduction="sum")


def plain_bpr(states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    total = states.new_zeros(())
    for state, target, row in zip(states, targets.tolist(), negatives.reshape(len(targets), -1).tolist(), strict=True):
        terms = [-F.logsigmoid(state @ table[target] - state @ table[item]) for item in row if item != target]
        total = total + (torch.stack(terms).mean() if terms else 0.0)
    return total


def assert_equal(found: Gradients, expected: Gradients, tolerance: float) -> None:
    for name, left, right in zip(("loss", "states", "table"), found, expected, strict=True):
        error = (left - right).norm() / right.norm().clamp(min=1e-30)
        assert error <= tolerance, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])  # 30: logits of several hundred, exp of which is infinite
def test_full_softmax_float32_equals_cross_entropy(scale: float) -> None:
    states, table, targets, _ = problem(300, 57, 16, scale=scale)
    found = differentiate(lambda s, t: full_softmax(s, t, targets, precision="float32"), states, table)
    assert_equal(found, differentiate(lambda s, t: plain_softmax(s, t, targets), states, table), 1e-5)


@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_full_softmax_float64_is_not_cast(scale: float) -> None:
    states, table, targets, _ = problem(40, 23, 8, scale=scale, dtype=torch.float64)
    for precision in ("float32", "auto"):
        found = differentiate(lambda s, t, p=precision: full_softmax(s, t, targets, precision=p), states, table)
        assert found[0].dtype == torch.float64
        assert_equal(found, differentiate(lambda s, t: plain_softmax(s, t, targets), states, table), 1e-12)


@pytest.mark.parametrize("scale", [0.3, 2.0])  # 2: logits up to 40
def test_full_softmax_bfloat16_is_close_and_unbiased(scale: float) -> None:
    states, table, targets, _ = problem(2000, 301, 32, scale=scale)
    found = differentiate(lambda s, t: full_softmax(s, t, targets, precision="bfloat16"), states, table)
    expected = differentiate(lambda s, t: plain_softmax(s, t, targets), states, table)
    assert found[1].dtype == found[2].dtype == torch.float32
    assert_equal((found[0], *expected[1:]), expected, 1e-3)
    assert_equal(found, expected, 1.5e-2)
    for left, right in zip(found[1:], expected[1:], strict=True):  # the error does not point along the gradient
        assert abs(float(((left - right) * right).sum() / right.square().sum())) < 1e-3


def test_full_softmax_bfloat16_loss_of_certain_predictions_is_not_negative() -> None:
    table = torch.cat([torch.zeros(1, 8), 5 * torch.eye(8)])
    targets = torch.arange(1, 9)
    loss = full_softmax(table[targets], table, targets, precision="bfloat16")
    assert 0 <= float(loss) < 1e-5


@pytest.mark.parametrize("scale", [0.1, 30.0])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunk_size_does_not_change_full_softmax(chunk: int, scale: float) -> None:
    states, table, targets, _ = problem(150, 31, 8, scale=scale)
    found = differentiate(lambda s, t: full_softmax(s, t, targets, chunk=chunk, precision="float32"), states, table)
    assert_equal(found, differentiate(lambda s, t: plain_softmax(s, t, targets), states, table), 1e-5)


def test_full_softmax_splits_large_catalogues() -> None:
    states, table, targets, _ = problem(20, 20_000, 4)  # more items than one block of the table's gradient
    found = differentiate(lambda s, t: full_softmax(s, t, targets, precision="float32"), states, table)
    assert_equal(found, differentiate(lambda s, t: plain_softmax(s, t, targets), states, table), 1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_full_softmax_repeats_bit_for_bit(precision: str) -> None:
    states, table, targets, _ = problem(1000, 211, 16)
    runs = [
        differentiate(lambda s, t: full_softmax(s, t, targets, precision=precision, chunk=128), states, table)
        for _ in range(3)
    ]
    for run in runs[1:]:
        assert all(torch.equal(left, right) for left, right in zip(run, runs[0], strict=True))


def test_non_finite_states_give_a_non_finite_loss() -> None:
    states, table, targets, _ = problem(10, 20, 4)
    broken = states.detach().clone()
    broken[3] = float("nan")
    assert not torch.isfinite(full_softmax(broken, table, targets))


def all_losses(targets: Tensor, negatives: Tensor) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    own = negatives[: targets.numel() * 3].reshape(targets.numel(), 3)
    return {
        "full": lambda s, t: full_softmax(s, t, targets, precision="float32"),
        "sampled": lambda s, t: sampled_softmax(s, t, targets, negatives, precision="float32"),
        "bpr": lambda s, t: bpr(s, t, targets, own),
    }


@pytest.mark.parametrize("name", ["full", "sampled", "bpr"])
class TestEveryLoss:
    def test_padding_row_gets_no_gradient_and_no_weight(self, name: str) -> None:
        states, table, targets, generator = problem(30, 12, 4)
        loss = all_losses(targets, uniform_negatives(12, 90, generator, "cpu"))[name]
        value, _, grad_table = differentiate(loss, states, table)
        assert torch.count_nonzero(grad_table[0]) == 0
        assert torch.count_nonzero(grad_table[1:]) > 0
        changed = table.detach().clone()
        changed[0] = 1e3
        assert torch.equal(loss(states, changed).detach(), value)

    def test_no_tokens(self, name: str) -> None:
        states, table, targets, generator = problem(0, 12, 4)
        value, grad_states, grad_table = differentiate(
            all_losses(targets, uniform_negatives(12, 5, generator, "cpu"))[name], states, table
        )
        assert float(value) == 0 and grad_states.shape == (0, 4) and torch.count_nonzero(grad_table) == 0

    def test_validation_gives_the_same_value_without_a_graph(self, name: str) -> None:
        states, table, targets, generator = problem(30, 12, 4)
        loss = all_losses(targets, uniform_negatives(12, 90, generator, "cpu"))[name]
        with torch.no_grad():
            value = loss(states, table)
        assert not value.requires_grad
        assert torch.equal(value, loss(states, table).detach())

    def test_only_the_gradients_asked_for(self, name: str) -> None:
        states, table, targets, generator = problem(30, 12, 4)
        loss = all_losses(targets, uniform_negatives(12, 90, generator, "cpu"))[name]
        _, grad_states, grad_table = differentiate(loss, states, table)
        (alone,) = torch.autograd.grad(loss(states, table.detach()) / 7, states)
        assert torch.equal(alone, grad_states)
        (alone,) = torch.autograd.grad(loss(states.detach(), table) / 7, table)
        assert torch.equal(alone, grad_table)

    def test_second_backward_is_refused(self, name: str) -> None:
        states, table, targets, generator = problem(30, 12, 4)
        value = all_losses(targets, uniform_negatives(12, 90, generator, "cpu"))[name](states, table)
        value.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once"):
            value.backward()

    def test_gradients_are_those_of_finite_differences(self, name: str) -> None:
        states, table, targets, generator = problem(9, 7, 3, dtype=torch.float64)
        loss = all_losses(targets, uniform_negatives(7, 27, generator, "cpu"))[name]
        value = loss(states, table)
        for tensor, gradient in zip((states, table), torch.autograd.grad(value, (states, table)), strict=True):
            direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                ends = []
                for step in (1e-5, -1e-5):
                    moved = tensor + step * direction
                    ends.append(loss(moved, table) if tensor is states else loss(states, moved))
            numeric = (ends[0] - ends[1]) / 2e-5
            assert float(numeric) == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("chunk", [1, 13, None])
def test_sampled_softmax_equals_its_definition(chunk: int | None, corrected: bool) -> None:
    states, table, targets, generator = problem(60, 25, 8, scale=4.0)
    negatives = uniform_negatives(25, 40, generator, "cpu")  # more draws than items: repeats and accidental hits
    log_q = torch.randn(26, generator=generator) if corrected else None

    def loss(s: Tensor, t: Tensor) -> Tensor:
        options = {} if log_q is None else {"log_q": log_q[negatives], "target_log_q": log_q[targets]}
        return sampled_softmax(s, t, targets, negatives, chunk=chunk, precision="float32", **options)

    expected = differentiate(lambda s, t: plain_sampled(s, t, targets, negatives, log_q), states, table)
    assert_equal(differentiate(loss, states, table), expected, 1e-5)


def test_sampled_softmax_bfloat16_is_close() -> None:
    states, table, targets, generator = problem(1000, 500, 32)
    negatives = uniform_negatives(500, 100, generator, "cpu")
    found = differentiate(lambda s, t: sampled_softmax(s, t, targets, negatives, precision="bfloat16"), states, table)
    expected = differentiate(lambda s, t: plain_sampled(s, t, targets, negatives), states, table)
    assert_equal(found, expected, 1.5e-2)


def test_accidental_hits_do_not_compete() -> None:
    states, table, targets, _ = problem(1, 5, 4)
    others = torch.tensor([item for item in range(1, 6) if item != int(targets)])
    with_hits = torch.cat([others, targets, targets])
    expected = full_softmax(states, table, targets, precision="float32")  # every other item once: the full loss
    found = sampled_softmax(states, table, targets, with_hits, precision="float32")
    torch.testing.assert_close(found, expected)
    assert sampled_softmax(states, table, targets, targets, precision="float32").item() == 0.0


def test_correction_undoes_the_popularity_of_the_draw() -> None:
    """K corrected draws stand for all items: ``(e^loss - 1) / K = q_t (sum of the others' e^score) / e^score_t``."""
    states, table, targets, generator = problem(1, 50, 8, scale=0.5)
    sampler = PopularitySampler.from_counts(torch.arange(51))
    negatives = sampler.sample(200_000, generator, "cpu")
    loss = sampled_softmax(
        states,
        table,
        targets,
        negatives,
        log_q=sampler.log_probability(negatives),
        target_log_q=sampler.log_probability(targets),
        precision="float32",
    )
    scores = (states @ table[1:].t())[0].exp()
    target = int(targets) - 1
    expected = sampler.log_q[target + 1].exp() * (scores.sum() - scores[target]) / scores[target]
    assert (loss.exp().item() - 1) / 200_000 == pytest.approx(expected.item(), rel=0.02)


def test_sampled_softmax_refuses_half_a_correction_and_no_negatives() -> None:
    states, table, targets, _ = problem(3, 5, 2)
    with pytest.raises(ValueError, match="come together"):
        sampled_softmax(states, table, targets, targets, log_q=torch.zeros(3))
    with pytest.raises(ValueError, match="at least one negative"):
        sampled_softmax(states, table, targets, targets[:0])


@pytest.mark.parametrize("chunk", [1, 7, None])
@pytest.mark.parametrize("k", [None, 1, 5])
def test_bpr_equals_its_definition(k: int | None, chunk: int | None) -> None:
    states, table, targets, generator = problem(40, 6, 8, scale=3.0)  # six items: accidental hits, whole rows of them
    negatives = uniform_negatives(6, (40,) if k is None else (40, k), generator, "cpu")
    expected = differentiate(lambda s, t: plain_bpr(s, t, targets, negatives), states, table)
    assert_equal(differentiate(lambda s, t: bpr(s, t, targets, negatives, chunk=chunk), states, table), expected, 1e-5)


def test_bpr_refuses_negatives_of_another_batch() -> None:
    states, table, targets, _ = problem(4, 6, 2)
    with pytest.raises(ValueError, match="M = 4"):
        bpr(states, table, targets, torch.ones(3, dtype=torch.int64))


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40),
    items=st.integers(1, 30),
    dim=st.integers(1, 9),
    chunk=st.one_of(st.none(), st.integers(1, 50)),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
    seed=st.integers(0, 2**20),
)
def test_any_shape(tokens: int, items: int, dim: int, chunk: int | None, scale: float, seed: int) -> None:
    states, table, targets, generator = problem(tokens, items, dim, seed=seed, scale=scale, dtype=torch.float64)
    negatives = uniform_negatives(items, 2 * items, generator, "cpu")
    own = uniform_negatives(items, (tokens, 2), generator, "cpu")
    pairs: list[tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = [
        (lambda s, t: full_softmax(s, t, targets, chunk=chunk), lambda s, t: plain_softmax(s, t, targets)),
        (
            lambda s, t: sampled_softmax(s, t, targets, negatives, chunk=chunk),
            lambda s, t: plain_sampled(s, t, targets, negatives),
        ),
        (lambda s, t: bpr(s, t, targets, own, chunk=chunk), lambda s, t: plain_bpr(s, t, targets, own) + 0 * t.sum()),
    ]
    for ours, plain in pairs:
        for left, right in zip(
            differentiate(ours, states, table),
            differentiate(lambda s, t, f=plain: f(s, t) + 0 * (s.sum() + t.sum()), states, table),
            strict=True,
        ):
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_uniform_negatives_cover_the_catalogue_without_padding() -> None:
    drawn = uniform_negatives(10, 5000, torch.Generator().manual_seed(1), "cpu")
    shares = torch.bincount(drawn, minlength=11) / 5000
    assert shares[0] == 0 and len(shares) == 11
    assert float((shares[1:] - 0.1).abs().max()) < 0.02
    assert torch.equal(drawn, uniform_negatives(10, 5000, torch.Generator().manual_seed(1), "cpu"))
    assert uniform_negatives(10, (3, 4), torch.Generator(), "cpu").shape == (3, 4)


@pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
def test_popularity_sampler_draws_what_log_q_says(power: float) -> None:
    counts = torch.tensor([999, 0, 3, 10, 100, 1])  # padding's count is ignored, none counts as one
    sampler = PopularitySampler.from_counts(counts, power)
    weights = torch.tensor([1.0, 3.0, 10.0, 100.0, 1.0]).pow(power)
    torch.testing.assert_close(sampler.log_q[1:].exp(), weights / weights.sum())
    drawn = sampler.sample((200, 200), torch.Generator().manual_seed(2), "cpu")
    assert drawn.min() >= 1
    shares = torch.bincount(drawn.flatten(), minlength=6)[1:] / drawn.numel()
    assert float((shares - weights / weights.sum()).abs().max()) < 0.01
    torch.testing.assert_close(sampler.log_probability(drawn), sampler.log_q[drawn])


@pytest.mark.parametrize("name", ["softmax", "sampled_softmax", "bpr"])
@pytest.mark.parametrize("sampler", ["uniform", "popularity"])
def test_compute_loss_applies_its_options(name: str, sampler: str) -> None:
    states, table, targets, _ = problem(50, 20, 8)
    popularity = PopularitySampler.from_counts(torch.arange(21))
    options = LossOptions(name=name, num_negatives=6, sampler=sampler, precision="float32")  # type: ignore[arg-type]
    found = compute_loss(options, states, table, targets, torch.Generator().manual_seed(3), popularity)

    def draw(shape: int | tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        if sampler == "popularity":
            return popularity.sample(shape, generator, "cpu")
        return uniform_negatives(20, shape, generator, "cpu")

    if name == "softmax":
        expected = plain_softmax(states, table, targets)
    elif name == "bpr":
        expected = plain_bpr(states, table, targets, draw((50, 6)))
    else:
        log_q = popularity.log_q if sampler == "popularity" else None
        expected = plain_sampled(states, table, targets, draw(6), log_q)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_options_refuse_what_they_do_not_know() -> None:
    for wrong in ({"name": "hinge"}, {"sampler": "zipf"}, {"precision": "fp8"}, {"num_negatives": 0}, {"chunk": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LossOptions(**wrong)  # type: ignore[arg-type]
    states, table, targets, generator = problem(3, 5, 2)
    with pytest.raises(ValueError, match="training counts"):
        compute_loss(LossOptions(name="bpr", sampler="popularity"), states, table, targets, generator)


def test_precision_is_chosen_by_dtype_and_machine() -> None:
    single, double = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.float64)
    assert compute_dtype(double, "auto") == torch.float64
    assert compute_dtype(double, "float32") == torch.float64
    assert compute_dtype(single, "float32") == torch.float32
    assert compute_dtype(single, "bfloat16") == torch.bfloat16
    assert (compute_dtype(single, "auto") == torch.bfloat16) == cpu_multiplies_bfloat16()
    with pytest.raises(ValueError, match="precision"):
        compute_dtype(single, "half")  # type: ignore[arg-type]


def test_chunks_shrink_as_the_catalogue_grows() -> None:
    sizes = [tokens_at_a_time(items, torch.device("cpu"), None) for items in (10, 3_000, 30_000, 300_000)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 128 and sizes[0] == 4096
    assert tokens_at_a_time(3_000, torch.device("cpu"), 5) == 5
    with pytest.raises(ValueError, match="chunk"):
        tokens_at_a_time(3_000, torch.device("cpu"), 0)


def test_autocast_does_not_reach_a_float32_loss() -> None:
    states, table, targets, _ = problem(300, 57, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = differentiate(lambda s, t: full_softmax(s, t, targets, precision="float32"), states, table)
    assert_equal(found, differentiate(lambda s, t: plain_softmax(s, t, targets), states, table), 1e-5)
