"""What dstack makes of a configuration file; run by tests with the Python that has dstack. No server is asked.

Each line of the input is a JSON list, the arguments of `dstack apply`; each line of the output is the answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from dstack._internal.cli.services.configurators import load_apply_configuration
from dstack._internal.cli.services.configurators.run import TaskConfigurator
from dstack._internal.core.errors import ConfigurationError
from dstack._internal.core.models.configurations import TaskConfiguration
from dstack._internal.core.models.runs import JobTerminationReason
from dstack._internal.core.services.profiles import get_retry


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in an exception."""

    def error(self, message: str) -> None:
        raise ValueError(message)


def load(arguments: list[str]) -> Any:
    """The configuration as dstack's command line would send it, the arguments applied."""
    parser = Parser()
    parser.add_argument("-f", dest="file")
    TaskConfigurator.register_args(parser)
    given = parser.parse_args(arguments)
    with contextlib.chdir(Path(given.file).parent):  # dstack takes no file above or beside the working folder
        _, configuration = load_apply_configuration(Path(given.file).name)
    if isinstance(configuration, TaskConfiguration):
        configurator = object.__new__(TaskConfigurator)  # its own __init__ wants a server
        configurator.apply_commands_args(configuration, given)
        configurator.apply_args(configuration, given)
    return configuration


def facts(configuration: Any) -> dict[str, Any]:
    """What a test wants to know of a configuration."""
    answer = json.loads(configuration.model_dump_json(exclude={"env"}))
    if isinstance(configuration, TaskConfiguration):
        retry = get_retry(configuration)
        events = {reason.value: reason.to_retry_event() for reason in JobTerminationReason}
        answer["env"] = configuration.env.as_dict()
        answer["restarts"] = {reason: event in retry.on_events for reason, event in events.items()}
    return answer


def answer(arguments: list[str]) -> dict[str, Any]:
    """The facts, or what dstack has against them."""
    try:
        return facts(load(arguments))
    except (ConfigurationError, ValueError) as error:
        return {"error": str(error)}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # dstack's own lines are not answers
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
