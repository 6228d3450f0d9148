"""Lines on the screen, short messages to a Discord or Slack webhook. No failure stops anything; no address is shown."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from urllib.parse import urlsplit

from pipelines.errors import ConfigError

TIMEOUT = 5.0
LONGEST = 1900  # Discord refuses more than 2000 characters
_SLACK, _DISCORD = ("hooks.slack.com", "hooks.slack-gov.com"), ("discord.com", "discordapp.com")


def say(text: str) -> None:
    """A line to who watches here. A terminal or pipe that is gone must not end what is left to do."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # hung up, or closed
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # for as long as this process lives


def payload(address: str, text: str) -> dict[str, str]:
    """The message as the receiver wants it; one that is not known gets both forms."""
    host = urlsplit(address).hostname or ""
    if host in _SLACK:
        return {"text": text}
    if host.endswith(_DISCORD):
        return {"content": text}
    return {"content": text, "text": text}


def check_address(address: str) -> None:
    """Refuse what is no web address, without repeating it.

    Raises:
        ConfigError: not http(s)://host/...
    """
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or not address.isprintable() or " " in address:
        raise ConfigError("not a web address (it is not shown)", where="--webhook", fix="give https://HOST/PATH")


class Notifier:
    """Sends messages one after the other from a thread of its own, so that the network never delays a signal.

    Args:
        address: where to; None says nothing to anybody.
        sender: who speaks: the first words of every message.
    """

    def __init__(self, address: str | None, sender: str) -> None:
        self.address, self.sender = address, sender
        self._waiting: queue.Queue[str] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._failed = False

    def send(self, text: str) -> None:
        """Queue a message; it leaves once :meth:`open` or :meth:`flush` has been called."""
        if self.address is not None:
            self._waiting.put(f"{self.sender}: {text}"[:LONGEST])

    def open(self) -> None:
        """Begin to send: after the child is there, because a process with threads had better not fork."""
        if self.address is not None and self._thread is None:
            thread = threading.Thread(target=self._work, args=(self.address,), daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the machine has no room for one more
                say("warning: no notices can be sent (no thread can be started); the run goes on")
                self.address = None
                return
            self._thread = thread

    def flush(self, seconds: float) -> None:
        """Wait until everything is sent, ``seconds`` at most."""
        self.open()
        until = time.monotonic() + seconds
        while self._thread is not None and self._waiting.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.02)

    def _work(self, address: str) -> None:
        while True:
            text = self._waiting.get()
            problem = post(address, payload(address, text))
            if problem is not None and not self._failed:
                self._failed = True
                say(f"warning: a notice could not be sent ({problem}); the run goes on")
            self._waiting.task_done()


def post(address: str, message: dict[str, str], timeout: float = TIMEOUT) -> str | None:
    """Send JSON; why it failed, or None. The address is in no answer."""
    import http.client
    import json
    import urllib.error
    import urllib.request

    # Discord's front refuses Python's own user agent.
    headers = {"Content-Type": "application/json", "User-Agent": "RecPod/0.1"}
    try:
        request = urllib.request.Request(address, json.dumps(message).encode(), headers)
        with urllib.request.urlopen(request, timeout=timeout):
            return None
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except urllib.error.URLError as error:
        return _reason(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _reason(error)


def _reason(error: object) -> str:
    """What went wrong in the operating system's words; other exceptions may quote the address."""
    said = error.strerror if isinstance(error, OSError) else None
    return said or type(error).__name__
