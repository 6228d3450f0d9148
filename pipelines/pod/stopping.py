"""At the end: stop the pod, or say plainly that it still runs. Nothing that goes wrong here goes by unsaid."""

from __future__ import annotations

import contextlib
import os
import sys
import time

from pipelines.pod.heartbeat import ages
from pipelines.pod.notices import Notifier, say
from pipelines.pod.provider import RUNS_ON, NotConfirmed, Provider, StopFailed


def at_terminal() -> bool:
    """Whether a person sits here, who is about to try again."""
    try:
        return sys.stdin.isatty()
    except (AttributeError, ValueError):  # closed
        return False


def other_sessions() -> list[int]:
    """Process ids of the other supervisors that run on this machine."""
    with contextlib.suppress(OSError):  # a folder that cannot be read says nothing: the pod is to be stopped
        return sorted(ages(time.time()).keys() - {os.getpid()})
    return []


def leave(reason: str, notifier: Notifier) -> None:
    """Say that the pod, which was to be stopped at the end, is not."""
    say(f"{RUNS_ON}: {reason}")
    notifier.send(f"{RUNS_ON}: {reason}")


def stop_pod(provider: Provider, notifier: Notifier) -> None:
    """Stop the pod, unless another session works on it. Notices go first: afterwards nobody may be there for it."""
    if other_sessions():
        leave("another session still uses this pod; it is left running", notifier)
        return
    notifier.send("stopping the pod")
    notifier.flush(6)
    try:
        name = provider.stop()
    except NotConfirmed as doubt:
        text = f"THE POD MAY STILL RUN AND COST MONEY: the order to stop was taken, but {doubt}. Look at the console"
    except Exception as error:
        said = str(error) if isinstance(error, StopFailed) else type(error).__name__  # another may hold the key
        text = f"THE POD COULD NOT BE STOPPED: IT STILL RUNS AND COSTS MONEY. Stop it by hand ({said})"
    else:
        say(f"the pod is being stopped through {name}")
        return
    say(f"error: {text}")
    notifier.send(text)
