"""What SkyPilot makes of a task file; run by tests with the Python that has SkyPilot. No cloud is asked.

Each line of the input is a JSON list, the arguments of `sky jobs launch`; each line of the output is the answer.
One process for all questions: importing SkyPilot takes seconds.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import sky
import yaml
from sky.client.cli import command
from sky.jobs.recovery_strategy import StrategyExecutor
from sky.utils import schemas


def launch_arguments(arguments: list[str]) -> dict[str, Any]:
    """The arguments as SkyPilot's own command line reads them."""
    launch = command.jobs.get_command(None, "launch")
    return dict(launch.make_context("launch", arguments).params)


def load(given: dict[str, Any]) -> sky.Task:
    """The task as the server would take it: unknown keys, which a client lets through, are refused."""
    schemas._allow_additional_properties = lambda: False
    (file,) = given["entrypoint"]
    config = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    task = sky.Task.from_yaml_config(
        copy.deepcopy(config), env_overrides=list(given["env"]), secrets_overrides=list(given["secret"])
    )
    if given["num_nodes"]:
        task.num_nodes = given["num_nodes"]
    task.validate_run()
    return task


async def restarts(task: sky.Task) -> tuple[str, dict[int, bool]]:
    """Name of the recovery strategy, and whether it would start a job anew that ended with each exit code."""
    nothing_runs = (sky.backends.CloudVmRayBackend(), task, 1, 0, None, set(), asyncio.Lock(), asyncio.Condition())
    executor = StrategyExecutor.make("cluster", *nothing_runs)
    return type(executor).__name__, {code: executor.should_restart_on_failure([code]) for code in (1, 2, 3, 75)}


def facts(task: sky.Task) -> dict[str, Any]:
    """What a test wants to know of a task."""
    resources = [
        {"gpus": one.accelerators, "spot": one.use_spot, "price": one.max_hourly_cost} for one in task.resources
    ]
    mounts = {
        path: {"name": storage.name, "mode": storage.mode.value, "transfers": storage.mount_cached_config.transfers}
        for path, storage in task.storage_mounts.items()
    }
    strategy, again = asyncio.run(restarts(task))
    return {
        "name": task.name,
        "nodes": task.num_nodes,
        "envs": task.envs,
        "secrets": {name: value.get_secret_value() for name, value in task.secrets.items()},
        "resources": resources,
        "mounts": mounts,
        "run": task.run,
        "strategy": strategy,
        "restarts": again,
    }


def answer(arguments: list[str]) -> dict[str, Any]:
    """The facts, or what SkyPilot has against them."""
    try:
        return facts(load(launch_arguments(arguments)))
    except click.UsageError as error:
        return {"error": error.message}
    except ValueError as error:
        return {"error": str(error)}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # SkyPilot's own lines are not answers
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
