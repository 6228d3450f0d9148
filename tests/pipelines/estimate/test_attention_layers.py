"""What a token of the attention models costs, held against torch's own counters on real layers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from models.batch import SequenceBatch
from models.kernels.interval_attention import interval_attention, interval_buckets, vectorised
from models.losses import LossOptions
from models.registry import MODELS, build_model
from models.sasrec import SASRecOptions
from models.tasks import Retrieval
from pipelines.estimate import attention_layers, layer_sizes
from pipelines.estimate.layer_work import Formats
from pipelines.estimate.work import Work, find_work
from tests.models.conftest import random_batch

ITEMS, LENGTH = 300, 64
COUNTED = "mhc_streams=torch,interval_attention=torch"  # torch's counters see nothing of compiled code
FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"mhc": True},
    {"norm": "pre", "activation": "gelu", "blocks": 1},
    {"norm": "query", "activation": "swiglu", "feed_forward": 96, "hidden": 40, "blocks": 3},  # 20 a head: padded to 32
    {"norm": "query", "mhc": True, "mhc_expansion_rate": 2, "heads": 4, "hidden": 32},
    {"dropout": 0.0, "norm": "post", "mhc": True, "mhc_sinkhorn_iterations": 7, "activation": "swiglu"},
    {"dropout": 0.0, "norm": "pre", "scale_embedding": False},
    {"norm": "post", "mhc": True, "mhc_expansion_rate": 3, "hidden": 40, "heads": 1},  # all of it padded
)
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(f"{k}={v}" for k, v in form.items()))
both = pytest.mark.parametrize("name", ["sasrec", "tisasrec"])
# The machine's own paths, torch's with this machine's dropout, and a machine without a compiler, attention apart.
PATHS = {"own": "", "torch": COUNTED, "drawn": f"dropout=torch,{COUNTED}"}


@pytest.fixture(autouse=True)
def _counted_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPOD_KERNELS", COUNTED)


def make(name: str, form: Mapping[str, Any], **more: Any) -> tuple[SASRecOptions, Retrieval]:
    options = MODELS[name].options(loss=LossOptions(precision="float32"), **{**form, **more})
    model = build_model(name, ITEMS, options)
    assert isinstance(model, Retrieval)
    return options, model.train()


def rows_of(rows: int, length: int = LENGTH) -> SequenceBatch:
    return dataclasses.replace(random_batch([length] * rows, num_items=ITEMS), all_targets=True)


def work_of(name: str, options: SASRecOptions, formats: Formats, length: float = LENGTH) -> Work:
    return find_work(name, options, ITEMS, length, formats)


def counted_flops(model: Retrieval, batch: SequenceBatch) -> float:
    """Of a token: forward and backward, loss included."""
    with FlopCounterMode(display=False) as counter:
        model.loss(batch).sum.backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops() / batch.num_tokens


@both
@every_form
def test_parameters_are_those_of_the_model(name: str, form: dict[str, Any]) -> None:
    options, model = make(name, form)
    counted = work_of(name, options, Formats("cpu", 4, 4)).parameters
    assert counted == sum(p.numel() for p in model.parameters())


@every_form
def test_products_of_sasrec_are_those_that_torch_counts(form: dict[str, Any]) -> None:
    """torch's counter does not see the compiled attention: everything else is left."""
    options, model = make("sasrec", form)
    work = work_of("sasrec", options, Formats("cpu", 4, 4))
    counted = counted_flops(model, rows_of(4))
    assert counted == pytest.approx(3 * work.layers.product_flops + work.loss_flops, rel=1e-12)


