"""The peak is that of real steps and real validations, and the remedy is the largest batch that fits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.batch import SequenceBatch
from pipelines import stages
from pipelines.config import RunConfig, load_config
from pipelines.data.loader import Windows, gather_batch
from pipelines.data.store import SequenceStore
from pipelines.estimate.forecast import memory_of
from pipelines.estimate.measure import make_trainer
from pipelines.estimate.memory import SET_ASIDE_LEAST, Memory, MemoryModel, room_of
from pipelines.estimate.resident import resident_bytes
from pipelines.estimate.volume import Volume, find_volume, from_store
from pipelines.estimate.work import find_work, formats_of
from tests.pipelines.estimate.live_tensors import LiveBytes

TOLERANCE = 0.1

RECIPES = (
    ["loader.rows_per_batch=64"],
    ["loader.rows_per_batch=16", "model.layers=1", "model.hidden=32"],
    ["loader.batch=tokens", "loader.tokens_per_batch=9000", "model.loss.precision=float32"],
    ["loader.rows_per_batch=32", "model.loss.name=sampled_softmax", "model.loss.num_negatives=512"],
    ["loader.rows_per_batch=32", "model.loss.name=bpr", "model.loss.num_negatives=4"],
    ["loader.rows_per_batch=1", "model.hidden=128", "model.d_state=4", "model.layers=1"],  # the table is the most
    ["loader.rows_per_batch=32", "model=sasrec"],
    ["loader.rows_per_batch=16", "model=sasrec", "model.feed_forward=256", "model.norm=pre", "model.activation=swiglu"],
    ["loader.batch=tokens", "loader.tokens_per_batch=9000", "model=sasrec", "model.mhc=true"],
    ["loader.rows_per_batch=16", "model=sasrec-mhc", "model.mhc_expansion_rate=2", "model.norm=query"],
    ["loader.rows_per_batch=32", "model=tisasrec"],
    ["loader.rows_per_batch=32", "model=tisasrec", "model.dropout=0", "model.norm=post", "model.blocks=1"],
    ["loader.rows_per_batch=2", "model=tisasrec", "model.time_span=20", "training.precision=bfloat16"],
    ["loader.rows_per_batch=16", "model=tisasrec-mhc"],
    ["loader.rows_per_batch=16", "model=tisasrec-mhc", "model.hidden=40", "model.norm=post"],  # all of it padded
    ["loader.rows_per_batch=32", "model=hstu"],
    ["loader.rows_per_batch=16", "model=hstu", "model.heads=2", "model.blocks=4", "model.recompute_silu=true"],
    ["loader.rows_per_batch=2", "model=hstu", "model.similarity=dot", "training.precision=bfloat16"],
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quick start's store lies."""
    folder = tmp_path_factory.mktemp("data")
    stages.prepare(load_config("quickstart", [f"dataset.cache={folder}"]))
    return folder


def model_of(config: RunConfig, store: SequenceStore) -> tuple[Volume, MemoryModel]:
    volume = from_store(config, store)
    formats = formats_of(config, "cpu")
    work = find_work(config.model["name"], config.model_options(), volume.items, volume.shared_length, formats)
    return volume, MemoryModel(config, volume, work)


def heaviest_batch(store: SequenceStore, windows: Windows, count: int, tokens: int) -> SequenceBatch:
    """The longest windows, as many as the memory model takes for the largest batch."""
    order = torch.from_numpy(-windows.lengths).argsort(stable=True).numpy()[:count]
    chosen = list(itertools.takewhile(lambda n: windows.lengths[order[:n]].sum() <= tokens, range(1, count + 1)))
    return gather_batch(store, windows.take(order[: len(chosen)]))


TORCH = "mhc_streams=torch,interval_attention=torch"  # a machine without a compiler, attention and scans apart
UNCOMPILED = (
    ["loader.rows_per_batch=16", "model=sasrec-mhc"],
    ["loader.rows_per_batch=32", "model=tisasrec"],
    ["loader.rows_per_batch=16", "model=tisasrec-mhc"],
)


