"""The front door behind its bash: check, set up, train, and see to it that the rental ends when the work does.

Leaves with training's exit code: 0 done, 2 a mistake in one line, 3 gate missed, 75 stopped and saved.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import NoReturn

from pipelines.errors import RecPodError
from pipelines.machine import ROOT
from pipelines.pod.checks import check_names, check_packages, check_start
from pipelines.pod.child import STOPPED, Ending, supervise
from pipelines.pod.environment import read_secret, set_up_environment, withheld
from pipelines.pod.flags import Flags, parse
from pipelines.pod.heartbeat import VARIABLE, heartbeat
from pipelines.pod.notices import Notifier, check_address
from pipelines.pod.outcome import duration, tell_outcome
from pipelines.pod.plan import Plan, make_plan
from pipelines.pod.provider import FLAG, CannotStop, Provider, StopFailed, find_provider
from pipelines.pod.rental import Watch
from pipelines.pod.spend import open_ledger

SETUP = ROOT / "entrypoints" / "setup.sh"


class Stopped(Exception):
    """A signal came before there was anything to save."""


def main(arguments: Sequence[str]) -> int:
    """Run the front door's arguments; the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    notifier, provider = Notifier(None, ""), None
    try:
        stop_wanted = FLAG in arguments and "--dry-run" not in arguments
        provider = find_provider(os.environ) if stop_wanted else None
        flags = parse(arguments)
        notifier = open_notifier(flags, os.environ)
        plan = make_plan(flags, os.environ)
        if flags.dry_run:
            return dry_run(plan)
        return run(plan, notifier, provider)
    except RecPodError as error:
        print(f"error: {error}", file=sys.stderr)
        notifier.send(f"did not start: {error}")
        # A person at a terminal is about to try again.
        if provider is not None and not isinstance(error, CannotStop) and not sys.stdin.isatty():
            stop_pod(provider, notifier)
        notifier.flush(5)
        return error.exit_code
    except (Stopped, KeyboardInterrupt):
        print("stopped; start the same command again to go on", file=sys.stderr)
        return STOPPED


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped


def open_notifier(flags: Flags, environ: Mapping[str, str]) -> Notifier:
    """Who tells people, from ``--webhook`` or the secret RECPOD_WEBHOOK.

    Raises:
        ConfigError: no web address.
    """
    address = flags.values.get("--webhook") or read_secret("RECPOD_WEBHOOK", environ)
    if address is not None:
        check_address(address)
    return Notifier(address, f"RecPod on {environ.get('RUNPOD_POD_ID') or socket.gethostname()}")


def dry_run(plan: Plan) -> int:
    """Say what the supervisor would do, and let training say the rest. Nothing is asked of any server."""
    check_names(plan.flags)
    if plan.flags.stop_pod:
        ways = ", else ".join(way.name for way in find_provider(plan.environ).ways)
        print(f"pod: stopped at the end through {ways}", file=sys.stderr)
    if plan.flags.stop_pod or plan.contained:
        idle = f"after {plan.idle_seconds / 60:g} idle minutes" if plan.idle_seconds else "never for idleness"
        print(f"pod: the run ends {idle}; runs go to {plan.place.runs.absolute()}", file=sys.stderr)
        print(f"pod: not passed on to training: {', '.join(withheld(plan.environ)) or 'nothing'}", file=sys.stderr)
    if "--no-setup" in plan.flags.switches:
        check_packages()
    else:
        ending = supervise([str(SETUP)], set_up_environment(plan.environ), look=lambda: None, whole_group=True)
        if ending.code:
            return ending.code
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    sys.stderr.flush()
    return os.execve(plan.command[0], plan.command, plan.environment())