@every_form
def test_attention_of_sasrec_is_the_causal_half_with_the_scores_again(
    form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: torch's formulas of a fused kernel, and what it counts of the plain one (4 products, none again)."""
    options, model = make("sasrec", form, dropout=0.0)
    work, half = work_of("sasrec", options, Formats("cpu", 4, 4)), (LENGTH + 1) / (2 * LENGTH)
    shape = 1, options.heads, LENGTH, options.hidden // options.heads
    fused = sdpa_flop_count(shape, shape, shape) + sdpa_backward_flop_count(shape, shape, shape, shape)
    assert work.layers.attention_flops == pytest.approx(options.blocks * half * fused / LENGTH, rel=1e-12)
    monkeypatch.setenv("RECPOD_KERNELS", f"packed_attention=torch,{COUNTED}")
    with sdpa_kernel(SDPBackend.MATH):
        square = counted_flops(model, rows_of(4)) - 3 * work.layers.product_flops - work.loss_flops
    assert work.layers.attention_flops * 6 / 7 == pytest.approx(half * square, rel=1e-12)


@every_form
@pytest.mark.parametrize("span", [20, 256])
def test_flops_of_tisasrec_are_those_that_torch_counts(form: dict[str, Any], span: int) -> None:
    """All of them: its attention is made of plain products, the forward ones computed again."""
    options, model = make("tisasrec", form, time_span=span)
    layers = (work := work_of("tisasrec", options, Formats("cpu", 4, 4))).layers
    counted = counted_flops(model, rows_of(4))
    assert counted == pytest.approx(3 * layers.product_flops + layers.attention_flops + work.loss_flops, rel=1e-12)


@pytest.mark.parametrize("span", [20, 256])
def test_compiled_interval_attention_is_the_causal_half_with_the_scores_again(
    span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what torch counts of the plain square (6 products a pair and 6 an interval, none again) for two spans."""
    pytest.importorskip("numba")
    monkeypatch.setenv("RECPOD_KERNELS", "")
    options, _ = make("tisasrec", {}, time_span=span)
    few, many = (_plain_interval_flops(options, buckets) for buckets in (11, 12))
    an_interval, half = many - few, (LENGTH + 1) / (2 * LENGTH)
    once = (few - 11 * an_interval) * half + an_interval * (span + 1)
    found = work_of("tisasrec", options, Formats("cpu", 4, 4)).layers.attention_flops
    assert found == pytest.approx(options.blocks * once * 7 / 6, rel=1e-12)


def _plain_interval_flops(options: SASRecOptions, buckets: int) -> float:
    """Of a token and block, forward and backward, nothing computed again."""
    heads, width = options.heads, options.hidden // options.heads
    q, k, v = (torch.randn(LENGTH, heads, width, requires_grad=True) for _ in range(3))
    keys, values = (torch.randn(buckets, heads, width, requires_grad=True) for _ in range(2))
    index = torch.arange(LENGTH)[None]
    apart = interval_buckets(index, buckets - 1, "second")
    with FlopCounterMode(display=False) as counter:
        vectorised._rectangle(q, k, v, keys, values, index, apart, 0.0).sum().backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops() / LENGTH


def test_what_compiled_streams_compute_again_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sinkhorn's rounds a fourth time, and before a LayerNorm the mix."""
    pytest.importorskip("numba")
    for norm, mixes in (("post", 1), ("pre", 0)):
        monkeypatch.setenv("RECPOD_KERNELS", "")
        options, _ = make("sasrec", {"mhc": True, "norm": norm})
        compiled = work_of("sasrec", options, Formats("cpu", 4, 4)).layers
        monkeypatch.setenv("RECPOD_KERNELS", COUNTED)
        plain = work_of("sasrec", options, Formats("cpu", 4, 4)).layers
        assert 3 * compiled.scan_flops == pytest.approx(4 * plain.scan_flops)
        again = mixes * 2 * options.blocks * 2 * options.mhc_expansion_rate**2 * options.hidden
        assert 3 * (compiled.product_flops - plain.product_flops) == pytest.approx(again)


@both
def test_attention_is_quadratic_in_the_shared_length(name: str) -> None:
    options, _ = make(name, {})
    short, middle, long = (work_of(name, options, Formats("cpu", 4, 4), length) for length in (50.0, 100.0, 150.0))
    step = middle.layers.attention_flops - short.layers.attention_flops
    assert step > 0 and long.layers.attention_flops - middle.layers.attention_flops == pytest.approx(step)
    assert long.layers.product_flops == short.layers.product_flops and long.flops > middle.flops


def saved_bytes(model: Retrieval, batch: SequenceBatch, narrow: int) -> int:
    """Bytes of all storages that autograd keeps for the backward pass, parameters and the batch apart."""
    known = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    known |= {v.untyped_storage().data_ptr() for v in vars(batch).values() if isinstance(v, torch.Tensor)}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    mixed = torch.autocast("cpu", dtype=torch.bfloat16) if narrow == 2 else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), mixed:
        model.token_states(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def counted_bytes(work: Work, batch: SequenceBatch) -> float:
    layers, tokens = work.layers, batch.num_tokens
    pairs = int((batch.lengths**2).sum())
    return layers.saved * tokens + layers.saved_row * batch.num_rows + layers.saved_pair * pairs + layers.saved_fixed


@both
@every_form
@pytest.mark.parametrize("narrow", [4, 2])
@pytest.mark.parametrize("paths", PATHS)
def test_bytes_kept_are_those_that_autograd_keeps(
    paths: str, name: str, form: dict[str, Any], narrow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 0.1%, and 1% under autocast, which keeps casts of weights too."""
    monkeypatch.setenv("RECPOD_KERNELS", PATHS[paths])
    options, model = make(name, form)
    batch = rows_of(128)
    counted = counted_bytes(work_of(name, options, Formats("cpu", narrow, 4)), batch)
    assert counted == pytest.approx(saved_bytes(model, batch, narrow), rel=0.001 if narrow == 4 else 0.01)


@every_form
def test_bytes_kept_of_rectangles_are_those_of_a_gpu_without_dropout(
    form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path that a GPU takes in float32, run on the CPU: dropout's masks, of other types there, are left away."""
    monkeypatch.setenv("RECPOD_KERNELS", f"packed_attention=torch,{COUNTED}")
    options, model = make("sasrec", form, dropout=0.0)
    batch = rows_of(64)
    counted = counted_bytes(work_of("sasrec", options, Formats("cuda", 4, 4)), batch)
    assert counted == pytest.approx(saved_bytes(model, batch, 4), rel=0.001)


class Moved(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers of 4 bytes that operations read and wrote, of tensors whose last two sizes are those asked for."""

    def __init__(self, sizes: tuple[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes, self.numbers = sizes, 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "view" not in str(func) and "empty" not in str(func):
            for value in tree_iter((args, kwargs, result)):
                if isinstance(value, torch.Tensor) and value.shape[-2:] == self.sizes:
                    self.numbers += value.numel() * value.element_size() / 4
        return result


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_passes_over_rectangles_are_those_of_real_ones(heads: int) -> None:
    """Within 1%: bytes of all tensors of these shapes that operations read and write, twice forward and once back."""
    length, span, width = 100, 50, 24
    q, k, v = (torch.randn(4 * length, heads, width, requires_grad=True) for _ in range(3))
    keys, values = (torch.randn(span + 1, heads, width, requires_grad=True) for _ in range(2))
    batch = rows_of(4, length)
    by_pair, by_bucket = (Moved((length, size)) for size in (length, span + 1))
    with by_pair, by_bucket:
        out = interval_attention(q, k, v, keys, values, batch.timestamps, batch.offsets, unit=None, dropout=0.2)
        out.sum().backward()  # type: ignore[no-untyped-call]
    layers = attention_layers
    pairs = (layers.PAIR_PASSES * heads + layers.SHARED_PASSES) * length
    assert pairs == pytest.approx(by_pair.numbers / batch.num_tokens, rel=0.01)
    buckets = layers.BUCKET_PASSES * heads * (span + 1)
    assert buckets == pytest.approx(by_bucket.numbers / batch.num_tokens, rel=0.01)


def test_the_passes_are_part_of_what_moves() -> None:
    options, _ = make("tisasrec", {})
    short, long = (work_of("tisasrec", options, Formats("cpu", 4, 4), length) for length in (50.0, 150.0))
    passes = attention_layers.PAIR_PASSES * options.heads + attention_layers.SHARED_PASSES
    assert long.moved(1000.0) - short.moved(1000.0) == pytest.approx(4 * options.blocks * passes * 100)


def test_sizes_are_those_of_the_kernels() -> None:
    simd = pytest.importorskip("models.kernels.simd")
    cpu = pytest.importorskip("models.kernels.interval_attention.cpu")
    assert simd.LANES == layer_sizes.LANES and cpu.GROUPS == attention_layers.RUNS
    assert vectorised.NUMBERS_AT_A_TIME == attention_layers.RECTANGLE
