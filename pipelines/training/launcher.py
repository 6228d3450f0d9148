"""What entrypoints/launch.sh runs: torchrun, with exit codes that mean something and signals that reach every process.

torchrun ends with 0 or 1, starts everything again that fails, waits five minutes for nodes that have left, and prints
pages. Here its workers leave on purpose with success and write code and reason to a file (RECPOD_EXIT_CODE_FILE), a
signal is passed on once, and this process gives the reason and leaves with the code. Standard library only: torch is
torchrun's to load.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pipelines.errors import ConfigError, MachineError, RecPodError, nearest
from pipelines.machine import gpus, usable_cores

STOPPED = 75
FLAGS = ("--processes", "--nodes", "--node-rank", "--rendezvous", "--max-restarts")
_STRAGGLERS = 20.0  # seconds that other processes and nodes have to leave once the first has left on purpose


class _Flags(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _, unknown, flags = message.partition("unrecognized arguments: ")
        if unknown:
            flag = flags.split()[0].partition("=")[0]
            raise ConfigError(f"unknown flag '{flag}'", where="launch.sh", fix=nearest(flag, FLAGS))
        raise ConfigError(message.removeprefix("argument "), where="launch.sh", fix="see entrypoints/launch.sh --help")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The launcher's flags; what follows them (``command``) is for ``python -m pipelines``.

    Raises:
        ConfigError: a flag or value that is none.
    """
    parser = _Flags(prog="launch.sh", add_help=False, allow_abbrev=False)
    parser.add_argument("--processes", default="auto")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--rendezvous", default=None)
    parser.add_argument("--max-restarts", type=int, default=3)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not options.command or options.command[0].startswith("-"):
        what = f"unknown flag '{options.command[0]}'" if options.command else "nothing to run"
        fix = nearest(options.command[0], FLAGS) if options.command else "add -- and a verb, such as -- run quickstart"
        raise ConfigError(what, where="launch.sh", fix=fix)
    options.processes = _processes(options.processes)
    for name, least in (("nodes", 1), ("node_rank", 0), ("max_restarts", 0)):
        if getattr(options, name) < least:
            raise ConfigError(f"{getattr(options, name)} is less than {least}", where=f"--{name.replace('_', '-')}")
    if options.node_rank >= options.nodes:
        what = f"node {options.node_rank} of {options.nodes}"
        raise ConfigError(what, where="--node-rank", fix=f"ranks are 0 to {options.nodes - 1}; --nodes says how many")
    if options.nodes > 1 and options.rendezvous is None:
        raise ConfigError(
            "several nodes need a place to meet", where="--nodes", fix="add --rendezvous HOST:PORT, HOST being node 0"
        )
    return options


def _processes(text: str) -> int:
    if text == "auto":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        here = len(gpus()) if visible is None else len([name for name in visible.split(",") if name.strip()])
        return max(1, here)
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(
            f"'{text}' is no number of processes", where="--processes", fix="1 or more, or auto: one a GPU"
        )
    return int(text)


def torchrun_arguments(options: argparse.Namespace) -> list[str]:
    """Torchrun's own flags for ``options``.

    Raises:
        MachineError: the meeting place has no address here.
    """
    flags = [f"--nnodes={options.nodes}", f"--nproc-per-node={options.processes}"]
    flags += [f"--max-restarts={options.max_restarts}", "--rdzv-backend=c10d", "--rdzv-id=recpod"]
    if options.nodes == 1:  # by number: in a container the host's own name may lead nowhere
        return [*flags, "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    host, _, port = options.rendezvous.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"'{options.rendezvous}' is not HOST:PORT", where="--rendezvous")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, int(port)))  # sends nothing; tells by which address this node reaches the place
            own = probe.getsockname()[0]
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MachineError(f"'{host}' cannot be reached ({reason})", where="--rendezvous") from error
    conf = f"--rdzv-conf=is_host={int(options.node_rank == 0)}"
    return [*flags, f"--rdzv-endpoint={host}:{port}", conf, f"--local-addr={own}"]


def environment(options: argparse.Namespace, code_file: Path) -> dict[str, str]:
    """What the workers find in their environment; a variable that is set stays as it is."""
    threads = max(1, usable_cores() // options.processes)
    defaults = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "LOGLEVEL": "ERROR"}
    node = {"RECPOD_NODE_RANK": str(options.node_rank)} if options.nodes > 1 else {}
    return {
        **defaults,
        **os.environ,
        **node,
        # A store a round: torchrun's shared one keeps the keys of workers that are gone.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "RECPOD_EXIT_CODE_FILE": str(code_file),
        "RECPOD_LAUNCH": f"{time.time_ns()}-{os.getpid()}",
        "RECPOD_LAUNCHED": f"{time.time():.3f}",
    }


class Launch:
    """torchrun as a child: watched, stopped on a signal, outlived.

    Args:
        command: torchrun's command line.
        variables: its environment.
        code_file: where its workers put the code they leave with.
    """

    def __init__(self, command: Sequence[str], variables: dict[str, str], code_file: Path) -> None:
        self.command, self.variables, self.code_file = command, variables, code_file
        self.stopped = False
        self.agent: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """The workers' code; 75 when a signal ended them before they had one; else torchrun's."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup stays in force
                signal.signal(number, self._stop)
        # In a session of its own: from a terminal, a Ctrl-C would reach it a second time.
        self.agent = subprocess.Popen(self.command, env=self.variables, start_new_session=True)
        if self.stopped:  # a signal came before there was anybody to pass it on to
            self.agent.terminate()
        code, left = self._wait(), self._code()
        if left is None:
            return STOPPED if self.stopped else code
        if line := self.code_file.read_text(encoding="utf-8").partition("\n")[2].strip():
            print(line, file=sys.stderr)
        return left

    def _wait(self) -> int:
        assert self.agent is not None
        leave_by = float("inf")
        while (code := self.agent.poll()) is None:
            if self._code() is not None:
                leave_by = min(leave_by, time.monotonic() + _STRAGGLERS)
            if time.monotonic() > leave_by:
                self.agent.terminate()
                leave_by = float("inf")
            time.sleep(0.05)
        return code

    def _code(self) -> int | None:
        return int(self.code_file.read_text(encoding="utf-8").split()[0]) if self.code_file.exists() else None

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self.stopped and self.agent is not None:
            self.agent.terminate()
        self.stopped = True


def main(arguments: Sequence[str]) -> int:
    """Launch, wait, and give the code to leave with."""
    try:
        options = parse(arguments)
        flags = torchrun_arguments(options)
    except RecPodError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    with tempfile.TemporaryDirectory(prefix="recpod-") as folder:
        code_file = Path(folder) / "exit-code"
        agent = [sys.executable, "-m", "pipelines.training.elastic_agent"]
        command = [*agent, *flags, "--module", "pipelines", *options.command]
        return Launch(command, environment(options, code_file), code_file).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
