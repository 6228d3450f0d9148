"""TiSASRec's attention against its direct formula, and how little memory it takes."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.kernels.interval_attention import vectorised
from models.layers.interval_attention import interval_attention, interval_buckets


def example(lengths: list[int], heads: int, width: int, span: int, seed: int) -> list[Tensor]:
    """q, k, v, RK, RV, timestamps, offsets in float64; a third of the gaps is 0."""
    random = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    tokens = int(offsets[-1])
    normal = [
        torch.randn(rows, heads, width, generator=random, dtype=torch.float64)
        for rows in (tokens, tokens, tokens, span + 1, span + 1)
    ]
    gaps = torch.randint(0, 3, (tokens,), generator=random) * torch.randint(1, 5000, (tokens,), generator=random)
    return [*normal, gaps.cumsum(0) + 978_300_000, offsets]


def direct(
    q: Tensor, k: Tensor, v: Tensor, rk: Tensor, rv: Tensor, times: Tensor, offsets: Tensor, unit: str | None
) -> Tensor:
    """The formula with a vector for every pair, row by row."""
    outputs = []
    for first, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        if first == end:
            continue
        buckets = torch.tensor(intervals_by_hand(times[first:end].tolist(), len(rk) - 1, unit))
        pairs_k, pairs_v = rk[buckets], rv[buckets]  # [L, L, H, d]
        queries, keys, values = q[first:end], k[first:end], v[first:end]
        scores = torch.einsum("ihd,ijhd->hij", queries, keys[None] + pairs_k) / q.shape[-1] ** 0.5
        future = torch.ones(end - first, end - first, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hij,ijhd->ihd", weights, values[None] + pairs_v))
    return torch.cat(outputs)


def intervals_by_hand(times: list[int], span: int, unit: str | None) -> list[list[int]]:
    if unit is None:
        gaps = [after - before for before, after in pairwise(times) if after > before]
        smallest = min(gaps, default=1)
        times = [round((t - times[0]) / smallest) + 1 for t in times]
        return [[min(abs(a - b), span) for b in times] for a in times]
    seconds = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}[unit]
    return [[min(abs(a - b) // seconds, span) for b in times] for a in times]


def value_and_gradients(function, inputs: list[Tensor], **settings) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs[:5]]
    out = function(*leaves, *inputs[5:], **settings)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any),
    heads=st.integers(1, 3),
    span=st.sampled_from([1, 7, 256]),
    unit=st.sampled_from([None, "second", "minute", "hour", "day"]),
    seed=st.integers(0, 99),
)
def test_equals_the_direct_formula(lengths: list[int], heads: int, span: int, unit: str | None, seed: int) -> None:
    inputs = example(lengths, heads, 4, span, seed)
    expected = value_and_gradients(direct, inputs, unit=unit)
    for one, other in zip(value_and_gradients(interval_attention, inputs, unit=unit), expected, strict=True):
        assert (one - other).abs().max() <= 1e-10 * other.abs().max().clamp_min(1.0)


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = example([9, 9, 9, 9, 8, 3], 2, 4, 16, 0)
    whole = value_and_gradients(interval_attention, inputs, unit="hour")
    monkeypatch.setattr(vectorised, "NUMBERS_AT_A_TIME", 1)
    for one, other in zip(value_and_gradients(interval_attention, inputs, unit="hour"), whole, strict=True):
        assert (one - other).abs().max() < 1e-12


def test_units_bucket_raw_gaps_and_none_is_the_papers_scale() -> None:
    times = torch.tensor([[0, 0, 90, 3600, 7300]])
    assert interval_buckets(times, 100, "minute")[0, 4].tolist() == [100, 100, 100, 61, 0]
    assert interval_buckets(times, 100, "hour")[0, 4].tolist() == [2, 2, 2, 1, 0]
    assert interval_buckets(times, 100, None)[0, 4].tolist() == [81, 81, 80, 41, 0]  # in units of 90 seconds
    assert interval_buckets(torch.tensor([[5, 5]]), 9, None).tolist() == [[[0, 0], [0, 0]]]
    assert interval_buckets(torch.tensor([[5]]), 9, None).tolist() == [[[0]]]


def test_dropout_repeats_with_the_seed_and_the_backward_pass_uses_the_same_mask() -> None:
    """The output is linear in v: its gradient is the dropped weights, if forward and backward agree."""
    inputs = example([30, 12], 2, 4, 16, 0)
    v, weights = inputs[2].requires_grad_(), torch.randn(42, 2, 4, dtype=torch.float64)

    def run(values: Tensor) -> Tensor:
        torch.manual_seed(5)
        arguments = (*inputs[:2], values, *inputs[3:])
        return (interval_attention(*arguments, unit="hour", dropout=0.5) * weights).sum()

    (grad,) = torch.autograd.grad(run(v), v)
    step = torch.randn_like(v)
    difference = run((v + step).detach()) - run(v.detach())
    assert difference.item() == pytest.approx((grad * step).sum().item(), rel=1e-9)
    torch.manual_seed(6)
    arguments = (*inputs[:2], v, *inputs[3:])
    assert (interval_attention(*arguments, unit="hour", dropout=0.5) * weights).sum().item() != run(v).item()


MEMORY = """
import resource, torch
from models.layers.interval_attention import interval_attention
torch.manual_seed(0)
q, k, v = (torch.randn(128 * 200, 1, 50, requires_grad=True) for _ in range(3))
rk, rv = (torch.randn(257, 1, 50, requires_grad=True) for _ in range(2))
times, offsets = torch.randint(0, 9999, (128 * 200,)).cumsum(0), torch.arange(0, 128 * 200 + 1, 200)
def step(rows):
    tokens = 200 * rows
    out = interval_attention(q[:tokens], k[:tokens], v[:tokens], rk, rv, times[:tokens], offsets[: rows + 1],
                             unit="hour", dropout=0.2)
    out.sum().backward()
step(1)  # kernels and threads are there
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(128)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_at_the_papers_sizes_is_under_a_tenth_of_the_published_formulation() -> None:
    """Batch 128, length 200, width 50, forward and backward; the two tensors [B, L, L, D] alone take 2.05 GB."""
    result = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 2 * 128 * 200 * 200 * 50 * 4 / 10


def test_padded_places_do_not_matter() -> None:
    inputs = example([20, 19], 2, 4, 16, 1)  # one group: the second row has a padded place
    alone = example([20], 2, 4, 16, 1)
    alone[5] = inputs[5][:20]
    for place in range(3):
        alone[place] = inputs[place][:20]
    alone[3], alone[4] = inputs[3], inputs[4]
    both = interval_attention(*inputs, unit=None)
    np.testing.assert_allclose(both[:20].numpy(), interval_attention(*alone, unit=None).numpy(), atol=1e-12)
