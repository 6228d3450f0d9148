"""What a user can do wrong, as one clear line: what is wrong, where, what to do. The CLI prints it and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RecPodError(Exception):
    """A mistake of the user's or of the machine's, not a bug: one line and exit code 2, never a traceback.

    Args:
        what: what is wrong, a sentence without its full stop.
        where: file:line, key path or flag.
        fix: what to do about it, a sentence without its full stop.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        line = f"{where}: {what}" if where else what
        end = "" if fix and fix.endswith("?") else "."
        super().__init__(" ".join((f"{line}. {fix}{end}" if fix else line).split()))


class ConfigError(RecPodError):
    """A flag, key or value that the configuration does not take."""


class DataError(RecPodError):
    """A data file that is missing, malformed or not what it claims to be."""


class FetchError(DataError):
    """A download that failed or brought something else."""


class MachineError(RecPodError):
    """A GPU, driver, package, disk or memory that is not there or does not do."""


class RunError(RecPodError):
    """A run folder or checkpoint that cannot be used: locked, corrupt, of another configuration."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` with the closest valid name, else the list of valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(names) or 'none'}"
