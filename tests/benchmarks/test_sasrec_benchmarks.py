"""The SASRec benchmarks: peers compute what ours computes, take turns, count targets; results are written."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import sasrec_full_ranking, sasrec_train_speed, tisasrec_memory
from benchmarks.padded_trainer import PaddedSASRec, PaddedTrainer, padded_rows
from benchmarks.peer_process import Peer, Turn, Turns, environment_with
from benchmarks.sasrec_train_speed import Bench, expect_targets, measure, turns_of
from benchmarks.step_floor import SOFTMAX, WEIGHTS, attention_step_work
from benchmarks.synthetic_store import synthetic_store
from models.batch import SequenceBatch
from models.losses import LossOptions
from models.losses.binary import binary_cross_entropy
from models.sasrec import SASRec, SASRecOptions
from pipelines import stages
from pipelines.config import load_config
from pipelines.data.loader import Windows
from pipelines.data.splits import make_split

SMALL = SASRecOptions(hidden=16, max_length=10)
CHILD = """
import argparse
from benchmarks.peer_process import Turns

parser = argparse.ArgumentParser()
parser.add_argument("--reply", type=int)
turns = Turns(parser.parse_args().reply)
print("said something")
turns.say(ready=True)
for number in range(7):
    turns.step(10 + number)
