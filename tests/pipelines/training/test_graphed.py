"""Batches of fixed shape: the ragged batch's loss and gradients, and a step that asks the device for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from models.batch import SequenceBatch
from models.losses import LossOptions, PopularitySampler
from models.losses import full as full_softmax_module
from models.sasrec import SASRec, SASRecOptions
from models.ss4rec import SS4Rec, SS4RecOptions
from pipelines.data.loader import LoaderOptions, Windows, cut_windows, training_batches
from pipelines.data.splits import make_split
from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError, MachineError
from pipelines.training.distributed import Loss
from pipelines.training.graphed import SPARE, GraphedStep, StepShape, check_step
from pipelines.training.trainer import autocast
from tests.pipelines.conftest import memory_store
from tests.pipelines.training.test_trainer import trainer

ITEMS, LONGEST = 20, 9
LOADER = LoaderOptions(max_length=LONGEST, windows="all", batch="tokens", tokens_per_batch=150)
# Negatives of each token's own are drawn for the filling, too: their numbers are compared in test_losses below.
LOSSES: dict[str, dict[str, Any]] = {
    "softmax": {"name": "softmax"},
    "unseen": {"name": "softmax", "exclude_seen": True},
    "sampled": {"name": "sampled_softmax", "num_negatives": 7},
    "popular": {"name": "sampled_softmax", "num_negatives": 7, "sampler": "popularity"},
    "bce": {"name": "bce", "num_negatives": 5, "share_negatives": True},
    "gbce": {"name": "gbce", "num_negatives": 5, "share_negatives": True},
}


def build(loss: str = "softmax", **changed: Any) -> SASRec:
    torch.manual_seed(1)
    sizes = {"hidden": 8, "max_length": LONGEST, "dropout": 0.0, **changed}
    task = SASRec(ITEMS, SASRecOptions(**sizes, loss=LossOptions(**LOSSES[loss])))
    task.popularity = PopularitySampler.from_counts(torch.arange(ITEMS + 1))
    return task.double()


def windows_of(lengths: list[int]) -> tuple[SequenceStore, Windows]:
    store = memory_store(lengths, ITEMS)
    return store, cut_windows(store, make_split(store, "leave-one-out").train, LONGEST, "all")


def pairs(lengths: list[int], seed: int) -> Iterator[tuple[SequenceBatch, SequenceBatch | None]]:
    """Each batch of an epoch, ragged and filled up."""
    store, windows = windows_of(lengths)
    shape = StepShape.fitting(windows, LOADER, seed)
    for batch in training_batches(store, windows, LOADER, seed=seed, epoch=0):
        yield batch, shape.filled(batch)


def loss_and_gradients(task: SASRec, batch: SequenceBatch) -> tuple[list[Tensor], int]:
    torch.manual_seed(5)
    output = task.loss(batch)
    return [output.sum, *torch.autograd.grad(output.sum, list(task.parameters()))], output.count


def agree(one: list[Tensor], other: list[Tensor], tolerance: float = 1e-10) -> bool:
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(one, other, strict=True))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(4, 40), min_size=25, max_size=30),
    st.integers(0, 1000),
    st.sampled_from(sorted(LOSSES)),
    st.sampled_from(["post", "pre", "query"]),
    st.sampled_from(["newest", "oldest"]),
)
def test_filling_changes_neither_loss_nor_gradients(
    lengths: list[int], seed: int, loss: str, norm: str, positions: str
) -> None:
    task = build(loss, norm=norm, positions=positions).train()
    for ragged, filled in pairs(lengths, seed):
        if filled is None:
            continue
        expected, targets = loss_and_gradients(task, ragged)
        found, counted = loss_and_gradients(task, filled)
        assert counted == targets == ragged.num_tokens
        assert agree(found, expected)


@pytest.mark.parametrize("name", ["bce", "bpr"])
def test_filling_weighs_nothing_where_every_token_has_negatives_of_its_own(name: Any) -> None:
    """The rows are the same and so are the first tokens' draws, which torch makes one after the other."""
    task = build()
    task.loss_options = LossOptions(name=name, num_negatives=2)
    ragged, filled = next((ragged, filled) for ragged, filled in pairs([30] * 30, 0) if filled is not None)
    assert agree(loss_and_gradients(task, filled)[0], loss_and_gradients(task, ragged)[0])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(4, 60), min_size=25, max_size=60), st.integers(0, 1000), st.integers(0, 3))
def test_batches_have_one_shape_and_little_filling(lengths: list[int], seed: int, epoch: int) -> None:
    store, windows = windows_of(lengths)
    shape = StepShape.fitting(windows, LOADER, seed)
    batches = list(training_batches(store, windows, LOADER, seed=seed, epoch=epoch))
    filled = [shape.filled(batch) for batch in batches]
    if epoch == 0:
        assert all(one is not None for one in filled[:-1])
    for batch, one in zip(batches, filled, strict=True):
        if one is None:
            continue
        assert one.num_tokens == shape.tokens and one.num_rows == shape.rows
        assert shape.tokens - batch.num_tokens <= SPARE * shape.tokens
        assert int(one.lengths.max()) <= shape.longest and int(one.lengths.min()) >= 0
        assert one.offsets[-1] == shape.tokens and int(one.items.min()) >= 1
        assert torch.equal(one.items[: batch.num_tokens], batch.items)
        assert int((one.targets > 0).sum()) == batch.num_tokens and one.fixed is not None
        assert all(a.dtype == b.dtype for a, b in zip(one.tensors(), batch.tensors(), strict=True))


