"""The command line: every stage as a verb, and the runbook's front door. Mistakes are one line and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
Sets = Annotated[list[str] | None, typer.Option("--set", help="key.path=value; may be given several times.")]


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _load(recipe: str | Path, sets: list[str] | None, layers: Layered | None = None) -> RunConfig:
    """The configuration of a recipe's name or file; a file in RecBole's keys is translated first."""
    from pipelines.compat.recbole import is_recbole_config, translate
    from pipelines.config import load_config

    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml") or not is_recbole_config(path):
        return load_config(recipe, sets or [], layers)
    translated, notes = translate(path)
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
    resume: Annotated[str, typer.Option(help="auto, never, or the path of a checkpoint.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Run although the recipe before has not passed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and run nothing.")] = False,
    sets: Sets = None,
) -> int:
    """Run a recipe from preflight to report."""
    from pipelines import front_door

    config = _load(recipe, sets)
    return front_door.open_recipe(config, resume=resume, force=force, dry_run=dry_run, console=_console())


@app.command()
def preflight(
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
    dataset: Annotated[str, typer.Option(help="Dataset whose source is asked for.")] = "ml-100k",
) -> int:
    """Check versions, kernels, GPU, disk and data source before money is spent."""
    from pipelines.preflight import PreflightOptions, print_preflight

    return print_preflight(PreflightOptions(dataset=dataset), _console(), as_json=as_json)


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
    from pipelines import stages

    prepared = stages.prepare(_load(recipe, sets))
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
    from pipelines.runbook import RunChoices, train_only

    train_only(_load(recipe, sets), RunChoices(resume=resume, preflight=False), _console())
    return 0


@app.command()
def evaluate(recipe: Recipe, sets: Sets = None) -> int:
    """Evaluate the best checkpoint of a trained recipe and apply its gate."""
    from pipelines.runbook import evaluate_only

    return evaluate_only(_load(recipe, sets), _console())


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
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: list[str] | None) -> int:
    try:
        with StopSignal():
            result: Any = app(arguments, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except typer.exceptions.TyperException as error:
        return _complain(_usage(error))
    except RecPodError as error:
        return _complain(str(error))
    except typer.Abort:
        return _complain("aborted")
    except RuntimeError as error:
        from models.kernels import KernelUnavailable  # takes torch with it

        if isinstance(error, KernelUnavailable):
            return _complain(str(error))
        raise
    except Interrupted as error:
        print(f"{error}; start the same command again to go on", file=sys.stderr)
        return Interrupted.exit_code


def _complain(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return RecPodError.exit_code


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