@pytest.mark.parametrize("sets", UNCOMPILED, ids=" ".join)
def test_the_peak_of_training_with_torch_alone(
    sets: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECPOD_KERNELS", TORCH)
    test_the_peak_of_training_is_that_of_real_updates(sets, data, tmp_path)


@pytest.mark.parametrize("sets", RECIPES, ids=" ".join)
def test_the_peak_of_training_is_that_of_real_updates(sets: list[str], data: Path, tmp_path: Path) -> None:
    """Two real updates on the heaviest batch: within 10% of all tensors alive at the worst moment."""
    config = load_config("quickstart", [f"dataset.cache={data}", *sets])
    prepared = stages.prepare(config)
    volume, memory = model_of(config, prepared.store)
    trainer = make_trainer(config, prepared, tmp_path)
    trainer.task.train()
    value = getattr(config.loader, "rows_per_batch" if config.loader.batch == "rows" else "tokens_per_batch")
    rows, tokens = memory.share(value)
    batch = heaviest_batch(prepared.store, trainer.data.windows, rows, tokens)
    trainer.update([batch])  # makes the optimiser's state
    trainer.optimizer.zero_grad(set_to_none=True)
    held = [*trainer.task.parameters(), *(v for v in vars(batch).values() if isinstance(v, torch.Tensor))]
    held += [v for state in trainer.optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    with LiveBytes(held) as live:
        trainer.update([batch])
    lasting = memory.weights + memory.optimizer + memory.batch(batch.num_rows, batch.num_tokens)
    measured = live.peak + lasting
    assert batch.num_tokens <= volume.largest_batch
    assert memory.training_peak(batch.num_rows, batch.num_tokens) == pytest.approx(measured, rel=TOLERANCE)


ASKED = (
    [],
    ["model.layers=1", "model.use_mamba=false"],
    ["model=sasrec"],
    ["model=sasrec", "model.feed_forward=256", "model.norm=pre"],
    ["model=sasrec-mhc"],
    ["model=tisasrec"],
    ["model=tisasrec-mhc"],
    ["model=sasrec-mhc", "model.hidden=40"],
    ["model=tisasrec", "model.hidden=40", "model.norm=post"],
)


@pytest.mark.parametrize("sets", ASKED, ids=" ".join)
def test_the_peak_of_validation_is_that_of_a_real_one(sets: list[str], data: Path) -> None:
    """Never less than measured, at most 40% more: ranking's small tensors are counted roughly."""
    config = load_config("quickstart", [f"dataset.cache={data}", *sets])
    prepared = stages.prepare(config)
    _, memory = model_of(config, prepared.store)
    task = stages.build_task(config, prepared)
    with LiveBytes(task.parameters()) as live:
        stages.ask(config, prepared, task, "valid")
    lasting = 2 * memory.weights + memory.optimizer + 12 * prepared.store.num_items
    counted = memory.evaluation_peak(config.loader.tokens_per_batch)
    assert live.peak + lasting <= counted <= 1.4 * (live.peak + lasting)


@pytest.mark.parametrize("sets", [["loader.rows_per_batch=64"], ["loader.batch=tokens"]])
@pytest.mark.parametrize("share", [0.9, 0.6, 0.3])
def test_the_remedy_is_the_largest_batch_that_fits(sets: list[str], share: float, data: Path) -> None:
    """Exact: with the batch that is named the run fits by the same count, with one more it does not."""
    config = load_config("quickstart", [f"dataset.cache={data}", *sets])
    volume, memory = model_of(config, stages.prepare(config).store)
    needed = memory.judge(10**12)
    assert needed.fits and needed.verdict == "fits"
    room = int(needed.peak * share)
    found = memory.judge(room)
    assert not found.fits
    assert_largest(config, volume, memory, found, room)


def assert_largest(config: RunConfig, volume: Volume, memory: MemoryModel, found: Memory, room: int) -> None:
    for key, (present, largest) in found.limits.items():
        for value, fits in ((largest, True), (largest + 1, largest == present)):
            loader = config.loader.__class__(**{**vars(config.loader), key: value})
            changed = MemoryModel(config.model_copy(update={"loader": loader}), volume, memory.work)
            peaks = []
            if key == "rows_per_batch" or loader.batch == "tokens":
                peaks.append(changed.training_peak(*memory.share(value)))
            if key == "tokens_per_batch":
                peaks.append(changed.evaluation_peak(value))
            assert value > present or (max(peaks) <= room) is fits, (key, value)
        if largest < present:
            assert f"reduce loader.{key} from {present:,} to {largest:,}" in found.verdict


def test_what_no_batch_mends_is_said(data: Path) -> None:
    config = load_config("quickstart", [f"dataset.cache={data}"])
    _, memory = model_of(config, stages.prepare(config).store)
    found = memory.judge(memory.weights)
    assert not found.fits and found.verdict.startswith("does not fit with any batch")


def test_several_devices_share_a_batch_and_hold_a_copy_of_the_gradients(data: Path) -> None:
    config = load_config("ml20m", [f"dataset.cache={data}"])
    volume = find_volume(config)
    work = find_work("ss4rec", config.model_options(), volume.items, 1.0, formats_of(config, "cuda"))
    one, four = MemoryModel(config, volume, work), MemoryModel(config, volume, work, gpus=4)
    rows, tokens = one.share(65_536)
    assert tokens == 65_536 + 199 and four.share(65_536) == (-(-rows // 4), -(-tokens // 4) + 200)
    assert four.training_peak(10, 1000) == one.training_peak(10, 1000) + work.parameters * 4
    assert four.training_peak(*four.share(65_536)) < 0.4 * one.training_peak(rows, tokens)


@pytest.mark.parametrize("count", [from_store, lambda config, _: find_volume(config)])
def test_resident_events_lie_beside_everything_else(data: Path, tmp_path: Path, count: Callable[..., Volume]) -> None:
    """Their bytes are those of the tensors that a real trainer holds."""
    config = load_config("quickstart", [f"dataset.cache={data}", "loader.resident=on"])
    prepared = stages.prepare(config)
    resident = make_trainer(config, prepared, tmp_path).resident
    held = [v for v in vars(resident.__self__).values() if isinstance(v, torch.Tensor)]  # type: ignore[union-attr]
    volume = count(config, prepared.store)
    formats = formats_of(config, "cuda")
    work = find_work(config.model["name"], config.model_options(), volume.items, volume.shared_length, formats)
    needed = resident_bytes(config, volume, work, 10**12)
    assert needed == sum(tensor.nbytes for tensor in held) > 10**6
    without, beside = (memory_of(config, volume, work, 1, size) for size in (0, needed))
    assert beside.training_peak(8, 800) == without.training_peak(8, 800) + needed
    assert beside.evaluation_peak(800) == without.evaluation_peak(800) + needed
    room = without.judge(10**12).peak + needed
    assert beside.judge(room).fits and beside.judge(room).resident == needed
    found = beside.judge(room - 1)
    assert found.verdict == "does not fit: set loader.resident=off"


def test_published_counts_say_what_events_take(data: Path, tmp_path: Path) -> None:
    config = load_config("ml20m", [f"dataset.cache={tmp_path}"])
    assert find_volume(config).event_bytes == 16 * 20_000_263


def test_what_resident_comes_to_is_decided_as_by_the_trainer(data: Path) -> None:
    def found(kind: str, room: int, resident: str) -> int:
        config = load_config("quickstart", [f"dataset.cache={data}", f"loader.resident={resident}"])
        volume = from_store(config, stages.prepare(config).store)
        work = find_work("ss4rec", config.model_options(), volume.items, 1.0, formats_of(config, kind))
        return resident_bytes(config, volume, work, 4 * work.parameters + room * volume.event_bytes)

    assert found("cuda", 5, "auto") and not found("cuda", 4, "auto") and not found("cpu", 5, "auto")
    assert found("cuda", 0, "on") and found("cpu", 0, "on") and not found("cuda", 5, "off")


def test_accumulation_keeps_the_gradients_of_the_batches_before(data: Path) -> None:
    once, twice = (
        model_of(config, stages.prepare(config).store)[1]
        for config in (load_config("quickstart", [f"dataset.cache={data}", f"training.accumulate={n}"]) for n in (1, 2))
    )
    assert twice.training_peak(8, 800) == once.training_peak(8, 800) + once.weights


def test_a_part_of_every_device_is_set_aside() -> None:
    assert room_of(48e9) == 43_200_000_000 and room_of(8e9) == 8_000_000_000 - SET_ASIDE_LEAST