def run(plan: Plan, notifier: Notifier, provider: Provider | None) -> int:
    """Check, set up, train, finish; the exit code.

    Raises:
        RecPodError: a check says no; nothing was installed or fetched.
    """
    flags, began = plan.flags, time.time()
    warnings = check_start(flags, plan.environ, plan.place, contained=plan.contained)
    if provider is not None:
        provider.check()
    ledger = None
    if plan.contained or plan.price_per_hour is not None:
        ledger = open_ledger(
            plan.place.runs,
            flags.job,
            price_per_hour=plan.price_per_hour,
            contained=plan.contained,
            anew=flags.values.get("--resume") == "never",
        )
        ledger.check_cap(plan.cap)
    for warning in warnings:  # now that nothing is refused: a mistake stands alone
        print(f"warning: {warning}", file=sys.stderr)
    if plan.place.arguments:
        print(f"runs go to {plan.place.runs}", file=sys.stderr)
    with heartbeat() as beat:
        watch = Watch(flags.job, plan.place.runs, beat, notifier, ledger, plan.cap, plan.idle_seconds)
        ending = stages(plan, watch, notifier)
        watch.save()
    return finish(plan, watch, ending, notifier, provider, began)


def stages(plan: Plan, watch: Watch, notifier: Notifier) -> Ending:
    """Set-up where it is wanted, then training, each watched."""
    tick = min(1.0, watch.look_every)
    if "--no-setup" not in plan.flags.switches:
        environment = set_up_environment(plan.environ)
        ending = supervise(
            [str(SETUP)],
            environment,
            look=watch.look,
            begun=watch.begin,
            tick=tick,
            grace=plan.grace,
            whole_group=True,
        )
        watch.end()
        if ending.code or ending.asked_by or ending.stopped_for:
            return ending
    more = {VARIABLE: str(watch.heartbeat)}
    if watch.ledger is not None:
        more["RECPOD_RENT_SECONDS"] = f"{watch.ledger.seconds():.1f}"

    def begun(pid: int) -> None:
        watch.begin(pid)
        price = f", {plan.price_per_hour:g} an hour" if plan.price_per_hour is not None else ""
        cap = f", cap {plan.cap:g}" if plan.cap is not None else ""
        notifier.send(f"'{watch.job}' starts{price}{cap}")
        notifier.open()

    ending = supervise(
        plan.command, plan.environment(**more), look=watch.look, begun=begun, tick=tick, grace=plan.grace
    )
    watch.end()
    return ending


def finish(
    plan: Plan, watch: Watch, ending: Ending, notifier: Notifier, provider: Provider | None, began: float
) -> int:
    """Say how it ended and stop the pod where that is wanted; the exit code."""
    code = ending.code
    if ending.stopped_for is not None:
        code = code if code in (0, 3) else STOPPED
        print(f"stopped by the supervisor: {ending.stopped_for}", file=sys.stderr)
        notifier.send(f"'{watch.job}' was stopped: {ending.stopped_for}")
    elif ending.asked_by is not None and ending.killed:
        text = f"the run did not end within {plan.grace:g} s of {ending.asked_by} and was killed"
        print(f"warning: {text}; the newest checkpoint is what is left", file=sys.stderr)
    elif code > 128 and ending.asked_by is None:
        name = signal.Signals(code - 128).name
        reason = " (most often: out of memory)" if name == "SIGKILL" else ""
        print(f"error: the run was ended by {name}{reason}; start it again to go on", file=sys.stderr)
    cost = watch.ledger.cost() if watch.ledger is not None else None
    spent = f", cost so far {cost:.2f}" if cost is not None else ""
    outcome = tell_outcome(code, plan.place.runs, began)
    notifier.send(f"'{watch.job}' {outcome} ({duration(time.time() - began)}{spent})")
    # Who stops a run from outside takes the machine away himself, or wants it for something else.
    interrupted = ending.asked_by is not None or (code == STOPPED and ending.stopped_for is None)
    if provider is not None and not interrupted:
        stop_pod(provider, notifier)
    notifier.flush(1.5 if ending.asked_by else 6)
    return code


def stop_pod(provider: Provider, notifier: Notifier) -> None:
    """Stop the pod, or say plainly that it still runs. Notices go first: afterwards nobody may be left to send them."""
    notifier.send("stopping the pod")
    notifier.flush(6)
    try:
        name = provider.stop()
    except StopFailed as error:
        text = f"THE POD COULD NOT BE STOPPED: IT STILL RUNS AND COSTS MONEY. Stop it by hand ({error})"
        print(f"error: {text}", file=sys.stderr)
        notifier.send(text)
    else:
        print(f"the pod is being stopped through {name}", file=sys.stderr)
