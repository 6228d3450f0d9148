"""Stopping the pod: by the provider's command line tool, its API, or a command of the user's for any other cloud."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipelines.errors import ConfigError, RecPodError
from pipelines.pod.environment import read_secret

API = "https://rest.runpod.io/v1"
TIMEOUT = 10.0
FLAG = "--stop-pod-when-done"
RUNS_ON = "the pod still runs and costs money"
_OVER = ("EXITED", "TERMINATED", "STOPPED", "STOPPING")


class StopFailed(Exception):
    """The pod could not be stopped; the message says why, without any key."""


class NotConfirmed(Exception):
    """The order to stop was taken, but the pod is not seen to stop."""


class CannotStop(RecPodError):
    """The pod cannot be stopped from here: known before anything was done, and no use trying now."""


class Refused(Exception):
    """The API says no, or nothing.

    Args:
        status: HTTP status; 0 when nobody answered.
        reason: in words.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Way:
    """One way to stop this pod.

    Attributes:
        name: for messages.
        check: raises StopFailed or Refused when it would not work.
        stop: does it, or raises.
        stopped: whether the pod is seen to stop, or Refused; None where nobody can be asked.
    """

    name: str
    check: Callable[[], object]
    stop: Callable[[], object]
    stopped: Callable[[], bool] | None = None


@dataclass(frozen=True)
class Provider:
    """How this pod can be stopped.

    Attributes:
        ways: the best first.
        pause: seconds between two attempts.
        patience: seconds in which the pod must be seen to stop.
    """

    ways: tuple[Way, ...]
    pause: float = 1.0
    patience: float = 20.0

    def check(self) -> None:
        """Ask now, before money is spent, whether one of the ways would work.

        Raises:
            CannotStop: the key is refused, the pod is not known to it, or nobody answers.
        """
        problem: Exception | None = None
        for way in self.ways:
            try:
                self._attempt(way.check)
                return
            except (StopFailed, Refused) as error:
                problem = error
        if isinstance(problem, Refused) and problem.status:
            fix = "make a key with read and write access to pods in the provider's settings"
            what = f"the provider refuses the key ({problem})"
            if problem.status == 404:
                what, fix = "the provider knows no such pod under this key", "take the key of the account that rents it"
            raise CannotStop(f"{what}; {RUNS_ON}", where="RUNPOD_API_KEY", fix=fix)
        said = f" ({problem})" if str(problem) else ""
        fix = f"check the network, or leave {FLAG} away and stop the pod by hand"
        what = f"the provider cannot be asked whether the pod can be stopped{said}"
        raise CannotStop(f"{what}; {RUNS_ON}", where=FLAG, fix=fix)

    def stop(self) -> str:
        """Stop the pod; the name of the way that worked.

        Raises:
            StopFailed: none did: the pod still runs and costs money.
            NotConfirmed: one seemed to, but the pod is not seen to stop.
        """
        problems = []
        for way in self.ways:
            try:
                self._attempt(way.stop)
            except Exception as error:  # whatever it is, the next way must be tried
                said = (
                    error if isinstance(error, (StopFailed, Refused)) else type(error).__name__
                )  # it may hold the key
                problems.append(f"{way.name}: {said}")
            else:
                self._confirm(way)
                return way.name
        raise StopFailed("; ".join(problems))

    def _confirm(self, way: Way) -> None:
        """Wait until the pod is seen to stop: a server that says yes may not have done it."""
        if way.stopped is None:
            return
        until, seen = time.monotonic() + self.patience, "it is still shown as running"
        while True:
            try:
                if way.stopped():
                    return
                seen = "it is still shown as running"
            except Refused as error:
                seen = str(error)
            if time.monotonic() + self.pause >= until:
                raise NotConfirmed(f"{way.name}: {seen} after {self.patience:g} s")
            time.sleep(self.pause)

    def _attempt(self, action: Callable[[], object], times: int = 3) -> None:
        for left in reversed(range(times)):
            try:
                action()
                return
            except Refused as error:
                final = 0 < error.status < 500 and error.status != 429
                if final or not left:
                    raise
            time.sleep(self.pause)


def find_provider(environ: Mapping[str, str]) -> Provider:
    """The ways that the environment offers.

    Raises:
        ConfigError: there is none, or the key's file cannot be read.
    """
    command, pod = environ.get("RECPOD_STOP_COMMAND"), environ.get("RUNPOD_POD_ID")
    if command:
        return Provider((Way("RECPOD_STOP_COMMAND", lambda: None, lambda: _shell(["sh", "-c", command], "it")),))
    if not pod:
        fix = "on another cloud set RECPOD_STOP_COMMAND to the command that stops this machine"
        raise ConfigError("this is no RunPod pod: RUNPOD_POD_ID is not set", where=FLAG, fix=fix)
    if not pod.replace("-", "").replace("_", "").isalnum():
        raise ConfigError("not the name of a pod", where="RUNPOD_POD_ID", fix="leave it as the provider sets it")
    ways, key, tool = [], read_secret("RUNPOD_API_KEY", environ), shutil.which("runpodctl", path=environ.get("PATH"))
    if tool:
        check, stop = [tool, "get", "pod", pod], [tool, "stop", "pod", pod]
        ways.append(Way("runpodctl", lambda: _shell(check, "runpodctl"), lambda: _shell(stop, "runpodctl")))
    if key:
        ways.append(_api((environ.get("RECPOD_RUNPOD_API") or API).rstrip("/") + f"/pods/{pod}", key))
    if not ways:
        fix = "set RUNPOD_API_KEY (or RUNPOD_API_KEY_FILE), or put runpodctl on PATH"
        raise ConfigError("nothing here can stop the pod", where=FLAG, fix=fix)
    return Provider(tuple(ways))


def _api(pod: str, key: str) -> Way:
    """The provider's API, ``pod`` being the pod's address there."""

    def stopped() -> bool:
        try:
            answer = call_api("GET", pod, key)
        except Refused as error:
            if error.status == 404:  # it is no more
                return True
            raise
        try:
            shown = json.loads(answer)
        except ValueError:
            return False
        return isinstance(shown, dict) and str(shown.get("desiredStatus")).upper() in _OVER

    name = "the provider's API"
    return Way(name, lambda: call_api("GET", pod, key), lambda: call_api("POST", f"{pod}/stop", key), stopped)


def _shell(command: list[str], name: str) -> None:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired as error:
        raise StopFailed(f"{name} did not end in 60 s") from error
    except OSError as error:
        raise StopFailed(f"{name} cannot be started ({error.strerror})") from error
    if done.returncode:  # what it printed may hold the key
        raise StopFailed(f"{name} ended with exit code {done.returncode}")


def call_api(method: str, address: str, key: str) -> bytes:
    """One call with the key; the answer, cut off at 64 KiB.

    Raises:
        Refused: any other answer than success, or none.
    """
    import http.client
    import urllib.error
    import urllib.request

    headers = {"Authorization": f"Bearer {key}", "User-Agent": "RecPod/0.1", "Accept": "application/json"}
    try:
        request = urllib.request.Request(address, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            body: bytes = answer.read(65536)
            return body
    except urllib.error.HTTPError as error:
        raise Refused(error.code, f"HTTP {error.code}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        said = reason.strerror if isinstance(reason, OSError) else None
        raise Refused(0, f"it does not answer: {said or type(reason).__name__}") from None
