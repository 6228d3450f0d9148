"""What a token costs, held against torch's own counters on real layers."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.batch import SequenceBatch
from models.losses import LossOptions
from models.losses import options as loss_options
from models.registry import MODELS, build_model
from models.ss4rec import SS4Rec, SS4RecOptions
from pipelines.config import load_config
from pipelines.errors import ConfigError
from pipelines.estimate.devices import find_device
from pipelines.estimate.forecast import forecast
from pipelines.estimate.layer_work import Formats, LayerWork
from pipelines.estimate.work import LAYERS, Work, find_work, formats_of, negatives
from tests.models.conftest import random_batch

SIZES = (
    SS4RecOptions(loss=LossOptions(precision="float32")),
    SS4RecOptions(hidden=32, layers=3, s5_state=16, d_state=16, expand=3, loss=LossOptions(precision="float32")),
    SS4RecOptions(use_mamba=False, loss=LossOptions(precision="float32")),
    SS4RecOptions(use_s5=False, input_norm=False, loss=LossOptions(precision="float32")),
)


def training_batch(rows: int, length: int, items: int) -> SequenceBatch:
    return dataclasses.replace(random_batch([length] * rows, num_items=items), all_targets=True)


def work_of(options: SS4RecOptions, items: int, narrow: int = 4) -> Work:
    return find_work("ss4rec", options, items, 1.0, Formats("cpu", narrow, 4))


@pytest.mark.parametrize("options", SIZES)
def test_flops_are_those_that_torch_counts(options: SS4RecOptions) -> None:
    """Scans are not matrix products: torch does not see them, and they are counted apart."""
    batch, items = training_batch(4, 64, 300), 300  # 256 tokens: the loss pads its products to 128 rows
    model = SS4Rec(items, options).train()
    with FlopCounterMode(display=False) as counter:
        model.loss(batch).sum.backward()  # type: ignore[no-untyped-call]
    work = work_of(options, items)
    counted = counter.get_total_flops() / batch.num_tokens
    assert counted == pytest.approx(3 * work.layers.product_flops + work.loss_flops, rel=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        LossOptions(name="sampled_softmax", num_negatives=128, precision="float32"),
        LossOptions(name="bpr", num_negatives=5),
    ],
)
def test_flops_of_sampled_losses(loss: LossOptions) -> None:
    options = SS4RecOptions(loss=loss)
    batch = training_batch(4, 64, 300)
    model = SS4Rec(300, options).train()
    with FlopCounterMode(display=False) as counter:
        model.loss(batch).sum.backward()  # type: ignore[no-untyped-call]
    work = work_of(options, 300)
    counted = counter.get_total_flops() / batch.num_tokens
    assert counted == pytest.approx(3 * work.layers.product_flops + work.loss_flops, rel=1e-12)


def saved_bytes(model: SS4Rec, batch: SequenceBatch, narrow: int) -> int:
    """Bytes of all storages that autograd keeps for the backward pass, parameters, their casts and the batch apart."""
    known = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    known |= {v.untyped_storage().data_ptr() for v in vars(batch).values() if isinstance(v, torch.Tensor)}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        of_tokens = tensor.untyped_storage().nbytes() >= batch.num_tokens  # a weight's cast or transpose is smaller
        if tensor.untyped_storage().data_ptr() not in known and of_tokens:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    mixed = torch.autocast("cpu", dtype=torch.bfloat16) if narrow == 2 else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), mixed:
        model.token_states(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("narrow", [4, 2])
@pytest.mark.parametrize("options", SIZES)
def test_bytes_kept_are_those_that_autograd_keeps(options: SS4RecOptions, narrow: int) -> None:
    """Rows of 64 tokens are whole chunks of the scan, so that nothing is left for the rows' own part."""
    batch = training_batch(512, 64, 100)
    model = SS4Rec(100, options).train()
    measured = saved_bytes(model, batch, narrow) / batch.num_tokens
    assert work_of(options, 100, narrow).layers.saved == pytest.approx(measured, rel=0.01)


def test_rows_that_are_no_whole_chunks_keep_at_most_a_state_more() -> None:
    options = SIZES[0]
    batch = training_batch(256, 33, 100)
    measured = saved_bytes(SS4Rec(100, options).train(), batch, 4)
    layers = work_of(options, 100).layers
    counted = layers.saved * batch.num_tokens + layers.saved_row * batch.num_rows
    assert 0 <= counted / measured - 1 < 0.05


def test_the_chunk_is_that_of_the_kernels() -> None:
    from models.kernels.selective_scan.cpu_loops import CHUNK

    assert Formats("cpu", 4, 4).scan_chunk == CHUNK
    triton = pytest.importorskip("models.kernels.selective_scan.triton")
    assert Formats("cuda", 2, 2).scan_chunk == triton.CHUNK and triton.PAIRS == 512


@pytest.mark.parametrize("items", [1, 57])
@pytest.mark.parametrize("options", SIZES)
def test_parameters_are_those_of_the_model(options: SS4RecOptions, items: int) -> None:
    counted = work_of(options, items).parameters
    assert counted == sum(p.numel() for p in build_model("ss4rec", items, options).parameters())


def test_negatives_have_the_losses_own_defaults() -> None:
    names = set(typing.get_args(loss_options.LossName)) - {"softmax"}
    for name in names:
        assert negatives(LossOptions(name=name)) == loss_options._DEFAULT_NEGATIVES[name]


def test_only_real_models_are_counted() -> None:
    assert {"hstu", "ss4rec", "sasrec", "tisasrec"} <= set(LAYERS) <= set(MODELS)


def test_what_is_quadratic_in_length_gets_the_length(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model with attention joins with a count function alone."""
    monkeypatch.setenv("RECPOD_DATA", str(tmp_path))
    plain = find_work("ss4rec", SIZES[0], 10, 1.0, Formats("cpu", 4, 4))

    def attention(options: SS4RecOptions, shared_length: float, formats: Formats) -> LayerWork:
        return dataclasses.replace(plain.layers, product_flops=4.0 * options.hidden * shared_length)

    monkeypatch.setitem(LAYERS, "ss4rec", attention)
    config = load_config("ml20m")
    found = forecast(config, find_device("A100"), [])
    assert found.volume.shared_length > 100
    assert found.work.layers.product_flops == 4 * 64 * found.volume.shared_length


def test_a_model_that_nobody_counted_is_refused() -> None:
    with pytest.raises(ConfigError, match="what a token of 'sasrek' costs is not counted"):
        find_work("sasrek", SIZES[0], 10, 1.0, Formats("cpu", 4, 4))


def test_number_formats_follow_the_recipe() -> None:
    auto, plain = load_config("ml1m"), load_config("ml1m", ["training.precision=float32"])
    official = load_config("ml1m", ["model.loss.precision=float32"])
    assert formats_of(auto, "cuda") == Formats("cuda", 2, 2)
    assert formats_of(plain, "cuda") == Formats("cuda", 4, 4)
    assert formats_of(official, "cuda") == Formats("cuda", 2, 4)
    assert formats_of(auto, "cpu").narrow == 4
