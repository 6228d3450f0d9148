"""The front door behind its bash: check, set up, train, and see to it that the rental ends when the work does.

Leaves with training's exit code: 0 done, 2 a mistake in one line, 3 gate missed, 75 stopped and saved.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import NoReturn

from pipelines.errors import RecPodError
from pipelines.machine import ROOT
from pipelines.pod.checks import check_names, check_packages, check_start
from pipelines.pod.child import STOPPED, Ending, supervise
from pipelines.pod.environment import read_secret, set_up_environment, withheld
from pipelines.pod.flags import Flags, parse, wants_stop
from pipelines.pod.heartbeat import VARIABLE, heartbeat
from pipelines.pod.notices import Notifier, check_address, say
from pipelines.pod.outcome import duration, tell_outcome
from pipelines.pod.plan import Plan, make_plan
from pipelines.pod.provider import RUNS_ON, CannotStop, Provider, find_provider
from pipelines.pod.rental import Watch
from pipelines.pod.spend import Ledger, open_ledger
from pipelines.pod.stopping import at_terminal, leave, stop_pod

SETUP = ROOT / "entrypoints" / "setup.sh"


class Stopped(Exception):
    """A signal came before there was anything to save.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def main(arguments: Sequence[str]) -> int:
    """Run the front door's arguments; the exit code. Whatever goes wrong, a pod that is to be stopped is stopped."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    stop_wanted = wants_stop(arguments)
    notifier, provider = Notifier(None, ""), None
    try:
        provider = find_provider(os.environ) if stop_wanted else None
        flags = parse(arguments)
        notifier = open_notifier(flags, os.environ)
        plan = make_plan(flags, os.environ)
        if flags.dry_run:
            return dry_run(plan)
        return run(plan, notifier, provider)
    except RecPodError as error:
        return refuse(error, notifier, provider, stop_wanted)
    except (Stopped, KeyboardInterrupt) as stopped:
        _no_more_signals()
        say("stopped; start the same command again to go on")
        if provider is not None and isinstance(stopped, Stopped) and stopped.number == signal.SIGHUP:
            stop_pod(provider, notifier)
        elif stop_wanted:
            leave("a signal from outside was the end", notifier)
        notifier.flush(1.5)
        return STOPPED
    except Exception as error:
        _no_more_signals()
        say(f"{traceback.format_exc()}error: the supervisor itself failed; start the same command again to go on")
        notifier.send(f"FAILED: the supervisor itself ({type(error).__name__}: {error})")
        if provider is not None:
            stop_pod(provider, notifier)
        elif stop_wanted:
            leave("the supervisor failed before it knew how to stop it", notifier)
        notifier.flush(5)
        return 1


def refuse(error: RecPodError, notifier: Notifier, provider: Provider | None, stop_wanted: bool) -> int:
    """One line of what is wrong, before anything was done; the exit code."""
    _no_more_signals()
    line = f"{error}"
    # A person at a terminal is about to try again.
    stays = provider is None or isinstance(error, CannotStop) or at_terminal()
    if stop_wanted and stays and RUNS_ON not in line:
        line += f"{'' if line.endswith(('.', '?')) else '.'} {RUNS_ON.capitalize()}."
    say(f"error: {line}")
    notifier.send(f"did not start: {line}")
    if provider is not None and not stays:
        stop_pod(provider, notifier)
    notifier.flush(5)
    return error.exit_code


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


def _no_more_signals() -> None:
    """From here on the end is dealt with, and nothing may cut it short but a kill."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


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
    began = time.time()
    with heartbeat() as beat:  # from now on, so that a second session in this pod sees this one while it checks
        warnings = check_start(plan.flags, plan.environ, plan.place, contained=plan.contained)
        if provider is not None:
            provider.check()
        ledger = begin_ledger(plan)
        for warning in warnings:  # now that nothing is refused: a mistake stands alone
            say(f"warning: {warning}")
        if plan.place.arguments:
            say(f"runs go to {plan.place.runs}")
        watch = Watch(plan.flags.job, beat, notifier, ledger, plan.cap, plan.idle_seconds)
        ending = stages(plan, watch, notifier)
        watch.save()
    return finish(plan, watch, ending, notifier, provider, began)


def begin_ledger(plan: Plan) -> Ledger | None:
    """What counts the money, where something is rented. Of several nodes the first counts: the price is that of all.

    Raises:
        RecPodError: the cap is reached, or the ledger's file will not do.
    """
    if not plan.flags.first_node or not (plan.contained or plan.price_per_hour is not None):
        return None
    ledger = open_ledger(plan.place.runs, plan.flags.job, price_per_hour=plan.price_per_hour, contained=plan.contained)
    ledger.check_cap(plan.cap)
    return ledger


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
    try:
        say_ending(plan, watch, ending, notifier, code)
        cost = watch.ledger.cost() if watch.ledger is not None else None
        spent = f", cost so far {cost:.2f}" if cost is not None else ""
        outcome = tell_outcome(code, plan.place.runs, began)
        notifier.send(f"'{watch.job}' {outcome} ({duration(time.time() - began)}{spent})")
    except Exception:  # words: the pod's stop must not wait for them
        say(f"{traceback.format_exc()}warning: how it ended cannot be told in full")
    if provider is not None:
        reason = why_left(watch, ending, code)
        if reason is None:
            stop_pod(provider, notifier)
        else:
            leave(reason, notifier)
    notifier.flush(1.5 if ending.asked_by else 6)
    return code


def say_ending(plan: Plan, watch: Watch, ending: Ending, notifier: Notifier, code: int) -> None:
    """Say what training cannot say of its own end."""
    if ending.stopped_for is not None:
        say(f"stopped by the supervisor: {ending.stopped_for}")
        notifier.send(f"'{watch.job}' was stopped: {ending.stopped_for}")
    elif ending.asked_by is not None and ending.killed:
        text = f"the run did not end within {plan.grace:g} s of {ending.asked_by} and was killed"
        say(f"warning: {text}; the newest checkpoint is what is left")
    elif code > 128 and ending.asked_by is None:
        try:
            name = signal.Signals(code - 128).name
        except ValueError:  # a program may leave with any code
            name = f"exit code {code}"
        reason = " (most often: out of memory)" if name == "SIGKILL" else ""
        say(f"error: the run was ended by {name}{reason}; start it again to go on")


def why_left(watch: Watch, ending: Ending, code: int) -> str | None:
    """Why the pod is not stopped after all, or None."""
    # Who sends SIGTERM or SIGINT takes the machine away himself, or wants it for something else. SIGHUP is nobody's
    # wish: the connection was lost. And where a run had to be ended from here, it was not the signal that ended it.
    if ending.asked_by in ("SIGTERM", "SIGINT") and ending.stopped_for is None:
        return f"{ending.asked_by} from outside was the end"
    # As with a mistake found here: a person at a terminal is about to try again.
    if code == RecPodError.exit_code and not watch.trained and at_terminal():
        return "a mistake before training began, at a terminal"
    return None