raise RuntimeError("out of steps")
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    store = synthetic_store(tmp_path / "store", share=0.003)
    protocol = stages.protocol_of(load_config("sasrec-ml1m", []))
    return Bench(stages.Prepared(store, make_split(store, "leave-one-out"), protocol), SMALL, tmp_path, threads=1)


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Peer:
    (tmp_path / "counting_peer.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Peer("counting_peer", [], tmp_path / "log", threads=1)


# --- turns ---


def test_a_peer_stands_still_between_its_turns_and_counts_its_own_targets(child: Peer) -> None:
    with child:
        assert child.reply() == {"ready": True}
        first, second = child.ask({"steps": 2}), child.ask({"steps": 3})
        assert first["amount"] == 10 + 11 and second["amount"] == 12 + 13 + 14
        assert Turn.from_answer(first).rate == 21 / first["seconds"] > 0
        with pytest.raises(SystemExit, match=r"counting_peer ended, see .*\n(.*\n)*RuntimeError: out of steps"):
            child.ask({"steps": 9})
    assert child.process.poll() is not None


def test_a_peer_that_does_not_answer_is_given_up(child: Peer) -> None:
    assert child.reply() == {"ready": True}
    with pytest.raises(SystemExit, match="counting_peer hangs"):
        child.reply(patience=0.2)
    assert child.process.poll() is not None


def test_closing_a_peer_ends_its_loop(child: Peer) -> None:
    with child:
        child.reply()
    assert child.process.poll() is not None


def test_the_first_step_waits_for_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    with (tmp_path / "pipe").open("w") as pipe:
        turns = Turns(pipe.fileno())
        monkeypatch.setattr(turns, "requests", lambda: iter([asked.append(1) or {"steps": 2}]))
        turns.step(5)
        turns.step(5)
        assert len(asked) == 1 and turns.targets == 10
        monkeypatch.setattr(turns, "requests", lambda: iter(()))
        with pytest.raises(SystemExit):
            turns.step(5)
        turns.pipe.flush()
        assert json.loads((tmp_path / "pipe").read_text())["amount"] == 10


def test_an_environment_that_is_there_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr("subprocess.run", lambda *arguments, **options: pytest.fail("it was made again"))
    assert environment_with(tmp_path, ["torch==2.13.0"]) == str(tmp_path / "bin" / "python")


def test_other_data_are_refused() -> None:
    expect_targets("RecTools", {"targets_of_epoch": 5}, 5)
    with pytest.raises(SystemExit, match="RecTools trains 5 targets an epoch, ours 6"):
        expect_targets("RecTools", {"targets_of_epoch": 5}, 6)


# --- the padded trainer ---


def full_rows(items: np.ndarray, targets: np.ndarray) -> SequenceBatch:
    rows, length = items.shape
    return SequenceBatch(
        offsets=torch.arange(rows + 1) * length,
        items=torch.from_numpy(items).flatten(),
        timestamps=torch.zeros(rows * length, dtype=torch.int64),
        targets=torch.from_numpy(targets).flatten(),
        request_time=torch.zeros(rows, dtype=torch.int64),
        user_index=torch.arange(rows),
    )


def test_the_padded_trainer_computes_our_model_and_twice_our_loss() -> None:
    rng = np.random.default_rng(0)
    items, targets, negatives = rng.integers(1, 41, (3, 4, SMALL.max_length))
    negatives = np.where(negatives == targets, negatives % 40 + 1, negatives)
    torch.manual_seed(0)
    task = SASRec(40, SMALL)
    for parameter in task.parameters():  # norms and biases too
        torch.nn.init.normal_(parameter, std=0.3)
    padded = PaddedSASRec(40, SMALL)
    padded.copy_weights(task)
    task, padded = task.double().eval(), padded.double().eval()
    states = task.token_states(full_rows(items, targets))
    torch.testing.assert_close(padded.states(items).flatten(0, 1), states)
    asked = torch.from_numpy(targets).flatten(), torch.from_numpy(negatives).view(-1, 1)
    ours = binary_cross_entropy(states, task.item_embedding.weight, *asked) / targets.size
    theirs = padded.loss(items, targets, negatives)
    torch.testing.assert_close(theirs, 2 * ours)
    (one,) = torch.autograd.grad(theirs, [padded.attention[0].in_proj_weight])
    (other,) = torch.autograd.grad(2 * ours, [task.blocks[0].attention.in_proj_weight])
    torch.testing.assert_close(one, other)


def test_padded_rows_hold_the_windows_with_unseen_negatives(bench: Bench) -> None:
    windows, store = bench.windows, bench.store
    short = Windows(windows.user[:2], windows.end[:2] - [3, 10], windows.end[:2])
    items, targets, negatives = padded_rows(store, short, np.array([1, 0]), 10, np.random.default_rng(0))
    assert (items > 0).sum(1).tolist() == [10, 3] and (items[1, :7] == 0).all()
    assert targets[0].tolist() == store.items[windows.end[1] - 9 : windows.end[1] + 1].tolist()
    assert items[:, 8:].tolist() == targets[:, 7:-1].tolist()
    for row, window in enumerate([1, 0]):
        first = store.offsets[windows.user[window]]
        assert not set(negatives[row].tolist()) & set(store.items[first : windows.end[window] + 1].tolist())


def test_the_padded_trainer_trains(bench: Bench) -> None:
    torch.manual_seed(0)
    trainer = PaddedTrainer(PaddedSASRec(bench.store.num_items, SMALL), lr=0.01)
    rows = padded_rows(bench.store, bench.windows, np.arange(8), 10, np.random.default_rng(0))
    losses = [trainer.step(rows) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]


# --- results ---


def test_ratios_are_of_medians_and_of_the_fastest_peer(bench: Bench, tmp_path: Path) -> None:
    speeds = {
        "ours, softmax": [900.0, 1000.0, 5000.0],
        "ours, BCE": [2000.0, 2000.0, 2000.0],
        "padded trainer": [400.0, 300.0, 400.0],
        "RecBole, 32 rows": [4.0, 4.0, 9.0],
        "RecBole, 128 rows": [2.0, 8.0, 2.0],
    }
    taken = {name: [Turn(10 * value, 10.0, 5.0) for value in values] for name, values in speeds.items()}
    sasrec_train_speed.report(bench, taken, sasrec_train_speed.COMMAND, tmp_path / "out")
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").iterdir()}
    assert set(found) == {"sasrec-train-speed-vs-recbole", "sasrec-train-speed-vs-padded-trainer"}  # no RecTools
    recbole, padded = found["sasrec-train-speed-vs-recbole"], found["sasrec-train-speed-vs-padded-trainer"]
    assert (recbole["value"], recbole["met"]) == (250.0, True) and "RecBole, 32 rows 4.0" in recbole["peer"]
    assert (padded["value"], padded["met"]) == (5.0, False)
    assert recbole["runs"]["targets_per_cpu_second"]["ours, softmax"] == 2000.0
    assert recbole["runs"]["floor"]["measured_seconds"] > 0


def test_rounds_end_when_the_time_is_over() -> None:
    taken: list[str] = []
    turns = {name: lambda name=name: Turn(len(taken.append(name) or taken), 1.0, 1.0) for name in ("one", "other")}
    amounts = {name: [turn.amount for turn in found] for name, found in measure(turns, 2, "x/s").items()}
    assert amounts == {"one": [1, 3], "other": [2, 4]}
    assert {len(found) for found in measure(turns, 5, "x/s", end=0.0).values()} == {1}


def test_the_floor_of_attention_counts_what_the_sizes_say() -> None:
    options = SASRecOptions(hidden=16, blocks=3, heads=2, feed_forward=32)
    work = attention_step_work(options, num_items=100, targets=10, pairs=55.0)
    products = 3 * (4 * 16 * 16 + 2 * 16 * 32) * 10
    assert work.layer_gemm_flop == 3 * 2 * products + 2 * 3 * 55 * 16 * 7
    assert work.loss_gemm_flop == 3 * 2 * 16 * 100 * 10
    assert work.scan_instructions == 3 * 2 * 55 * WEIGHTS and work.softmax_instructions == SOFTMAX * 100 * 10


@pytest.mark.slow
def test_ours_and_recbole_take_turns_on_the_same_data(bench: Bench, tmp_path: Path) -> None:
    with ExitStack() as stack:
        turns = turns_of(bench, None, (4, 8), stack)
        speeds = measure(turns, 2, "targets/s")
    assert all(turn.rate > 0 for turns in speeds.values() for turn in turns)
    assert set(speeds) == {"ours, softmax", "ours, BCE", "padded trainer", "RecBole, 4 rows", "RecBole, 8 rows"}
    assert all(len(values) == 2 for values in speeds.values())
    ours = sasrec_full_ranking.Ours(bench)
    with ExitStack() as stack:
        ranking = measure(sasrec_full_ranking.turns_of(bench, ours, None, (4,), stack), 2, "users/s")
    assert set(ranking) == {"ours", "RecBole, 4 rows"} and len(ours.parts) == 2
    sasrec_full_ranking.report(bench, ours, ranking, tmp_path / "out")
    result = json.loads((tmp_path / "out" / "sasrec-full-ranking-vs-recbole.json").read_text())
    assert result["value"] > 0 and len(result["runs"]["turns"]["ours"]) == 2


# --- TiSASRec's memory ---


def test_the_direct_formula_computes_our_tisasrec() -> None:
    ours = tisasrec_memory.model_of("ours", 9).double().eval()
    direct = tisasrec_memory.DirectTiSASRec(ours).eval()
    batch = tisasrec_memory.batch_of(3, 9, tisasrec_memory.ITEMS, seed=1)
    torch.testing.assert_close(direct.token_states(batch), ours.token_states(batch))


@pytest.mark.slow
def test_tisasrec_memory_writes_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tisasrec_memory, "SEEDS", 1)
    tisasrec_memory.main(["--rows", "8", "--length", "100", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "sasrec-tisasrec-memory.json").read_text())
    pairs = 2 * 8 * 100 * 100 * tisasrec_memory.WIDTH * 4  # bytes of two [B, L, L, C]
    assert result["runs"]["bytes"]["direct"][0] > pairs and 0 < result["value"] < 1


def test_losses_of_the_benchmark_are_those_of_the_claims(bench: Bench) -> None:
    variant = bench.ours("ours, BCE", LossOptions(name="bce", num_negatives=1), 2)
    assert variant.step() == int(bench.windows.lengths[:].sum())  # fewer windows than rows: the whole epoch is a batch
