"""The command line: every stage as a verb, and the runbook's front door. Mistakes are one line and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.exceptions
from rich.console import Console

from pipelines.errors import ConfigError, RecPodError, nearest
from pipelines.training.signals import Interrupted, StopSignal

if TYPE_CHECKING:  # importing the schema takes torch with it: --help and usage errors do without
    from pipelines.config import RunConfig
    from pipelines.config_files import Layered

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, check and watch sequential recommenders.",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at configurations.")
app.add_typer(config_app, name="config")

Recipe = Annotated[str, typer.Argument(help="A recipe's name (configs/runs) or a YAML file.")]
Engine = Annotated[
    str | None, typer.Option(help="recpod, or recbole: a model of RecBole's, named by engine.model, on the same data.")
]
Sets = Annotated[list[str] | None, typer.Option("--set", help="key.path=value; may be given several times.")]


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True, quiet=_is_echo())


def _load(recipe: str | Path, sets: list[str] | None, layers: Layered | None = None) -> RunConfig:
    """The configuration; where several processes read it, all of them must be able to."""
    from pipelines.training.distributed import this_world

    return this_world().agree(lambda: _read_recipe(recipe, sets, layers))


def _read_recipe(recipe: str | Path, sets: list[str] | None, layers: Layered | None) -> RunConfig:
    """The configuration of a recipe's name or file; a file in RecBole's keys and a gin file are translated first."""
    from pipelines.compat.recbole import asked_engine, is_recbole_config, translate
    from pipelines.config import load_config

    path = Path(recipe)
    if path.suffix == ".gin":
        from pipelines.compat.hstu.translate import load_gin

        return load_gin(path, sets or [], layers)
    if path.suffix not in (".yaml", ".yml") or not is_recbole_config(path):
        return load_config(recipe, sets or [], layers)
    translated, notes = translate(path, asked_engine(sets or [], layers))
    for note in notes:
        print(note, file=sys.stderr)
    return load_config("train", sets or [], layers.over(translated) if layers else translated)


@app.command()
def runbook(
    quickstart: Annotated[
        bool, typer.Option("--quickstart", help="ML-100K from the recbole wheel; the default.")
    ] = False,
    test_ml1m: Annotated[bool, typer.Option("--test-ml1m", help="Validation on MovieLens-1M.")] = False,
    test_ml20m: Annotated[bool, typer.Option("--test-ml20m", help="Scale-up on MovieLens-20M.")] = False,
    model: Annotated[str | None, typer.Option(help="Model to train.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Dataset to train on.")] = None,
    engine: Engine = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of this project or of RecBole.")] = None,
    production: Annotated[
        bool, typer.Option("--production", help="The production recipe; needs ML-20M's gate.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Watch activations and gradients; never shortens a run.")
    ] = False,
    no_wandb: Annotated[bool, typer.Option("--no-wandb", help="Do not track with W&B.")] = False,
    resume: Annotated[str, typer.Option(help="auto, never, or the path of a checkpoint.")] = "auto",
    max_hours: Annotated[float | None, typer.Option(help="Stop after so many hours of training.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Stop when so much is spent.")] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="What the machine costs an hour.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run although the recipe before has not passed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and run nothing.")] = False,
    sets: Sets = None,
) -> int:
    """What ./runpod_entrypoint.sh hands over to."""
    from pipelines import front_door

    recipe = front_door.choose_recipe(
        quickstart=quickstart,
        ml1m=test_ml1m,
        ml20m=test_ml20m,
        production=production,
        config=config,
        model=model,
        dataset=dataset,
    )
    layers = front_door.flags_to_layers(
        recipe,
        model=model,
        dataset=dataset,
        engine=engine,
        debug=debug,
        no_wandb=no_wandb,
        max_hours=max_hours,
        max_cost=max_cost,
        price_per_hour=price_per_hour,
    )
    loaded = _load(recipe, sets, layers)
    return front_door.open_recipe(loaded, resume=resume, force=force, dry_run=dry_run, console=_console())


@app.command()
def run(
    recipe: Recipe,
    engine: Engine = None,
    resume: Annotated[str, typer.Option(help="auto, never, or the path of a checkpoint.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Run although the recipe before has not passed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and run nothing.")] = False,
    sets: Sets = None,
) -> int:
    """Run a recipe from preflight to report."""
    from pipelines import front_door

    config = _load(recipe, [*([f"engine.name={engine}"] if engine else []), *(sets or [])])
    return front_door.open_recipe(config, resume=resume, force=force, dry_run=dry_run, console=_console())


@app.command()
def preflight(
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
    dataset: Annotated[str, typer.Option(help="Dataset whose source is asked for.")] = "ml-100k",
    engine: Annotated[
        str, typer.Option(help="Who is to train: with recbole, what breaks RecBole is a failure.")
    ] = "recpod",
    fast: Annotated[
        bool, typer.Option("--fast", help="Only what takes no time, as a container's health check asks.")
    ] = False,
) -> int:
    """Check versions, kernels, GPU, disk and data source before money is spent."""
    from pipelines.preflight import PreflightOptions, print_checks, run_preflight

    options = PreflightOptions(dataset=dataset, engine=engine)
    if fast:
        from pipelines.health import fast_checks

        return print_checks(fast_checks(options.folder), _console(), as_json=as_json)
    return print_checks(run_preflight(options), _console(), as_json=as_json)


@app.command()
def fetch(recipe: Recipe, sets: Sets = None) -> int:
    """Bring a recipe's raw data."""
    from pipelines import stages
    from pipelines.data.datasets import data_folder
    from pipelines.data.fetch import fetch as fetch_file

    config = _load(recipe, sets)
    fetched = fetch_file(stages.dataset_spec(config), config.dataset.cache or data_folder())
    _console().print(f"{fetched.path} (from {fetched.source_name})")
    return 0


