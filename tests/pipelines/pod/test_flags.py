"""Flags and the plan that they make: mistakes are one line before anything is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer.main

from pipelines.cli import app
from pipelines.config import model_names
from pipelines.data.datasets import dataset_files
from pipelines.errors import ConfigError
from pipelines.pod import checks
from pipelines.pod.flags import TRAINING_SWITCHES, TRAINING_VALUES, parse, wants_stop
from pipelines.pod.plan import make_plan


def test_the_flags_of_training_are_the_command_line_s() -> None:
    parameters = typer.main.get_command(app).commands["runbook"].params  # type: ignore[attr-defined]
    switches = {parameter.opts[0] for parameter in parameters if getattr(parameter, "is_flag", False)}
    values = {parameter.opts[0] for parameter in parameters} - switches
    assert (set(TRAINING_SWITCHES), set(TRAINING_VALUES)) == (switches, values)


def test_names_read_without_a_parser_are_those_of_training() -> None:
    assert set(checks.model_names()) == set(model_names())
    assert set(checks.dataset_names()) == set(dataset_files())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--stop-pod-when-don"], "unknown flag '--stop-pod-when-don'. did you mean '--stop-pod-when-done'?"),
        (["--model"], "Option '--model' requires an argument"),
        (["--debug=yes"], "'--debug' takes no value"),
        (["quickstart"], "'quickstart' is no flag. give a recipe by its flag, or --config FILE; see --help."),
        (["--quickstart", "--production"], "--quickstart and --production name different recipes. give one of them."),
        (["--processes", "0"], "--processes: '0' is not a whole number from 1 up"),
        (
            ["--nodes", "2"],
            "--nodes: several nodes must find each other. give --node-rank R and --rendezvous HOST:PORT",
        ),
        (["--node-rank", "1"], "--node-rank: there are 1 nodes, numbered from 0. give --nodes as well."),
        (
            ["--nodes", "2", "--node-rank", "0", "--rendezvous", "host"],
            "--rendezvous: 'host' is not HOST:PORT",
        ),
    ],
)
def test_mistakes_are_named(flags: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(flags)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--config", "none.yaml"],
            "--config none.yaml: no such file. give a YAML file; the recipes of configs/runs are",
        ),
        (["--model", "ss4rek"], "--model: unknown model 'ss4rek'. did you mean 'ss4rec'?"),
        (["--dataset", "ml-1n"], "--dataset: unknown dataset 'ml-1n'. did you mean 'ml-1m'?"),
        (["--dataset", "clicks.csv"], "--dataset clicks.csv: no such data file. check the path."),
    ],
)
def test_names_that_do_not_exist_are_named(flags: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checks.check_names(parse(flags))
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("flags", "job"),
    [
        ([], "quickstart"),
        (["--test-ml1m", "--debug", "--max-cost", "3", "--set", "optimizer.lr=1"], "ml1m"),
        (["--model", "ss4rec", "--dataset", "ml-1m"], "ss4rec-ml-1m"),
        (["--production", "--model", "ss4rec"], "production-ss4rec"),
        (["--config", "folder/mine.yaml"], "mine"),
        (["--test-ml1m", "--set", "name=other"], "other"),
    ],
)
def test_a_job_has_the_same_name_on_every_resume(flags: list[str], job: str) -> None:
    assert parse(flags).job == job


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--quickstart", "--stop-pod-when-done"], True),
        (["--stop-pod-when-done=1"], True),
        (["--stop-pod"], True),
        (["--model", "--stop-pod-when-done"], True),
        (["\u2014stop-pod-when-done"], True),  # a word processor's dash
        (["--stop-pod-when-done=1", "--dry-run"], False),
        (["--set", "name=stop-pod-when-done"], False),
        (["--quickstart"], False),
    ],
)
def test_a_wish_to_stop_is_understood_before_the_flags_are(arguments: list[str], wanted: bool) -> None:
    assert wants_stop(arguments) == wanted


def test_a_cap_needs_a_price_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"guards.max_cost: --max-cost needs the price of an hour. add --price-per-hour"
    ):
        make_plan(parse(["--max-cost", "3"]), {})
    assert make_plan(parse(["--max-cost", "3", "--price-per-hour", "2"]), {}).price_per_hour == 2
    assert make_plan(parse(["--max-cost", "3", "--set", "guards.price_per_hour=2"]), {}).price_per_hour == 2
    priced = make_plan(parse(["--max-cost", "3", "--no-setup"]), {"RECPOD_PRICE_PER_HOUR": "1.5"})
    assert (priced.cap, priced.price_per_hour) == (3, 1.5)
    assert priced.command[-2:] == ["--price-per-hour", "1.5"]
    (tmp_path / "mine.yaml").write_text("guards: {price_per_hour: 2}\n")  # training reads it
    assert make_plan(parse(["--max-cost", "3", "--config", "mine.yaml"]), {}).cap is None
    with pytest.raises(ConfigError, match=r"RECPOD_PRICE_PER_HOUR: 'two' is not a positive number"):
        make_plan(parse([]), {"RECPOD_PRICE_PER_HOUR": "two"})
    with pytest.raises(ConfigError, match=r"--max-cost: '-1' is not a positive number"):
        make_plan(parse(["--max-cost", "-1"]), {})


def test_watchdog_and_grace_are_for_containers() -> None:
    outside, inside = make_plan(parse([]), {"RECPOD_IMAGE": ""}), make_plan(parse([]), {"RECPOD_IMAGE": "cpu"})
    assert (inside.idle_seconds, inside.grace) == (900, 7)
    if not outside.contained:  # these tests may run in a container themselves
        assert (outside.idle_seconds, outside.grace) == (None, None)
    assert make_plan(parse(["--idle-minutes", "0"]), {"RECPOD_IMAGE": "cpu"}).idle_seconds is None
    assert make_plan(parse(["--idle-minutes", "2"]), {}).idle_seconds == 120
    with pytest.raises(ConfigError, match=r"--idle-minutes: 'soon' is not zero or a positive number"):
        make_plan(parse(["--idle-minutes", "soon"]), {})
