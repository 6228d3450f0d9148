"""More than one process: who this one is, what the first one does for all, and how all hear the same answer.

Started by torchrun (entrypoints/launch.sh), every process runs the whole program; where one alone may act, or where an
error may meet one alone, they go through :class:`World`. So a mistake, a signal or a full disk that one process meets
is raised in all of them, and nobody waits for one that has left. A process alone passes straight through. torch only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.batch import SequenceBatch
from models.tasks import LossOutput
from pipelines.errors import MachineError, RecPodError
from pipelines.training.signals import Interrupted, current_stop

T = TypeVar("T")

_STEP = timedelta(minutes=10)  # a process that is silent so long in the middle of a step is gone
_ALONE = timedelta(days=1)  # what the first one does alone, fetching above all, takes as long as it takes
_PR_SET_PDEATHSIG, _SIOCGIFADDR = 1, 0x8915  # of Linux

_control: dist.ProcessGroup | None = None  # over the CPU, with the patience for what one does alone


@dataclass(frozen=True)
class World:
    """This process among all that train together.

    Attributes:
        rank: its number over all nodes, from 0.
        size: how many there are.
        local_rank: its number on this node.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes: checkpoints, events, reports."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The processes over which gradients are averaged; None for all."""
        return None

    def on_first(self, work: Callable[[], T]) -> T:
        """What ``work`` gives in the first process; the others wait for it and get the same.

        Raises:
            RecPodError: in all processes, when ``work`` raised it in the first. So with Interrupted.
        """
        if self.size == 1:
            return work()
        outcome = _attempt(work) if self.first else None
        box: list[Any] = [outcome.sendable() if outcome else None]
        dist.broadcast_object_list(box, src=0, group=_control)
        return self._result(box, own=outcome).value  # type: ignore[return-value]

    def agree(self, work: Callable[[], T]) -> T:
        """What ``work`` gives in this process, when it has succeeded in all.

        Raises:
            RecPodError: in all processes, when any of them raised it. So with Interrupted, also for a signal that came
                while one waited for the others.
        """
        if self.size == 1:
            return work()
        outcome = _attempt(work)
        if not outcome.failed and current_stop().requested:
            outcome = _Outcome(error=Interrupted("stopped on request"), interrupted=True, text="stopped on request")
        told: _Outcome[Any] = _Outcome(failed=outcome.failed, interrupted=outcome.interrupted, text=outcome.text)
        self._result(self.gather(told), own=outcome)
        return outcome.value  # type: ignore[return-value]

    def in_turn(self, work: Callable[[], T]) -> T:
        """``work`` in the first process, then in the first of each other node, whose disk may be another, then in all.

        What the first of a node makes, the rest of that node find done.
        """
        value: T | None = None
        for turn in (self.first, not self.first and self.local_rank == 0, self.local_rank > 0):
            done = self.agree(work if turn else lambda: None)
            value = done if turn else value
        return value  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """The value of every process, in the order of their ranks; any value that can be pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=_control)
        return values

    def add_up(self, total: Tensor, *numbers: float) -> tuple[Tensor, list[float]]:
        """Sums over all processes: of ``total``, a float64 scalar that stays on its device, and of plain numbers.

        One message on a CPU. On a GPU ``total`` goes by itself, and nothing waits for the GPU.
        """
        if self.size == 1:
            return total, list(numbers)
        plain = torch.tensor(numbers, dtype=torch.float64)
        if total.device.type == "cpu":
            together = torch.cat([total.reshape(1), plain])
            dist.all_reduce(together)
            return together[0], together[1:].tolist()
        dist.all_reduce(total)
        dist.all_reduce(plain)
        return total, plain.tolist()

    def _result(self, outcomes: list[_Outcome[Any]], own: _Outcome[Any] | None) -> _Outcome[Any]:
        """The first outcome, or the error that all raise: a mistake goes before an interruption, then by rank."""
        failed = sorted((o for o in outcomes if o.failed), key=lambda o: o.interrupted)  # keeps the order of ranks
        if not failed:
            return outcomes[0]
        chosen = failed[0]
        if own is not None and own.error is not None and own.text == chosen.text:  # the very one, with its trace
            raise own.error
        raise Interrupted(chosen.text) if chosen.interrupted else RecPodError(chosen.text)


@dataclass
class _Outcome(Generic[T]):
    """How an attempt ended: with a value, or with an error of which only the text can be sent."""

    value: T | None = None
    error: BaseException | None = None
    failed: bool = False
    interrupted: bool = False
    text: str = ""

    def __post_init__(self) -> None:
        self.failed = self.failed or self.error is not None

    def sendable(self) -> _Outcome[T]:
        return _Outcome(self.value, None, self.failed, self.interrupted, self.text)


def _attempt(work: Callable[[], T]) -> _Outcome[T]:
    """Do ``work``; what is neither a mistake nor a stop is a bug, and ends this process as bugs do."""
    try:
        with current_stop().at_once():
            return _Outcome(work())
    except RecPodError as error:
        return _Outcome(error=error, text=str(error))
    except Interrupted as error:
        return _Outcome(error=error, interrupted=True, text=str(error))


def this_world() -> World:
    """This process' place, as torchrun and launch.sh say it; alone without them.

    torchrun orders nodes by their addresses. The user said which one is first, so that results lie where they look.

    Raises:
        MachineError: nodes with different numbers of processes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return World()
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    node = os.environ.get("RECPOD_NODE_RANK")
    if node is not None:
        each, nodes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
        if each * nodes != size:
            raise MachineError(
                f"{size} processes on {nodes} nodes, {each} of them here",
                where="--processes",
                fix="give every node the same number",
            )
        rank = int(node) * each + local
    return World(rank, size, local)


