"""The plan's own validation command, ``python -m pipelines.compat.ss4rec_ml1m [--config F] [--debug] [--skip-deps]``.

It is the front door's ``--test-ml1m``. ``--skip-deps`` skipped an installation that this command never does.
"""

from __future__ import annotations

import sys

from pipelines.cli import main


def arguments(given: list[str]) -> list[str]:
    """The plan's flags as the runbook's."""
    rest = [flag for flag in given if flag != "--skip-deps"]
    chosen = any(flag == "--config" or flag.startswith("--config=") for flag in rest)
    return ["runbook", *([] if chosen else ["--test-ml1m"]), *rest]


if __name__ == "__main__":
    main(arguments(sys.argv[1:]))