def test_a_batch_that_is_too_large_or_too_small_is_left_as_it_is() -> None:
    ragged, filled = next((ragged, filled) for ragged, filled in pairs([30] * 30, 0) if filled is not None)
    assert filled is not None
    shape = StepShape(filled.num_tokens, filled.num_rows, LONGEST)
    assert shape.filled(ragged) is not None
    assert replace(shape, tokens=ragged.num_tokens - 1).filled(ragged) is None
    assert replace(shape, tokens=ragged.num_tokens * 2).filled(ragged) is None
    assert replace(shape, rows=ragged.num_rows).filled(ragged) is None
    with pytest.raises(ValueError, match="a target at every token"):
        shape.filled(replace(ragged, all_targets=False))


def faked(task: SASRec, batch: SequenceBatch, precision: str = "float32") -> None:
    """A whole step on tensors without values: whoever asks for one raises."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        copied = SASRec(ITEMS, task.options)
        copied.loss_options = task.loss_options
        given = batch._map(mode.from_tensor)
        counts = torch.rand(ITEMS)
        copied.popularity = PopularitySampler(counts.double(), torch.rand(ITEMS + 1))
        step = GraphedStep(Loss(copied.train()), StepShape(1, 1, 1), lambda: autocast(torch.device("cpu"), precision))
        total = step.step(given)
        assert total.shape == () and all(p.grad is not None for p in copied.parameters())


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own operations, and without the look at the logits' size that a CPU alone takes."""
    monkeypatch.setenv("RECPOD_KERNELS", "torch")
    monkeypatch.setattr(full_softmax_module, "_logits_are_small", lambda *_: False)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("loss", [*sorted(LOSSES), "own", "bpr"])
def test_a_step_of_fixed_shape_asks_for_no_value(loss: str) -> None:
    task = build(dropout=0.2)
    own = {"own": LossOptions(name="gbce", num_negatives=3), "bpr": LossOptions(name="bpr", num_negatives=3)}
    task.loss_options = own.get(loss) or LossOptions(**LOSSES[loss])
    ragged, filled = next((ragged, filled) for ragged, filled in pairs([30] * 30, 0) if filled is not None)
    assert filled is not None
    faked(task, filled)
    faked(task, filled, "bfloat16")
    with pytest.raises(DataDependentOutputException):
        faked(task, ragged)  # so the test would notice


def test_the_varlen_kernel_is_told_the_longest_row() -> None:
    from models.kernels.packed_attention.cuda import _varlen

    with FakeTensorMode():
        q = torch.randn(30, 2, 16, dtype=torch.bfloat16, requires_grad=True)
        offsets = torch.tensor([0, 9, 9, 30])
        _varlen(q, q, q, offsets, 21).sum().backward()
        assert q.grad is not None
        with pytest.raises(DataDependentOutputException):
            _varlen(q, q, q, offsets)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_filled_batches_of_an_epoch_train_as_ragged_ones_do() -> None:
    """The captured function itself, step by step with an optimiser, in place of the graph that needs a GPU."""
    one, other = build().train(), build().train()
    assert agree(list(one.parameters()), list(other.parameters()))
    step = GraphedStep(Loss(one), StepShape(1, 1, 1), lambda: autocast(torch.device("cpu"), "float64", cached=False))
    optimizers = [torch.optim.Adam(task.parameters(), lr=1e-2) for task in (one, other)]
    for ragged, filled in pairs([30] * 60, 3):
        total = step.step(ragged if filled is None else filled)
        output = other.loss(ragged)
        optimizers[1].zero_grad()
        output.sum.backward()
        assert torch.allclose(total, output.sum, rtol=1e-9)
        for optimizer in optimizers:
            optimizer.step()
    assert agree(list(one.parameters()), list(other.parameters()), 1e-7)


@pytest.mark.parametrize("longest", [1, 30, LONGEST])
def test_attention_in_one_rectangle_is_that_of_every_row(longest: int) -> None:
    from models.kernels.packed_attention import packed_attention

    random = np.random.default_rng(0)
    lengths = random.integers(0, min(longest, 12) + 1, 15)
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    inputs = [torch.randn(int(offsets[-1]), 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    results = []
    for bound, path in ((longest, "torch"), (None, "torch"), (None, "reference")):
        out = packed_attention(*inputs, offsets, longest=bound, path=path)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    assert agree(results[0], results[1], 1e-12) and agree(results[0], results[2], 1e-12)


def test_without_a_gpu_it_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught:
        trainer(tmp_path, build(), cuda_graph=True)
    said = "training.cuda_graph: a CUDA graph needs a GPU, and the run is on cpu. set training.cuda_graph=false."
    assert str(caught.value) == said


def test_what_cannot_be_captured_is_named() -> None:
    task, said = build(), "training.cuda_graph: "
    check_step(task, LOADER, plain=True)
    for other, options, plain, reason in (
        (SS4Rec(ITEMS, SS4RecOptions(hidden=8)), LOADER, True, "a step of SS4Rec"),
        (build(mhc=True), LOADER, True, "a step of SASRec"),
        (task, LOADER, False, "one process"),
        (task, replace(LOADER, batch="rows"), True, "set loader.batch=tokens"),
    ):
        with pytest.raises(ConfigError, match=f"{said}.*{reason}"):
            check_step(other, options, plain)
    task.loss_options = LossOptions(name="bce", sampler="in_batch")
    with pytest.raises(ConfigError, match="negatives drawn from the batch's targets"):
        check_step(task, LOADER, plain=True)
    _, windows = windows_of([30] * 30)
    with pytest.raises(ConfigError, match=r"100 tokens a batch .* rows of up to 9.*loader.tokens_per_batch=144"):
        StepShape.fitting(windows, replace(LOADER, tokens_per_batch=100), 0)