@contextlib.contextmanager
def process_group(world: World) -> Iterator[None]:
    """Join the other processes; gloo between CPUs, nccl between GPUs. Nothing to do for one alone.

    Raises:
        MachineError: the others cannot be reached.
    """
    global _control
    if world.size == 1:
        yield
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        interface = _interface_towards(address)
    except OSError as error:
        raise MachineError(f"'{address}' cannot be reached ({error.strerror})", where="--rendezvous") from error
    if interface is not None:  # gloo looks the host's own name up instead, which in a container may lead nowhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        address, port, world.size, is_master=os.environ["RANK"] == "0", timeout=_STEP
    )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=_STEP)
    _control = dist.new_group(backend="gloo", timeout=_ALONE)
    yield
    dist.destroy_process_group()  # not after an error: it would wait for those that are gone
    _control = None


def _interface_towards(address: str) -> str | None:
    """The network interface that leads to ``address``; None when it has no IPv4 address. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    return None


def end_with_parent() -> None:
    """Get SIGTERM when the parent dies: torchrun's workers lead sessions of their own and would train on unwatched."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux: then they do
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Loss(nn.Module):
    """A task's loss as a forward pass, which is what DistributedDataParallel wraps.

    Args:
        task: the model with its loss.
    """

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: SequenceBatch) -> LossOutput:
        """The loss of this process' share; of an empty one 0, through every parameter, so that nobody waits for it."""
        if batch.num_rows:
            return self.task.loss(batch)  # type: ignore[operator]
        return LossOutput(sum((p.sum() * 0.0 for p in self.task.parameters() if p.requires_grad), torch.zeros(())), 0)


def shared_loss(task: nn.Module, world: World) -> nn.Module:
    """The loss of ``task``; with several processes its gradients come out as their mean over all of them."""
    loss = Loss(task)
    if world.size == 1:
        return loss
    device = next(task.parameters()).device
    with warnings.catch_warnings():  # newer releases want a name for broadcast_buffers that older ones do not have
        warnings.simplefilter("ignore", FutureWarning)
        return nn.parallel.DistributedDataParallel(
            loss,
            device_ids=[device] if device.type == "cuda" else None,
            process_group=world.group,
            broadcast_buffers=False,  # they are made from the data, alike everywhere
            gradient_as_bucket_view=True,
        )


def gradients_kept(loss: nn.Module, more: bool) -> contextlib.AbstractContextManager[Any]:
    """While ``more`` batches of the same update follow, gradients add up in each process and are not exchanged."""
    held = more and isinstance(loss, nn.parallel.DistributedDataParallel)
    return loss.no_sync() if held else contextlib.nullcontext()  # type: ignore[operator]


def leave_with(code: int, line: str = "") -> None:
    """Tell launch.sh how this process ends, in its stead a line for the user.

    torchrun knows success and failure only, and starts again what fails; and of several that fail alike one should
    speak. The file holds the code; the line stays that of the process that had one.
    """
    path = Path(os.environ["RECPOD_EXIT_CODE_FILE"])
    if not line and path.exists():
        line = path.read_text(encoding="utf-8").partition("\n")[2].strip()
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(f"{code}\n{line}\n", encoding="utf-8")
    temporary.replace(path)


def forget_exit_code() -> None:
    """Drop what an earlier start of the workers has left; the first process of a node does it before it joins."""
    if os.environ["LOCAL_RANK"] == "0":
        Path(os.environ["RECPOD_EXIT_CODE_FILE"]).unlink(missing_ok=True)


def exit_code_of_a_neighbour() -> int | None:
    """The code with which another process of this node has left on purpose, or None."""
    path = Path(os.environ["RECPOD_EXIT_CODE_FILE"])
    return int(path.read_text(encoding="utf-8").split()[0]) if path.exists() else None