@app.command()
def prepare(recipe: Recipe, sets: Sets = None) -> int:
    """Make a recipe's sequence store."""
    from pipelines import run_stages

    prepared = run_stages.prepare(_load(recipe, sets))
    store = prepared.store
    _console().print(f"{store.path}: {store.num_users:,} users, {store.num_items:,} items, {store.num_events:,} events")
    return 0


@app.command()
def train(
    recipe: Recipe,
    resume: Annotated[str, typer.Option(help="auto, never, or the path of a checkpoint.")] = "auto",
    sets: Sets = None,
) -> int:
    """Train a recipe and stop there."""
    from pipelines.front_door import own_engine
    from pipelines.runbook import RunChoices, train_only

    train_only(own_engine(_load(recipe, sets)), RunChoices(resume=resume, preflight=False), _console())
    return 0


@app.command()
def evaluate(recipe: Recipe, sets: Sets = None) -> int:
    """Evaluate the best checkpoint of a trained recipe and apply its gate."""
    from pipelines.front_door import own_engine
    from pipelines.runbook import evaluate_only

    return evaluate_only(own_engine(_load(recipe, sets)), _console())


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run's folder.")]) -> int:
    """Write a run's report.html anew."""
    from pipelines.evaluation.report import results_table, write_report

    if not folder.is_dir():
        raise ConfigError("no such run folder", where=str(folder))
    console = _console()
    page = write_report(folder)
    console.print(results_table(folder))
    console.print(f"report: {page}")
    return 0


@app.command()
def estimate(
    recipe: Recipe,
    gpu: Annotated[str, typer.Option(help="A6000, A100, H100, ..., cpu, or this: this machine.")] = "this",
    gpus: Annotated[int, typer.Option(help="How many of them share a batch.")] = 1,
    price_per_hour: Annotated[float | None, typer.Option(help="What the machine costs an hour.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the estimate as JSON.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Measure on this machine first: real steps.")] = False,
    seconds: Annotated[float, typer.Option(help="Seconds of steps that --measure takes.")] = 30.0,
    files: Annotated[Path | None, typer.Option(help="Folder of throughput files.")] = None,
    sets: Sets = None,
) -> int:
    """Steps, memory, hours and dollars of a recipe before anything is rented."""
    from pipelines.estimate.verb import estimate_recipe
    from pipelines.front_door import own_engine
    from pipelines.spread_config import check_measured

    config = own_engine(_load(recipe, sets))
    if measure:
        check_measured(config)
    return estimate_recipe(
        config,
        _console(),
        gpu=gpu,
        gpus=gpus,
        price_per_hour=price_per_hour,
        as_json=as_json,
        measure_seconds=seconds if measure else None,
        files=files,
    )


