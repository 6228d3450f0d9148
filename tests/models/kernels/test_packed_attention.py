"""Packed attention: every path gives the numbers of the padded formula, in value and gradient, dropout included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.kernels import packed_attention
from models.kernels.check import example
from models.kernels.packed_attention.cuda import packed_attention_varlen
from models.kernels.packed_attention.dropout import keep_weights
from models.kernels.packed_attention.vectorised import equal_length_groups

LENGTHS = st.lists(st.integers(0, 70), min_size=1, max_size=6).filter(any)
FAST = ("numba", "torch")


def with_gradients(inputs: list[Tensor], path: str, dropout: float = 0.0, seed: int = 3) -> list[Tensor]:
    torch.manual_seed(seed)
    leaves = [v.detach().clone().requires_grad_() for v in inputs[:3]]
    out = packed_attention(leaves[0], leaves[1], leaves[2], inputs[3], dropout=dropout, path=path)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


def double(inputs: list[Tensor]) -> list[Tensor]:
    return [v.double() if v.is_floating_point() else v for v in inputs]


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, heads=st.integers(1, 3), width=st.sampled_from([1, 5, 16, 25, 32]), seed=st.integers(0, 99))
def test_random_rows(lengths: list[int], heads: int, width: int, seed: int) -> None:
    inputs = example("packed_attention", lengths, width, heads, seed)
    expected = with_gradients(double(inputs), "reference")
    for one, other in zip(with_gradients(double(inputs), "torch"), expected, strict=True):
        # A row of one token has no gradient of its score: round-off, 1e-15 here, stands against an exact zero.
        assert (one - other).abs().max() <= 1e-10 * other.abs().max().clamp_min(1e-3)
    for one, other in zip(with_gradients(inputs, "numba"), expected, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max().clamp_min(1.0)


@settings(max_examples=20, deadline=None)
@given(lengths=LENGTHS, heads=st.integers(1, 3), seed=st.integers(0, 2**40), share=st.sampled_from([0.1, 0.5, 0.9]))
def test_dropout_of_the_compiled_path_is_the_references(
    lengths: list[int], heads: int, seed: int, share: float
) -> None:
    inputs = example("packed_attention", lengths, 16, heads)
    expected = with_gradients(double(inputs), "reference", share, seed)
    for one, other in zip(with_gradients(inputs, "numba", share, seed), expected, strict=True):
        assert (one - other).abs().max() <= 2e-5 * other.abs().max().clamp_min(1.0)


def test_against_sums_by_hand() -> None:
    inputs = example("packed_attention", (4, 1, 3), width=3, states=2)
    q, k, v = (x.double().numpy() for x in inputs[:3])
    expected = np.zeros_like(q)
    for start, stop in ((0, 4), (4, 5), (5, 8)):
        for i in range(start, stop):
            for head in range(2):
                scores = [math.exp(q[i, head] @ k[j, head] / math.sqrt(3)) for j in range(start, i + 1)]
                expected[i, head] = sum(
                    score * v[j, head] for score, j in zip(scores, range(start, i + 1), strict=True)
                ) / sum(scores)
    for path in ("numba", "torch", "reference"):
        found = packed_attention(*inputs[:3], inputs[3], path=path)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_gradients_against_finite_differences_in_float64() -> None:
    *inputs, offsets = double(example("packed_attention", (3, 1, 18), width=2, states=2))
    leaves = [x.requires_grad_() for x in inputs]
    for path in ("torch", "reference"):
        assert torch.autograd.gradcheck(lambda *x, path=path: packed_attention(*x, offsets, path=path), leaves)


@pytest.mark.parametrize("path", FAST)
def test_rows_do_not_see_each_other_nor_the_future(path: str) -> None:
    q, k, v, offsets = example("packed_attention", (5, 4, 3))
    changed = [x.clone() for x in (q, k, v)]
    for x in changed:
        x[7:9] += 1.0  # the last two tokens of the second row
    before, after = packed_attention(q, k, v, offsets, path=path), packed_attention(*changed, offsets, path=path)
    same = [*range(7), *range(9, 12)]
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[7:9], after[7:9])


def test_bit_identical_from_run_to_run_and_for_any_number_of_threads() -> None:
    inputs, threads = example("packed_attention", [1 + 7 * i % 90 for i in range(80)], 16, 2), torch.get_num_threads()
    first = with_gradients(inputs, "numba", 0.2)
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            again = with_gradients(inputs, "numba", 0.2)
            assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("path", FAST)
def test_dropout_comes_from_torchs_generator(path: str) -> None:
    inputs = example("packed_attention", (40, 9), 16, 2)
    first, again, other = (with_gradients(inputs, path, 0.3, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    packed_attention(*inputs[:3], inputs[3], path=path)
    assert torch.equal(state, torch.get_rng_state())  # without dropout nothing is drawn


@pytest.mark.parametrize("path", FAST)
def test_dropout_keeps_the_mean_and_drops_the_share(path: str) -> None:
    """With values that are the identity the output is the dropped weights themselves."""
    length, share = 64, 0.3
    q, k = torch.zeros(length, 1, length), torch.zeros(length, 1, length)  # equal scores: weights 1 / (i + 1)
    values, offsets = torch.eye(length)[:, None], torch.tensor([0, length])
    torch.manual_seed(0)
    drawn = [packed_attention(q, k, values, offsets, dropout=share, path=path)[:, 0] for _ in range(20)]
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    dropped = torch.stack([(one == 0)[seen].float().mean() for one in drawn]).mean()
    assert dropped.item() == pytest.approx(share, abs=0.01)  # 41,600 draws: a standard error of 0.002
    assert torch.stack([one.sum(1) for one in drawn]).mean().item() == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(drawn[0], drawn[1])


def test_dropped_weights_are_independent_along_every_axis() -> None:
    offsets = torch.arange(0, 241, 24)
    keep = keep_weights(12345678901234567, offsets, heads=3, length=24, dropout=0.5) / 2 - 0.5  # [10, 3, 24, 24]
    for axis in range(4):
        for step in (1, 2):
            size = keep.shape[axis] - step
            pair = keep.narrow(axis, 0, size) * keep.narrow(axis, step, size)
            assert abs(pair.mean().item()) * 4 < 4 / math.sqrt(pair.numel())  # four standard errors


@pytest.mark.parametrize("path", FAST)
def test_large_scores_stay_finite_and_nan_is_not_swallowed(path: str) -> None:
    q, k, v, offsets = example("packed_attention", (20, 3), 16, 2)
    found = packed_attention(q * 1e3, k * 1e3, v, offsets, path=path)
    expected = packed_attention(q.double() * 1e3, k.double() * 1e3, v.double(), offsets, path="reference")
    assert (found - expected).abs().max() < 0.05
    for place in range(3):
        inputs = [x.clone() for x in (q, k, v)]
        inputs[place][0, 0, 0] = torch.nan
        assert packed_attention(*inputs, offsets, path=path).isnan().any(), place


def test_views_of_one_projection_give_the_same_as_copies() -> None:
    q, k, v, offsets = example("packed_attention", (9, 22), 16, 2)
    together = torch.cat([x.flatten(1) for x in (q, k, v)], 1)
    views = [x.view(31, 2, 16) for x in together.chunk(3, 1)]
    for path in FAST:
        found, whole = packed_attention(*views, offsets, path=path), packed_attention(q, k, v, offsets, path=path)
        assert torch.equal(found, whole)


def test_mistakes_are_named() -> None:
    q, k, v, offsets = example("packed_attention", (5, 3))
    with pytest.raises(ValueError, match="packed_attention: k has shape"):
        packed_attention(q, k[:-1], v, offsets)
    with pytest.raises(ValueError, match=r"dropout 1.0 is not in \[0, 1\)"):
        packed_attention(q, k, v, offsets, dropout=1.0)
    with pytest.raises(ValueError, match=r"offsets must run from 0 to the number of tokens, 8"):
        packed_attention(q, k, v, torch.tensor([0, 5, 9]), path="numba")


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(0, 300), max_size=200))
def test_groups_hold_every_row_once_with_little_padding(lengths: list[int]) -> None:
    array = np.array(lengths, dtype=np.int64)
    groups = equal_length_groups(array)
    assert sorted(np.concatenate([*groups, np.empty(0, np.int64)])) == np.flatnonzero(array).tolist()
    for rows in groups:
        padded = len(rows) * array[rows].max()
        assert padded <= 1.05 * array[rows].sum()


def test_a_batch_like_movielens_needs_few_groups() -> None:
    """The loop of the torch path is over groups: 128 windows, two thirds of them full, make a dozen of them."""
    lengths = np.minimum(np.random.default_rng(0).lognormal(4.9, 1.0, 128).astype(np.int64) + 18, 200)
    groups = equal_length_groups(lengths)
    assert len(groups) <= 20
    padded = sum(len(rows) * lengths[rows].max() for rows in groups)
    assert padded / lengths.sum() < 1.05


def test_the_varlen_path_says_when_its_kernel_cannot_run_and_gives_the_same_numbers() -> None:
    q, k, v, offsets = example("packed_attention", (9, 22), 16, 2)
    assert torch.equal(packed_attention_varlen(q, k, v, offsets), packed_attention(q, k, v, offsets, path="torch"))
    if torch.cuda.is_available():
        pytest.skip("the kernel runs here; the CPU half of this test is about machines where it does not")
    half = [x.bfloat16() for x in (q, k, v)]
    with pytest.warns(UserWarning, match="varlen kernel fails and is not used"):
        found = packed_attention_varlen(*half, offsets)
    assert torch.equal(found, packed_attention(*half, offsets, path="torch"))
