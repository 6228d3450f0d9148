"""The events of a store on the training device: batches are gathered there, and the host sends their rows alone.

A batch that the loader makes is copied token by token; here the copy is four numbers a row, whatever the histories'
length, and the gathering costs the device microseconds. The batches are the loader's, bit for bit, so this is a matter
of speed alone: order, data position and resume are those of :mod:`pipelines.data.loader`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.batch import SequenceBatch
from pipelines.data.loader import AnyGather, Gather, LoaderOptions, Windows, gather_batch
from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError, MachineError

SHARE = 0.25  # of the free memory that ``auto`` gives to events: optimiser states and activations are still to come


@dataclass(frozen=True, eq=False)
class ResidentEvents:
    """A store's arrays as tensors of one device, in the store's own types.

    Attributes:
        items: ``[events]`` int32.
        timestamps: ``[events]`` int64, seconds.
        ratings: ``[events]`` float32, where the store has them.
        actions: ``[events]`` uint8, where the store has them.
        user_features: ``[users]`` int32 by name.
    """

    items: Tensor
    timestamps: Tensor
    ratings: Tensor | None
    actions: Tensor | None
    user_features: Mapping[str, Tensor]

    @classmethod
    def of(cls, store: SequenceStore, device: torch.device) -> ResidentEvents:
        """The arrays of ``store`` that batches are made of, copied to ``device``."""
        found = {name: torch.from_numpy(np.array(array)).to(device) for name, array in _arrays(store).items()}
        users = {name: torch.from_numpy(np.array(codes)).to(device) for name, codes in store.user_features.items()}
        return cls(found["items"], found["timestamps"], found.get("ratings"), found.get("actions"), users)

    def gather(self, store: SequenceStore, windows: Windows, *, last_target_only: bool = False) -> SequenceBatch:
        """What :func:`pipelines.data.loader.gather_batch` makes of ``windows``, on the device of the events.

        Args:
            store: the one that the events came from; it is not read.
            windows: rows of the batch.
            last_target_only: only each row's newest token has a target.
        """
        device, lengths = self.items.device, windows.lengths
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.zeros((4, len(offsets)), dtype=np.int64)
        rows[0], rows[1, :-1], rows[2, :-1], rows[3, :-1] = offsets, windows.start, windows.end, windows.user
        sent = torch.from_numpy(rows)
        if device.type == "cuda":  # the host goes on while it is copied
            sent = sent.pin_memory().to(device, non_blocking=True)
        elif device.type != "cpu":
            sent = sent.to(device)
        borders, (start, end, user) = sent[0], sent[1:, :-1]
        tokens = int(offsets[-1])  # known here: the device would have to be asked
        shift = torch.repeat_interleave(start - borders[:-1], borders.diff(), output_size=tokens)
        index = torch.arange(tokens, device=device) + shift  # [T]
        targets = self.items.index_select(0, index + 1).long()
        if last_target_only:
            newest = borders[1:] - 1
            targets = torch.zeros_like(targets).index_copy_(0, newest, targets.index_select(0, newest))
        return SequenceBatch(
            offsets=borders,
            items=self.items.index_select(0, index).long(),
            timestamps=self.timestamps.index_select(0, index),
            targets=targets,
            request_time=self.timestamps.index_select(0, end),
            user_index=user,
            ratings=None if self.ratings is None else self.ratings.index_select(0, index),
            actions=None if self.actions is None else self.actions.index_select(0, index).long(),
            context={name: codes.index_select(0, user).long() for name, codes in self.user_features.items()} or None,
            all_targets=not last_target_only,
        )


@dataclass
class Residence:
    """Where the events of a run's store lie: on the host alone, until training brings them to its device.

    Attributes:
        gather: makes batches on the device.
        device: which that is.
    """

    gather: AnyGather | None = None
    device: torch.device | None = None

    def bring(
        self, store: SequenceStore, options: LoaderOptions, gather: Gather, device: torch.device
    ) -> AnyGather | None:
        """As :func:`resident_gather`, whose answer is kept for those who ask later."""
        self.gather, self.device = resident_gather(store, options, gather, device), device
        return self.gather

    def on(self, device: torch.device) -> AnyGather | None:
        """How batches are made on ``device``; None where no events lie there."""
        return self.gather if device == self.device else None


def resident_gather(
    store: SequenceStore, options: LoaderOptions, gather: Gather, device: torch.device
) -> AnyGather | None:
    """How batches are gathered on ``device``; None where ``options.resident`` leaves that to ``gather`` on the host.

    Args:
        store: of the training events.
        options: whose ``resident`` decides.
        gather: of the task; only batches of :func:`pipelines.data.loader.gather_batch` can be made on a device.
        device: to train on.

    Raises:
        ConfigError: ``resident: on`` for batches of another kind.
        MachineError: ``resident: on`` and the GPU has no room.
    """
    if options.resident == "off":
        return None
    if gather is not gather_batch:
        check_batches(options, plain=False)
        return None
    free = free_bytes(device) if device.type == "cuda" else None
    if not fits(options.resident, events_bytes(store), free):
        return None
    try:
        return ResidentEvents.of(store, device).gather
    except torch.OutOfMemoryError as error:  # free in all, but not in one piece
        raise _no_room(events_bytes(store), free_bytes(device)) from error


def check_batches(options: LoaderOptions, *, plain: bool) -> None:
    """Refuse ``resident: on`` for other batches than the ``plain`` ones of the loader.

    Raises:
        ConfigError: it is asked for.
    """
    if options.resident == "on" and not plain:
        what = "a model that predicts actions has its batches made on the host"
        raise ConfigError(what, where="loader.resident", fix="set loader.resident=auto")


def fits(resident: str, needed: int, free: int | None) -> bool:
    """Whether events of ``needed`` bytes are to lie on a device with ``free`` bytes (None: not a GPU).

    Args:
        resident: ``auto`` takes up to :data:`SHARE` of a GPU's free memory, ``on`` whatever there is.
        needed: see :func:`events_bytes`.
        free: see :func:`free_bytes`.

    Raises:
        MachineError: ``on``, and they do not fit.
    """
    if resident == "auto":
        return free is not None and needed < SHARE * free
    if resident == "on" and free is not None and needed > free:
        raise _no_room(needed, free)
    return resident == "on"


def events_bytes(store: SequenceStore) -> int:
    """What :class:`ResidentEvents` of ``store`` take."""
    return sum(array.nbytes for array in (*_arrays(store).values(), *store.user_features.values()))


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, that of torch's own cache included."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _arrays(store: SequenceStore) -> dict[str, np.ndarray]:
    """The arrays ``[events]`` that batches are made of."""
    features = {name: store.features[name] for name in ("ratings", "actions") if name in store.features}
    return {"items": store.items, "timestamps": store.timestamps, **features}


def _no_room(needed: int, free: int) -> MachineError:
    what = f"the events take {needed / 2**30:.2f} GiB and the GPU has {free / 2**30:.2f} GiB free"
    return MachineError(what, where="loader.resident", fix="set loader.resident=auto")
