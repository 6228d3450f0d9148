"""HSTU's attention: every path gives the equations' numbers for every mask, and nobody sees what is masked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.kernels.check import example, largest_error, value_and_gradients
from models.kernels.hstu_attention import (
    AttentionMask,
    RelativeBias,
    bucket_borders,
    hstu_attention,
    time_bucket,
)
from models.kernels.paths import PATHS, load
from tests.pipelines.estimate.live_tensors import LiveBytes

FAST = ("numba", "torch")
EVERY = (*FAST, "reference")


@dataclass(frozen=True)
class Case:
    """Rows and who sees whom in them."""

    lengths: list[int]
    context: list[int]
    candidates: list[int]
    causal: bool
    group: int
    heads: int
    width: int
    value_width: int
    places: int
    buckets: int
    seed: int

    @property
    def mask(self) -> AttentionMask:
        return AttentionMask(self.causal, torch.tensor(self.context), torch.tensor(self.candidates), self.group)

    @property
    def offsets(self) -> Tensor:
        return torch.tensor([0, *self.lengths]).cumsum(0)

    def inputs(self) -> list[Tensor]:
        """Tensors in the order of the paths' arguments; times run backwards here and there."""
        random = torch.Generator().manual_seed(self.seed)
        tokens = sum(self.lengths)
        q, k = (torch.randn(tokens, self.heads, self.width, generator=random) for _ in range(2))
        v = torch.randn(tokens, self.heads, self.value_width, generator=random)
        position = torch.randn(2 * self.places - 1 if self.places else 0, generator=random)
        time = torch.randn(self.buckets, generator=random)
        times, after = (torch.randint(-20, 20, (tokens,), generator=random) ** 5 for _ in range(2))
        seen = self.mask.seen(self.offsets, tokens)
        return [q, k, v, position, time, self.offsets, seen, times.cumsum(0), (times.cumsum(0) + after)]


@st.composite
def cases(draw: Any) -> Case:
    lengths = draw(st.lists(st.integers(1, 70), min_size=1, max_size=5))
    context = [draw(st.integers(0, min(length, 20))) for length in lengths]
    candidates = [draw(st.integers(0, length - c)) for length, c in zip(lengths, context, strict=True)]
    return Case(
        lengths,
        context,
        candidates,
        causal=draw(st.booleans()),
        group=draw(st.sampled_from([1, 2, 3])),
        heads=draw(st.sampled_from([1, 3])),
        width=draw(st.sampled_from([1, 16, 24])),
        value_width=draw(st.sampled_from([1, 16, 40])),
        places=draw(st.sampled_from([0, 1, 9, 80])),
        buckets=draw(st.sampled_from([0, 1, 12, 128])),
        seed=draw(st.integers(0, 99)),
    )


def path_of(name: str) -> Any:
    return next(path for path in PATHS["hstu_attention"] if path.name == name)


def double(inputs: list[Tensor]) -> list[Tensor]:
    return [v.double() if v.is_floating_point() else v for v in inputs]


