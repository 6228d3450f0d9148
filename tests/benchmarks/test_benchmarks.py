"""Each benchmark in a tiny mode: it writes result files that can be read. None of these tests depends on a time."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import epoch_seconds, quickstart, resume_kills, train_speed
from benchmarks.published_formulation import PublishedSS4Rec, prefixes, recursive_scan
from benchmarks.result_file import RESULTS
from benchmarks.step_floor import DIAGONAL, SELECTIVE, SOFTMAX, floor, step_work
from benchmarks.synthetic_store import synthetic_store
from models.ss4rec import SS4Rec, SS4RecOptions
from pipelines.data.loader import Windows, cut_windows, gather_batch
from pipelines.data.splits import make_split
from pipelines.evaluation.results_readme import read_results, tables

ROOT = Path(__file__).resolve().parents[2]
TINY = """
name: quick
dataset: {folder}/clicks.csv
model: {{name: ss4rec, hidden: 16, s5_state: 4, d_state: 4, layers: 1}}
loader: {{max_length: 10, windows: all, rows_per_batch: 16}}
training: {{epochs: 1}}
gates: [{{metric: NDCG@10, times_popularity: {factor}}}]
"""


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {result["claim"]: result for result in read_results(folder)}


def tiny_recipe(folder: Path, factor: float) -> Path:
    rng = random.Random(0)  # long-tailed, so that popularity is worth something
    rows = [f"{u},{min(int(rng.expovariate(0.1)), 59)},{1000 * u + 60 * i}" for u in range(40) for i in range(14)]
    (folder / "clicks.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    (folder / "quick.yaml").write_text(TINY.format(folder=folder, factor=factor))
    return folder / "quick.yaml"


def test_committed_results_can_be_read_and_name_commands_that_exist() -> None:
    for result in read_results(RESULTS):
        assert isinstance(result["met"], bool) and result["machine"] and result["versions"] and result["commit"]
        assert str(Path.home()) not in json.dumps(result)
        words = result["command"].split()
        if "-m" in words:
            module = words[words.index("-m") + 1]
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), result["command"]


# --- training speed ---


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 200])
def test_the_recursive_scan_is_the_recurrence(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    decay, drive = torch.rand(2, 3, length, 4, generator=generator).to(torch.complex128)
    state, expected = torch.zeros(3, 4, dtype=torch.complex128), []
    for t in range(length):
        state = decay[:, t] * state + drive[:, t]
        expected.append(state)
    torch.testing.assert_close(recursive_scan(decay, drive), torch.stack(expected, dim=1))


@pytest.mark.parametrize("query_time", ["aware", "blind"])
def test_the_peer_computes_what_our_model_computes(tmp_path: Path, query_time: str) -> None:
    """Every prefix as a padded row gives the state of one causal pass at that position, and the same gradients."""
    store = synthetic_store(tmp_path / "store", share=0.003)
    torch.manual_seed(0)
    task = (
        SS4Rec(store.num_items, SS4RecOptions(hidden=16, s5_state=4, d_state=4, query_time=query_time)).double().eval()
    )
    first, end = int(store.offsets[2]), int(store.offsets[2]) + 15
    user, ends = np.full(15, 2), np.arange(first + 1, end + 1)
    rows = gather_batch(store, Windows(user, np.full(15, first), ends), last_target_only=True)
    causal = gather_batch(store, Windows(user[:1], np.array([first]), np.array([end])))
    published = PublishedSS4Rec(task, max_length=20)
    torch.testing.assert_close(published(rows), task.token_states(causal))
    peer = torch.autograd.grad(published.loss(rows), list(task.parameters()))
    ours = torch.autograd.grad(task.loss(causal).sum / 15, list(task.parameters()))
    for one, other in zip(peer, ours, strict=True):
        torch.testing.assert_close(one, other)


def test_prefixes_are_training_targets_with_their_whole_history(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path / "store", share=0.003)
    train = make_split(store, "leave-one-out").train
    windows = cut_windows(store, train, 8, "all")
    batch = prefixes(store, windows, 400, 12, np.random.default_rng(0))
    newest = batch.offsets[1:] - 1
    assert batch.num_rows == 400 and int(batch.lengths.max()) == 12 > 8
    assert int((batch.targets > 0).sum()) == 400 and bool((batch.targets[newest] > 0).all())
    lengths = dict(zip(train.user.tolist(), (train.end - store.offsets[train.user]).tolist(), strict=True))
    for row, user in enumerate(batch.user_index.tolist()):  # each row is a stretch of its user's training events
        items = [*batch.items[batch.offsets[row] : batch.offsets[row + 1]].tolist(), int(batch.targets[newest[row]])]
        history = store.items[store.offsets[user] : store.offsets[user] + lengths[user] + 1].tolist()
        assert any(history[i : i + len(items)] == items for i in range(len(history)))


def test_the_floor_counts_what_the_sizes_say() -> None:
    sizes = SS4RecOptions(hidden=16, layers=1, s5_state=4, d_state=2, d_conv=4, expand=2)
    work = step_work(sizes, num_items=100, targets=10)
    products = 16 * 8 + 8 * 16 + 16 * 64 + 32 * (1 + 4) + 1 * 32 + 32 * 16
    assert work.layer_gemm_flop == 3 * 2 * products * 10
    assert work.loss_gemm_flop == 3 * 2 * 16 * 100 * 10
    assert work.scan_instructions == (4 * DIAGONAL + 32 * 2 * SELECTIVE + 3 * 32 * 4) * 10
    assert work.softmax_instructions == SOFTMAX * 100 * 10
    found = floor(work, {"float32_flop_per_s": 1e6, "loss_flop_per_s": 2e6, "bytes_per_s": 1e6}, measured_seconds=5.0)
    parts = found["seconds_of_parts"]
    assert parts["layer_gemm"] == pytest.approx(work.layer_gemm_flop / 1e6)
    assert parts["loss_gemm"] == pytest.approx(work.loss_gemm_flop / 2e6)
    assert parts["scans"] == pytest.approx(work.scan_instructions / 5e5)
    assert found["ratio"] == pytest.approx(5.0 / sum(parts.values()))


@pytest.mark.slow
def test_train_speed_writes_its_results(tmp_path: Path) -> None:
    small = ["hidden=16", "s5_state=4", "d_state=4", "layers=1"]
    sets = [part for value in small for part in ("--set", f"model.{value}")]
    sets += ["--set", "loader.max_length=16", "--set", "loader.rows_per_batch=32"]
    train_speed.main(["--synthetic", "--rounds", "2", "--published-rows", "2", "--out", str(tmp_path), *sets])
    found = results(tmp_path)
    assert set(found) == {"front-train-speed-vs-published", "front-train-speed-vs-padded-pass"}
    runs = found["front-train-speed-vs-published"]["runs"]
    assert set(runs["targets_per_second"]) == {"ours", "ours, torch path", "padded pass", "published, 2 rows"}
    assert all(len(values) == 2 and min(values) > 0 for values in runs["targets_per_second"].values())
    assert runs["floor"]["seconds"] > 0
    assert "train speed vs published" in tables(list(found.values()))


def test_an_epoch_of_each_recipe_is_timed_and_of_the_first_one_without_numba(tmp_path: Path) -> None:
    sets = ["--set", "loader.max_length=8", "--set", "loader.rows_per_batch=512", "--set", "model.hidden=16"]
    epoch_seconds.main(["ml1m", "hstu-ml1m", "--synthetic", "--epochs", "2", "--out", str(tmp_path), *sets])
    found = results(tmp_path)
    assert {name: list(one["runs"]["seconds"]) for name, one in found.items()} == {
        "front-ml1m-epoch-seconds": ["ours", "ours, torch path"],
        "hstu-ml1m-epoch-seconds": ["ours"],
    }
    for one in found.values():
        most = float(one["target"].split()[1])
        assert len(one["runs"]["seconds"]["ours"]) == 2 and one["met"] is (one["value"] < most)


def test_a_recipe_without_a_claim_is_not_timed(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        epoch_seconds.main(["quickstart", "--out", str(tmp_path)])


# --- kills ---


def test_differences_names_what_is_not_equal() -> None:
    one = {"model": {"w": torch.tensor([1.0, 2.0])}, "state": {"step": 3}, "losses": [(1, 0.5), (2, 0.4)]}
    other = {"model": {"w": torch.tensor([1.0, 2.0])}, "state": {"step": 3}, "losses": [(1, 0.5), (2, 0.4)]}
    assert resume_kills.differences(one, other) == []
    other["model"]["w"][1] += 1e-7 * 4
    other["losses"][1] = (2, 0.3)
    assert resume_kills.differences(one, other) == ["model.w", "losses[1]"]
    assert resume_kills.differences(one, {"model": {}}) == [""]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kills_and_sigterm_write_their_results_and_go_on_where_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [
        "--kills",
        "1",
        "--epochs",
        "6",
        "--users",
        "100",
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "out"),
    ]
    resume_kills.main([*small, "--only", "kills"])
    kills = results(tmp_path / "out")["front-resume-kills"]
    trial = kills["runs"][0]
    assert (kills["value"], kills["met"], trial["differences"]) == (1, True, [])
    assert trial["checkpoint_at_death"] < trial["last_step"]
    monkeypatch.setattr(resume_kills.Kills, "start", lambda *arguments: pytest.fail("a finished trial was run again"))
    resume_kills.main([*small, "--only", "kills"])
    terms = ["--sigterms", "1", "--sigterm-recipe", str(tmp_path / "work" / "killed.yaml"), "--sigterm-window", "0.2"]
    resume_kills.main([*small, *terms, "--only", "sigterm"])
    sigterm = results(tmp_path / "out")["front-sigterm-seconds"]
    assert sigterm["runs"][0]["checkpoint"] > 0 and sigterm["value"] == sigterm["runs"][0]["seconds"]
    # a run that ends with other weights is counted as such
    whole, other = (tmp_path / "work" / "runs" / name for name in ("whole", "trial-1"))
    assert resume_kills.compare(whole, other) == []
    lines = (other / "events.jsonl").read_text().splitlines()
    (other / "events.jsonl").write_text("\n".join(lines[:1]) + "\n")
    assert "losses" in resume_kills.compare(whole, other)


# --- quick start ---


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_quickstart_writes_its_results(tmp_path: Path) -> None:
    recipe, out = str(tiny_recipe(tmp_path, factor=1000.0)), str(tmp_path / "out")
    quickstart.main(["--runs", "1", "--no-setup", "--recipe", recipe, "--out", out])
    quickstart.main(["--seeds", "1", "--recipe", recipe, "--work", str(tmp_path / "work"), "--out", out])
    found = results(tmp_path / "out")
    time, seeds = found["front-quickstart-seconds"], found["front-quickstart-gate-seeds"]
    assert time["value"] == time["runs"][0]["seconds"] > 0 and time["runs"][0]["exit_code"] == 3
    assert (seeds["value"], seeds["met"], seeds["target"]) == (0, False, ">= 1")
    assert [(run["seed"], run["exit_code"]) for run in seeds["runs"]] == [(1, 3)]
    assert seeds["runs"][0]["ratio"] == pytest.approx(seeds["runs"][0]["NDCG@10"] / seeds["runs"][0]["popularity"])


def test_a_recipe_without_a_gate_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, factor=1.0)
    recipe.write_text(recipe.read_text().replace("times_popularity", "above"))
    with pytest.raises(SystemExit, match="has no gate on NDCG@10 over popularity"):
        quickstart.main(["--seeds", "1", "--recipe", str(recipe), "--out", str(tmp_path)])