@app.command()
def compare(
    run_a: Annotated[
        str,
        typer.Argument(metavar="RUN", help="What is compared against: a folder, or a name in runs/; or its seeds."),
    ],
    run_b: Annotated[str, typer.Argument(metavar="RUN", help="The run in question; seeds: a,b or 'mine-seed-*'.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> int:
    """Test whether the second of two evaluated runs is better than the first, query by query."""
    from pipelines.evaluation.compare import compare_runs, find_runs

    comparison = compare_runs(find_runs(run_a), find_runs(run_b))
    if as_json:
        typer.echo(json.dumps(comparison.as_dict(), indent=2))
    else:
        _console().print(comparison.table())
    return 0


@app.command()
def leaderboard(
    names: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Recipes' names or YAML files, or runs.")],
    seeds: Annotated[str | None, typer.Option(help="Each recipe is run with each. Default: 1,2,3.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Of the results. Default: benchmarks/results/leaderboard.")
    ] = None,
    collect: Annotated[bool, typer.Option("--collect", help="Train nothing: take these finished runs.")] = False,
    sets: Sets = None,
) -> int:
    """Run recipes x seeds, skip what is finished, and write a table with spread and confidence intervals."""
    from pipelines import leaderboard as board

    where, console = folder or board.FOLDER, _console()
    if collect:
        return board.collect(names, sets or [], seeds=seeds, folder=where, console=console)
    each = board.parse_seeds(board.SEEDS if seeds is None else seeds)
    return board.leaderboard(names, each, sets or [], load=_load, folder=where, console=console)


@config_app.command("show")
def config_show(recipe: Recipe, sets: Sets = None) -> int:
    """Print a recipe fully resolved."""
    typer.echo(_load(recipe, sets).to_yaml(), nl=False)
    return 0


@config_app.command("schema")
def config_schema() -> int:
    """Print the JSON schema of recipes, for editors."""
    from pipelines.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    # Idle OpenMP threads that spin make two busy processes several times slower; set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if _launched():
        _as_worker(arguments)
    sys.exit(_exit_code(lambda: app(arguments, standalone_mode=False)))


def _launched() -> bool:
    """Whether launch.sh has started this process, perhaps as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _is_echo() -> bool:
    """Whether another process of this node says what this one would say."""
    return _launched() and os.environ["LOCAL_RANK"] != "0"


def _as_worker(arguments: list[str] | None) -> NoReturn:
    """Under torchrun, which starts again what fails: an end on purpose is a success, and launch.sh gets its code."""
    from pipelines.training.distributed import end_with_parent, forget_exit_code, leave_with, process_group, this_world

    end_with_parent()
    forget_exit_code()

    def together() -> Any:
        with process_group(this_world()):
            return app(arguments, standalone_mode=False)

    leave_with(_exit_code(together))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # not through torch's teardown: after an error it aborts a process whose peers are gone


def _exit_code(work: Callable[[], Any]) -> int:
    try:
        with StopSignal(alone=not _launched() or os.environ["WORLD_SIZE"] == "1"):
            result: Any = work()
        return result if isinstance(result, int) else 0
    except typer.exceptions.TyperException as error:
        return _end(RecPodError.exit_code, f"error: {_usage(error)}")
    except RecPodError as error:
        return _end(RecPodError.exit_code, f"error: {error}")
    except typer.Abort:
        return _end(RecPodError.exit_code, "error: aborted")
    except RuntimeError as error:
        return _broken_off(error)
    except Interrupted as error:
        return _end(Interrupted.exit_code, f"{error}; start the same command again to go on")


def _broken_off(error: RuntimeError) -> int:
    """The code of an error that is no bug: kernels that cannot run, another process that has left on purpose.

    Raises:
        RuntimeError: any other.
    """
    from models.kernels import KernelUnavailable  # takes torch with it

    if isinstance(error, KernelUnavailable):
        return _end(RecPodError.exit_code, f"error: {error}")
    if _launched():
        from pipelines.training.distributed import exit_code_of_a_neighbour

        if (code := exit_code_of_a_neighbour()) is not None:
            return code
    raise error


def _end(code: int, line: str) -> int:
    """Say why it ends here; of several processes launch.sh says it once."""
    if _launched():
        from pipelines.training.distributed import leave_with

        leave_with(code, line)
    else:
        print(line, file=sys.stderr)
    return code


def _usage(error: typer.exceptions.TyperException) -> str:
    """A usage error as one line with the nearest valid flag or verb."""
    context = getattr(error, "ctx", None)
    if context is not None and hasattr(error, "option_name"):
        flags = [flag for parameter in context.command.params for flag in parameter.opts if flag.startswith("--")]
        return f"unknown flag '{error.option_name}'. {nearest(error.option_name, flags)}"
    message = error.format_message().removesuffix(".")
    if context is not None and message.startswith("No such command"):
        name = message.split("'")[1]
        return f"unknown verb '{name}'. {nearest(name, context.command.commands)}"
    return message
