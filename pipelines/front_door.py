"""From the front door's flags to a recipe: which one is meant, what lies on top of it, and what a dry run says."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pipelines.config import RunConfig
from pipelines.config_files import Layered
from pipelines.errors import ConfigError


def choose_recipe(
    *,
    quickstart: bool,
    ml1m: bool,
    ml20m: bool,
    production: bool,
    config: Path | None,
    model: str | None,
    dataset: str | None,
) -> str | Path:
    """The recipe that a set of flags means.

    ``--production`` with a model or dataset is the production recipe with another model or dataset; ``--model`` or
    ``--dataset`` without a recipe's flag trains them with the recipe ``train``; nothing at all is the quick start.

    Raises:
        ConfigError: flags that name two recipes.
    """
    named = {"--quickstart": quickstart, "--test-ml1m": ml1m, "--test-ml20m": ml20m, "--config": config is not None}
    chosen = [flag for flag, given in {**named, "--production": production}.items() if given]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} name different recipes", fix="give one of them")
    if config is not None:
        return config
    recipes = {
        "--quickstart": "quickstart",
        "--test-ml1m": "ml1m",
        "--test-ml20m": "ml20m",
        "--production": "production",
    }
    if chosen:
        return recipes[chosen[0]]
    return "train" if model or dataset else "quickstart"


def flags_to_layers(
    recipe: str | Path,
    *,
    model: str | None,
    dataset: str | None,
    engine: str | None,
    debug: bool,
    no_wandb: bool,
    max_hours: float | None,
    max_cost: float | None,
    price_per_hour: float | None,
) -> Layered:
    """The values of the front door's flags, to lie on top of the recipe."""
    layers = Layered()
    values = {
        "model.name": (model, "--model"),
        "dataset.name": (dataset, "--dataset"),
        "engine.name": (engine, "--engine"),
        "debug": (debug or None, "--debug"),
        "tracking.wandb": ("off" if no_wandb else None, "--no-wandb"),
        "guards.max_hours": (max_hours, "--max-hours"),
        "guards.max_cost": (max_cost, "--max-cost"),
        "guards.price_per_hour": (price_per_hour, "--price-per-hour"),
    }
    for key, (value, flag) in values.items():
        if value is not None:
            layers.put(tuple(key.split(".")), value, flag)
    if model or dataset:  # a folder of its own: the recipe's gate must not be passed by another model or other data
        first = None if recipe == "train" else Path(recipe).stem
        name = "-".join(part for part in (first, model, dataset) if part)
        layers.put(
            ("name",),
            "".join(c if c.isalnum() or c in "._-" else "_" for c in name).lstrip("._-"),
            "--model, --dataset",
        )
    return layers


def open_recipe(config: RunConfig, *, resume: str, force: bool, dry_run: bool, console: Console) -> int:
    """Run a recipe, or say what would run."""
    if dry_run:
        return describe_plan(config, console)
    if config.engine.name == "recbole":
        from pipelines.engines.recbole import run as run_recbole

        return run_recbole(config, resume=resume, force=force, console=console)
    from pipelines.runbook import RunChoices, run

    return run(config, RunChoices(resume=resume, force=force), console)


def own_engine(config: RunConfig) -> RunConfig:
    """The configuration, for stages that only this project's engine has.

    Raises:
        ConfigError: another engine is asked for.
    """
    if config.engine.name != "recpod":
        what = f"the engine {config.engine.name} trains and evaluates in one go"
        raise ConfigError(what, where="engine.name", fix="use `recpod run`")
    return config


def describe_plan(config: RunConfig, console: Console) -> int:
    """What a run would do, without touching data, network or GPU."""
    from pipelines.stages import dataset_spec, protocol_of

    spec, protocol = dataset_spec(config), protocol_of(config)
    model = config.model["name"] if config.engine.name == "recpod" else f"RecBole's {config.engine.model}"
    console.print(f"dry run of [bold]{config.name}[/]: nothing is fetched, trained or written")
    for stage, text in (
        ("preflight", "versions, kernels, disk, data source"),
        ("fetch", f"dataset {spec.name}"),
        ("prepare", f"sequence store, split {protocol.split}"),
        ("train", f"{model}, at most {config.training.epochs} epochs, seed {config.seed}"),
        ("evaluate", f"{protocol.name}, chosen by {config.training.select} on validation"),
        ("gate", "; ".join(gate.describe() for gate in config.gates) or "none"),
        ("report", str(config.folder / "report.html")),
    ):
        console.print(f"  {stage:10} {text}")
    console.print("\nconfiguration:")
    console.print(config.to_yaml(), markup=False)
    return 0
