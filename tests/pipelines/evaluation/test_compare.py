"""Two run folders compared: the numbers by hand, what is refused, what is merely said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from rich.console import Console

from pipelines.cli import main
from pipelines.config import load_config
from pipelines.errors import RunError
from pipelines.evaluation.compare import compare_runs, find_run, find_runs
from pipelines.evaluation.ranking import metrics_from_ranks
from pipelines.evaluation.significance import paired_test

CARD: dict[str, Any] = {
    "name": "loo-full-masked",
    "split": "leave-one-out",
    "ties": "worst",
    "ranking": "full",
    "catalogue_items": 50,
    "test_queries": 400,
    "max_length": 200,
    "masked": "all items of the user's history, but never the target",
    "query_time": "blind",
    "validation": "best NDCG@10",
    "seeds": [1],
    "split_digest": "d" * 64,
    "data_hash": "h" * 64,
    "commit": "abc",
}


def write_run(
    path: Path,
    ranks: np.ndarray,
    lengths: np.ndarray | None = None,
    metrics: dict[str, float] | None = None,
    model: dict[str, Any] | None = None,
    **card: Any,
) -> Path:
    """A run folder as far as a comparison reads it; fields that are None are left off the card."""
    import torch

    path.mkdir(parents=True)
    table = {
        "user_id": [f"u{i}" for i in range(len(ranks))],
        "target_item_id": np.arange(len(ranks)),
        "rank": arrow.array(ranks.astype(np.int32)),
        "history_length": arrow.array((lengths if lengths is not None else np.arange(len(ranks)) + 2).astype(np.int32)),
    }
    parquet.write_table(arrow.table(table), path / "ranks.parquet")
    whole = {key: value for key, value in {**CARD, **card}.items() if value is not None}
    test = metrics or metrics_from_ranks(torch.from_numpy(ranks), (1, 10))
    (path / "metrics.json").write_text(json.dumps({"protocol": whole, "test": test, "model": model}))
    return path


def leave(arguments: list[str]) -> Any:
    """The command line's exit code."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return left.value.code


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """Run B finds the target of every eighth user first; all else is as in run A."""
    a = np.random.default_rng(0).integers(1, 51, 400)
    b = np.where(np.arange(400) % 8 == 0, 1, a)
    return write_run(tmp_path / "a", a), write_run(tmp_path / "b", b, seeds=[2], query_time="aware"), a, b


def test_the_numbers_are_those_of_the_paired_test(pair) -> None:  # type: ignore[no-untyped-def]
    run_a, run_b, a, b = pair
    result = compare_runs(run_a, run_b)
    assert [one.metric for one in result.differences] == ["HR@10", "NDCG@10", "MRR@10"]
    hit = result.differences[0]
    assert (hit.a, hit.b) == pytest.approx(((a <= 10).mean(), (b <= 10).mean()))
    for one in result.differences:
        test = paired_test(a, b, one.metric)
        assert (one.difference, one.low, one.high, one.p_value) == (test.difference, test.low, test.high, test.p_value)
        assert one.difference == pytest.approx(one.b - one.a) and one.low < one.difference < one.high
        assert one.p_value < 0.001
    assert result.unlike == {"query_time": ("blind", "aware"), "seeds": ([1], [2])}
    assert result.queries == 400 and (result.run_a, result.run_b) == ("a", "b")


