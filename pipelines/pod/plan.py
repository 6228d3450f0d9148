"""What a session's flags and environment decide: where, with what, for how long and for how much."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.machine import ROOT
from pipelines.pod.environment import training_environment
from pipelines.pod.flags import Flags, positive
from pipelines.pod.volume import Place, choose_place, in_container

IDLE_MINUTES = 15.0  # in a pod; elsewhere the watchdog is off unless it is asked for
GRACE = 7.0  # of the ten seconds that a container has; the rest is for the kill, the ledger and notices
LAUNCH = ROOT / "entrypoints" / "launch.sh"


@dataclass(frozen=True)
class Plan:
    """Everything about a session that its flags and environment decide.

    Attributes:
        flags: what was asked for.
        environ: the supervisor's whole environment.
        contained: this is a container or pod.
        place: where files go.
        training: the environment that training sees.
        price_per_hour: of the machine.
        cap: the most that the job may cost.
        idle_seconds: how long nothing may move.
        grace: seconds from a signal to the kill.
    """

    flags: Flags
    environ: Mapping[str, str]
    contained: bool
    place: Place
    training: Mapping[str, str]
    price_per_hour: float | None
    cap: float | None
    idle_seconds: float | None
    grace: float | None

    @property
    def python(self) -> str:
        """The interpreter that trains."""
        if "--no-setup" in self.flags.switches:
            return sys.executable
        return str(Path(self.environ.get("RECPOD_VENV") or ROOT / ".venv") / "bin" / "python")

    @property
    def command(self) -> list[str]:
        """What trains: one process, or several through the launcher."""
        arguments = [*self.place.arguments, *self.flags.training]
        if self.price_per_hour is not None and self.flags.price_per_hour is None:
            arguments += ["--price-per-hour", f"{self.price_per_hour!r}"]
        if self.flags.launch and not self.flags.dry_run:
            return [str(LAUNCH), *self.flags.launch, "--", "runbook", *arguments]
        return [self.python, "-m", "pipelines", "runbook", *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        """Training's environment with what the supervisor adds."""
        data = {"RECPOD_DATA": str(self.place.data)} if self.place.data is not None else {}
        # The launcher looks for its Python where set-up would have made one: with --no-setup that is another.
        home = str(Path(self.python).parent.parent)
        launched = {"RECPOD_PYTHON": self.python, "RECPOD_VENV": home} if self.flags.launch else {}
        return {**self.training, **data, **launched, **more}


def make_plan(flags: Flags, environ: Mapping[str, str]) -> Plan:
    """Put flags and environment together.

    Raises:
        ConfigError: a value that is none, or a cap without a price.
    """
    contained = in_container(environ)
    price = flags.price_per_hour
    if price is None and environ.get("RECPOD_PRICE_PER_HOUR"):
        price = positive(environ["RECPOD_PRICE_PER_HOUR"], "RECPOD_PRICE_PER_HOUR")
    cap = flags.max_cost
    if cap is not None and price is None:
        if "--config" not in flags.values:
            what, fix = "--max-cost needs the price of an hour", "add --price-per-hour"
            raise ConfigError(what, where="guards.max_cost", fix=fix)
        cap = None  # the file may name the price, and cannot be read yet: training keeps the cap by itself
    minutes = IDLE_MINUTES if contained else 0.0
    if "--idle-minutes" in flags.values:
        minutes = positive(flags.values["--idle-minutes"], "--idle-minutes", zero=True)
    grace = positive(environ.get("RECPOD_GRACE_SECONDS") or str(GRACE), "RECPOD_GRACE_SECONDS")
    return Plan(
        flags=flags,
        environ=environ,
        contained=contained,
        place=choose_place(flags, environ, contained=contained),
        training=training_environment(environ),
        price_per_hour=price,
        cap=cap,
        idle_seconds=60 * minutes or None,
        grace=grace if contained or environ.get("RECPOD_GRACE_SECONDS") else None,
    )