def run_path(name: str, inputs: list[Tensor]) -> list[Tensor]:
    """The output, then the gradients of a weighted sum of it; zero for a table that is not there."""
    leaves = [v.clone().requires_grad_(v.is_floating_point()) for v in inputs]
    out = load(path_of(name))(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    grads = torch.autograd.grad((out * weights).sum(), leaves[:5], allow_unused=True, materialize_grads=True)
    return [out.detach(), *grads]


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_value_and_gradients_of_every_mask_and_length(name: str, case: Case) -> None:
    inputs = case.inputs()
    expected = run_path("reference", double(inputs))
    for place, (one, other) in enumerate(zip(run_path(name, inputs), expected, strict=True)):
        # of numbers around 1: a table's gradient adds up all pairs and may cancel to almost nothing
        largest = max([1.0, *other.abs().flatten().tolist()])
        torch.testing.assert_close(one.double(), other, rtol=0, atol=(1e-4 if place > 3 else 1e-5) * largest)
    if name == "torch":
        exact = run_path(name, double(inputs))
        assert all(torch.allclose(one, other, atol=1e-11) for one, other in zip(exact, expected, strict=True))


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_who_sees_whom_is_what_the_masks_say(case: Case) -> None:
    """Against the sentences of :class:`AttentionMask`, token by token."""
    tokens = sum(case.lengths)
    q, v = torch.ones(tokens, 1, 1), torch.arange(tokens)
    one_hot = torch.nn.functional.one_hot(v, tokens).float()[:, None]  # what each key gives is its own column
    out = hstu_attention(q, q, one_hot, case.offsets, max_length=1, mask=case.mask, path="numba")[:, 0]
    for row, (length, c, n) in enumerate(zip(case.lengths, case.context, case.candidates, strict=True)):
        start, history = int(case.offsets[row]), length - n
        for i in range(length):
            for j in range(length):
                if i >= history:
                    group = (i - history) // case.group == (j - history) // case.group if j >= history else False
                    sees = j < history or (group and (j <= i or not case.causal))
                else:
                    sees = j < history and (j <= i or not case.causal or j < c)
                assert bool(out[start + i, start + j] > 0) == sees, (row, i, j)
        assert not out[start : start + length, :start].any() and not out[start : start + length, start + length :].any()


@pytest.mark.parametrize("name", EVERY)
def test_sums_by_hand(name: str) -> None:
    random = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 4, 2, 3, generator=random).double()
    position, time = torch.randn(2, 5, generator=random).double()
    times = torch.tensor([0, 10, 10, 500])
    after = torch.tensor([10, 10, 500, 501])
    bias = RelativeBias(position, time, times, after)
    settings_ = {"max_length": 7, "mask": AttentionMask(), "bias": bias, "scale": 0.3, "path": name}
    out = hstu_attention(q, k, v, torch.tensor([0, 4]), **settings_)
    expected = torch.zeros(4, 2, 3).double()
    for i in range(4):
        for j in range(i + 1):
            bucket = min(4, math.floor(math.log(max(1, abs(int(after[i] - times[j])))) / 0.301))
            place = 2 + min(2, i - j)  # the table knows distances up to 2
            for h in range(2):
                score = 0.3 * float(q[i, h] @ k[j, h]) + float(position[place]) + float(time[bucket])
                expected[i, h] += score / (1 + math.exp(-score)) / 7 * v[j, h]
    assert torch.allclose(out, expected, atol=1e-6 if name == "numba" else 1e-12)


def test_gradients_against_finite_differences_in_float64() -> None:
    *inputs, offsets, seen, times, after = double(example("hstu_attention", (3, 1, 9), width=2, states=2))
    leaves = [v.requires_grad_() for v in inputs]

    for name in ("torch", "reference"):

        def run(*v: Tensor, name: str = name) -> Tensor:
            bias = RelativeBias(v[3], v[4], times, after)
            return hstu_attention(*v[:3], offsets, max_length=3, mask=seen, bias=bias, scale=0.5, path=name)

        assert torch.autograd.gradcheck(run, leaves)