def test_slices_are_quarters_by_length_of_history(tmp_path: Path) -> None:
    """B is better for short histories alone; lengths 2 (half of all queries) stay together."""
    lengths = np.concatenate([np.full(200, 2), np.arange(3, 203)])
    a = np.full(400, 20)
    b = np.where(lengths == 2, 5, 20)
    result = compare_runs(write_run(tmp_path / "a", a, lengths), write_run(tmp_path / "b", b, lengths))
    assert [(part.name, part.queries) for part in result.slices] == [
        ("2 items", 200),
        ("3 to 102 items", 100),
        ("103 to 202 items", 100),
    ]
    assert [part.differences[0].difference for part in result.slices] == [1.0, 0.0, 0.0]
    assert result.differences[0].difference == 0.5
    same = np.full(400, 7)
    equal = compare_runs(write_run(tmp_path / "c", a, same), write_run(tmp_path / "d", b, same))
    assert equal.slices == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("catalogue_items", 51),
        ("split_digest", "e" * 64),
        ("data_hash", "i" * 64),
        ("masked", "nothing"),
        ("ranking", "sampled: 100 items"),
        ("ties", "average"),
        ("split", "global-time"),
        ("test_queries", 399),
    ],
)
def test_runs_that_were_not_asked_the_same_are_refused(pair, tmp_path: Path, field: str, value: Any) -> None:  # type: ignore[no-untyped-def]
    run_a, _, _, b = pair
    other = write_run(tmp_path / "other", b, **{field: value})
    with pytest.raises(RunError, match=f"differ in '{field}': .* not comparable"):
        compare_runs(run_a, other)