@settings(max_examples=25, deadline=None)
@given(history=st.integers(1, 40), targets=st.integers(1, 6), group=st.sampled_from([1, 2]), seed=st.integers(0, 99))
def test_a_target_is_scored_as_if_it_were_alone(history: int, targets: int, group: int, seed: int) -> None:
    """With its bias: what other groups stand before it must not count."""
    tokens = history + targets * group
    random = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, tokens, 2, 8, generator=random)
    position, time = torch.randn(2 * 50 - 1, generator=random), torch.randn(20, generator=random)
    times = torch.randint(0, 900, (tokens,), generator=random).sort().values

    def run(places: Tensor, candidates: int) -> Tensor:
        mask = AttentionMask(num_candidates=torch.tensor([candidates]), target_group_size=group)
        bias = RelativeBias(position, time, times[places], times[places])
        borders = torch.tensor([0, len(places)])
        return hstu_attention(q[places], k[places], v[places], borders, max_length=50, mask=mask, bias=bias)

    together = run(torch.arange(tokens), targets * group)
    for target in range(targets):
        own = torch.arange(history + target * group, history + (target + 1) * group)
        alone = run(torch.cat((torch.arange(history), own)), group)
        assert torch.allclose(together[own], alone[history:], atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_rows_do_not_see_each_other_nor_the_future(name: str) -> None:
    q, k, v, position, time, offsets, _, times, after = example("hstu_attention", (5, 4, 3))
    run = {"max_length": 5, "mask": AttentionMask(), "bias": RelativeBias(position, time, times, after), "path": name}
    before = hstu_attention(q, k, v, offsets, **run)
    k[7:9] += 1.0  # the last two tokens of the second row
    v[7:9] += 1.0
    changed = hstu_attention(q, k, v, offsets, **run)
    same = [*range(7), *range(9, 12)]
    assert torch.equal(before[same], changed[same])
    assert not torch.equal(before[7:9], changed[7:9])


@pytest.mark.parametrize("name", EVERY)
def test_each_setting_and_table_counts(name: str) -> None:
    q, k, v, position, time, offsets, seen, times, after = example("hstu_attention", (20, 9))
    bias = RelativeBias(position, time, times, after)
    base = {"max_length": 20, "mask": seen, "bias": bias, "scale": 0.5, "path": name}
    out = hstu_attention(q, k, v, offsets, **base)
    halved = hstu_attention(q, k, v, offsets, **{**base, "max_length": 40})
    assert torch.allclose(2 * halved, out, atol=1e-6)  # N is what was said, not the longest row
    changes = (
        {"scale": 1.0},
        {"bias": None},
        {"bias": RelativeBias(position)},
        {"bias": RelativeBias(None, time, times, after)},
        {"mask": AttentionMask()},
    )
    for change in changes:
        assert not torch.allclose(hstu_attention(q, k, v, offsets, **{**base, **change}), out, atol=1e-3), change


def test_buckets_by_border_are_the_buckets_by_logarithm() -> None:
    borders = bucket_borders(128)
    near = [border + step for border in borders[:60] for step in (-1, 0, 1)]
    seconds = torch.tensor([0, 1, 2, 3, 60, 86400, 10**9, *near])
    by_border = torch.bucketize(seconds, torch.tensor(borders), right=True)
    assert torch.equal(by_border, time_bucket(seconds, 128))
    assert time_bucket(torch.tensor([-86400, 86400, 0, 1]), 128).tolist() == [37, 37, 0, 0]
    assert time_bucket(torch.tensor([10**18]), 16).tolist() == [15]


def test_bit_identical_from_run_to_run_and_for_any_number_of_threads() -> None:
    inputs = example("hstu_attention", [1 + 7 * i % 90 for i in range(80)], width=24, states=2)
    numba, threads = path_of("numba"), torch.get_num_threads()
    first = value_and_gradients("hstu_attention", numba, inputs)
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            again = value_and_gradients("hstu_attention", numba, inputs)
            assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", FAST)
def test_views_of_a_wider_projection_and_a_gradient_of_any_stride(name: str) -> None:
    q, k, v, position, time, offsets, seen, times, after = example("hstu_attention", (9, 21), width=8, states=3)
    wide = torch.cat((v, q, k), 2).requires_grad_()
    bias = RelativeBias(position, time, times, after)
    views = wide.split(8, 2)
    run = {"max_length": 9, "mask": seen, "bias": bias, "path": name}
    out = hstu_attention(views[1], views[2], views[0], offsets, **run)
    torch.testing.assert_close(out, hstu_attention(q, k, v, offsets, **run))
    (by_expanded,) = torch.autograd.grad(out.sum(), wide, retain_graph=True)
    (by_ones,) = torch.autograd.grad(out, wide, torch.ones_like(out))
    torch.testing.assert_close(by_expanded, by_ones)


@pytest.mark.parametrize("name", EVERY)
def test_rows_without_tokens_and_no_rows(name: str) -> None:
    q, k, v, position, time, offsets, _, times, after = example("hstu_attention", (4, 9), width=8)
    run = {"max_length": 9, "mask": AttentionMask(), "bias": RelativeBias(position, time, times, after), "path": name}
    gaps = offsets[[0, 0, 1, 1, 2, 2]]
    torch.testing.assert_close(hstu_attention(q, k, v, gaps, **run), hstu_attention(q, k, v, offsets, **run))
    empty = RelativeBias(position, time, times[:0], after[:0])
    nothing = hstu_attention(q[:0], k[:0], v[:0], torch.tensor([0, 0]), **{**run, "bias": empty})
    assert nothing.shape == (0, *v.shape[1:])


def test_memory_between_the_passes_is_linear_in_the_tokens() -> None:
    """Twice the length, twice what lives: no score does."""
    kept = []
    for length in (256, 512):
        q, k, v, position, time, offsets, seen, times, after = example("hstu_attention", (length,), width=16, states=2)
        q.requires_grad_()
        bias = RelativeBias(position, time, times, after)
        with LiveBytes((q, k, v, position, time, offsets, seen, times, after)) as live:
            out = hstu_attention(q, k, v, offsets, max_length=9, mask=seen, bias=bias, path="numba")
            kept.append(live.live)
        assert out.requires_grad
    assert kept[1] <= 2 * kept[0] and kept[1] < 4 * 512 * 2 * 16 * 2


@pytest.mark.parametrize("name", FAST)
def test_a_nan_is_not_swallowed(name: str) -> None:
    for place in range(5):
        inputs = example("hstu_attention", (6, 2))
        inputs[place].view(-1)[inputs[place].numel() // 2 if place == 3 else 0] = torch.nan
        if place == 4:
            inputs[4][:] = torch.nan
        out, *_ = value_and_gradients("hstu_attention", path_of(name), inputs)
        assert out.isnan().any(), place


def test_float64_is_not_rounded_and_half_types_come_back_as_they_went() -> None:
    q, k, v, _, _, offsets, seen, _, _ = example("hstu_attention", (9, 3))
    exact = hstu_attention(*double([q, k, v]), offsets, max_length=9, mask=seen)
    reference = hstu_attention(*double([q, k, v]), offsets, max_length=9, mask=seen, path="reference")
    assert exact.dtype == torch.float64 and torch.allclose(exact, reference, atol=1e-14)
    narrow = hstu_attention(*(x.bfloat16() for x in (q, k, v)), offsets, max_length=9, mask=seen)
    assert narrow.dtype == torch.bfloat16 and largest_error([narrow], [reference]) < 2e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": torch.tensor([0, 5, 9])}, "offsets must run from 0 to the number of tokens, 8"),
        ({"v": torch.zeros(8, 2, 4)}, "v has shape"),
        ({"k": torch.zeros(7, 3, 4)}, "k has shape"),
        ({"max_length": 0}, "max_length 0 is less than 1"),
        ({"mask": AttentionMask(num_context=torch.tensor([4, 1]), num_candidates=torch.tensor([2, 1]))}, "row 0 has 5"),
        ({"mask": AttentionMask(num_candidates=torch.tensor([2]))}, "num_candidates has shape"),
        ({"mask": AttentionMask(num_context=torch.tensor([-1, 1]))}, "num_context is negative"),
        ({"bias": RelativeBias(torch.zeros(3), torch.zeros(2), torch.zeros(7), torch.zeros(8))}, "times has shape"),
    ],
)
def test_what_does_not_belong_together_is_named(change: dict[str, Any], message: str) -> None:
    q = torch.zeros(8, 3, 4)
    call = {"q": q, "k": q, "v": q, "offsets": torch.tensor([0, 5, 8]), "max_length": 5, "mask": AttentionMask()}
    with pytest.raises(ValueError, match=message):
        hstu_attention(**{**call, **change}, path="numba")


def test_tables_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="has no middle"):
        RelativeBias(torch.zeros(4))
    with pytest.raises(ValueError, match="needs times and next_times"):
        RelativeBias(time=torch.zeros(4))
    with pytest.raises(ValueError, match="target_group_size: 0"):
        AttentionMask(target_group_size=0)


@pytest.mark.parametrize("path", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_divisor_on_the_device_is_the_same_as_a_number(path: str, dtype: torch.dtype) -> None:
    """257 is no bfloat16: a scalar that was rounded to one would be off by 0.4% for all tokens alike."""
    if path == "numba" and dtype != torch.float32:
        pytest.skip("float32 alone")
    lengths = torch.tensor([0, 5, 9, 30]).cumsum(0)
    random = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(44, 2, 16, generator=random).to(dtype).requires_grad_() for _ in range(3))
    results = []
    for divisor in (257, torch.tensor(257)):
        out = hstu_attention(q, k, v, lengths, max_length=divisor, mask=AttentionMask(), path=path)
        assert out.dtype == dtype
        results.append((out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))))
    for number, scalar in zip(*results, strict=True):
        scalar, number = scalar.float(), number.float()
        close = 1e-5 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(scalar, number, rtol=close, atol=close * float(number.detach().abs().max()))
        assert float((scalar * number).sum() / number.square().sum()) == pytest.approx(1, abs=5e-4)
    with pytest.raises(ValueError, match=r"max_length has shape \(1,\)"):
        hstu_attention(q, k, v, lengths, max_length=torch.tensor([257]), mask=AttentionMask(), path=path)