def test_a_card_that_is_silent_is_refused(pair, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run_a, _, a, _ = pair
    silent = [write_run(tmp_path / f"s{i}", a, split_digest=None) for i in range(2)]
    with pytest.raises(RunError, match="does not say 'split_digest'"):
        compare_runs(*silent)
    (run_a / "metrics.json").write_text("{}")
    with pytest.raises(RunError, match="no evaluated run here"):
        compare_runs(run_a, run_a)


def test_ranks_that_do_not_belong_to_the_run_are_refused(pair, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run_a, run_b, _, b = pair
    with pytest.raises(RunError, match="ranks.parquet gives HR@10 .* metrics.json says 0.999000"):
        compare_runs(run_a, write_run(tmp_path / "stale", b, metrics={"HR@10": 0.999}))
    with pytest.raises(RunError, match="holds other queries \\(history_length\\)"):
        compare_runs(run_a, write_run(tmp_path / "longer", b, np.arange(400) + 9))
    (run_b / "ranks.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(RunError, match="cannot be read"):
        compare_runs(run_a, run_b)
    (run_b / "ranks.parquet").unlink()
    with pytest.raises(RunError, match="cannot be read"):
        compare_runs(run_a, run_b)
    parquet.write_table(arrow.table({"rank": [1]}), run_b / "ranks.parquet")
    with pytest.raises(RunError, match="lacks the column user_id|cannot be read"):
        compare_runs(run_a, run_b)


def test_seeds_of_two_models_are_compared_by_their_means(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    side_a, side_b = rng.integers(1, 30, (2, 400)), rng.integers(1, 30, (3, 400))
    model = {"name": "m", "hidden": 8}
    runs_a = [write_run(tmp_path / f"a-{s}", one, seeds=[s], model=model) for s, one in enumerate(side_a)]
    runs_b = [write_run(tmp_path / f"b-{s}", one, seeds=[s]) for s, one in enumerate(side_b)]
    result = compare_runs(runs_a, runs_b)
    for one in result.differences:
        test = paired_test(side_a, side_b, one.metric)
        assert (one.difference, one.low, one.high, one.p_value) == (test.difference, test.low, test.high, test.p_value)
        assert one.difference == pytest.approx(one.b - one.a, abs=1e-12)
    hits = [(one <= 10).mean() for one in side_b]
    assert result.differences[0].b == pytest.approx(np.mean(hits))
    assert result.differences[0].spread_b == pytest.approx(np.std(hits, ddof=1))
    assert result.unlike == {"seeds": ([0, 1], [0, 1, 2])}
    assert (result.run_a, result.run_b) == ("a-0, a-1", "b-0, b-1, b-2")
    console = Console(width=200, record=True, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(result.table())
    assert f"B is the mean of several seeds; standard deviation between them: HR@10 {np.std(hits, ddof=1):.4f}" in (
        " ".join(captured.get().split())
    )
    assert compare_runs(runs_a[0], runs_b).differences[0].spread_a is None
    with pytest.raises(RunError, match="b-0: the seeds of one side are .* each may count once"):
        compare_runs(runs_a, [runs_b[0], write_run(tmp_path / "again", side_b[1], seeds=[0])])
    other = write_run(tmp_path / "other", side_a[1], seeds=[9], model={"name": "m", "hidden": 16, "new": 1})
    with pytest.raises(RunError, match="other: this is another model"):
        compare_runs([runs_a[0], other], runs_b)
    with pytest.raises(RunError, match="differ in 'masked'"):
        compare_runs(runs_a, [runs_b[0], write_run(tmp_path / "open", side_b[1], seeds=[7], masked="nothing")])


def test_seeds_of_one_side_are_of_one_configuration(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)

    def seed(number: int, *sets: str) -> Path:
        config = load_config("quickstart", [f"seed={number}", f"name=run-{number}", *sets])
        path = tmp_path / f"run-{number}"
        write_run(path, rng.integers(1, 30, 400), seeds=[number], model=config.resolved()["model"])
        (path / "config.yaml").write_text(config.to_yaml())
        metrics = json.loads((path / "metrics.json").read_text())
        (path / "metrics.json").write_text(json.dumps({**metrics, "recipe": "quickstart"}))
        return path

    one, two = seed(1), seed(2)
    lr, epochs = seed(3, "optimizer.lr=0.5"), seed(4, "training.epochs=77")
    assert compare_runs([one, two], lr).queries == 400  # another recipe on the other side
    for other in (lr, epochs):
        with pytest.raises(RunError, match=f"{other.name}: this is of another configuration than run-1"):
            compare_runs([one, other], two)
    (lr / "config.yaml").unlink()  # then the model alone can tell
    assert compare_runs([one, lr], two).queries == 400
    older = json.loads((lr / "metrics.json").read_text())
    del older["model"]["loss"]["chunk"]  # an option that was not there when it ran
    (lr / "metrics.json").write_text(json.dumps(older))
    assert compare_runs([one, lr], two).queries == 400
    (lr / "metrics.json").write_text((lr / "metrics.json").read_text().replace('"hidden": ', '"hidden": 1'))
    with pytest.raises(RunError, match="run-3: this is another model"):
        compare_runs([one, lr], two)


def test_seeds_are_named_by_commas_or_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/x-1", "runs/x-2", "runs/y", "else/x-3"):
        (tmp_path / name).mkdir(parents=True)
    assert find_runs("x-1,y") == [Path("runs/x-1"), Path("runs/y")]
    assert find_runs("x-*") == [Path("runs/x-1"), Path("runs/x-2")]
    assert find_runs(f"{tmp_path}/else/x-?,x-1") == [tmp_path / "else" / "x-3", Path("runs/x-1")]
    with pytest.raises(RunError, match=r"z-\*: no run fits"):
        find_runs("z-*")


def test_the_table_shows_what_differs(pair) -> None:  # type: ignore[no-untyped-def]
    console = Console(width=160, record=True, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(compare_runs(pair[0], pair[1]).table())
    text = captured.get()
    assert "query_time: A blind, B aware" in text and "NDCG@10, 2 to 101 items" in text
    assert "B b against A a" in text and "0.0001" in text


def test_the_verb_prints_a_table_or_json_and_refuses_in_one_line(
    pair, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    run_a, run_b, _, b = pair
    assert leave(["compare", str(run_a), str(run_b)]) == 0
    assert "NDCG@10" in capsys.readouterr().out
    assert leave(["compare", str(run_a), str(run_b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(compare_runs(run_a, run_b).as_dict()))
    other = write_run(tmp_path / "other", b, catalogue_items=3416)
    assert leave(["compare", str(run_a), str(other)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "'catalogue_items': 50 in a, 3416 in other" in error
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    write_run(tmp_path / "runs" / "mine", b)
    assert leave(["compare", "mine", "mine"]) == 0
    assert find_run("mine") == Path("runs/mine")
    assert leave(["compare", "mine", "yours"]) == 2
    assert "evaluated runs: mine" in capsys.readouterr().err
