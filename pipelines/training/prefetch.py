"""Batches made ahead: a thread gathers them, and on a GPU a stream of its own copies them, while the model computes.

The order is the iterator's, so a run with and without it computes the same numbers and resumes at the same batch.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator

import torch

from models.batch import SequenceBatch

_END = None


def ahead(batches: Iterator[SequenceBatch], depth: int, device: torch.device) -> Iterator[SequenceBatch]:
    """``batches`` on ``device``, up to ``depth`` of them made before they are asked for.

    An error in ``batches`` is raised where its batch would have come. The thread ends with the iterator.
    """
    made: queue.Queue[SequenceBatch | BaseException | None] = queue.Queue(maxsize=depth)
    left = threading.Event()

    def put(entry: SequenceBatch | BaseException | None) -> None:
        waiting = True
        while waiting and not left.is_set():
            with contextlib.suppress(queue.Full):
                made.put(entry, timeout=0.1)
                waiting = False

    def make() -> None:
        try:
            for batch in batches:
                put(batch.pin_memory() if device.type == "cuda" else batch)
                if left.is_set():
                    return
            put(_END)
        except BaseException as error:  # raised again by the one who waits
            put(error)

    thread = threading.Thread(target=make, name="prefetch", daemon=True)
    thread.start()
    try:
        yield from _copied(_taken(made), device) if device.type == "cuda" else _taken(made)
    finally:
        left.set()
        thread.join()


def _taken(made: queue.Queue[SequenceBatch | BaseException | None]) -> Iterator[SequenceBatch]:
    while (entry := made.get()) is not _END:
        if isinstance(entry, BaseException):
            raise entry
        yield entry


def _copied(batches: Iterator[SequenceBatch], device: torch.device) -> Iterator[SequenceBatch]:
    """Each batch on the GPU; the copy of the next one is under way while one is computed with."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy() -> SequenceBatch | None:
        batch = next(batches, None)
        if batch is None:
            return None
        with torch.cuda.stream(stream):
            return batch.to(device, non_blocking=True)

    following = copy()
    while (batch := following) is not None:
        torch.cuda.current_stream(device).wait_stream(stream)
        for tensor in batch.tensors():  # their memory must not be given away before this stream has read it
            tensor.record_stream(torch.cuda.current_stream(device))
        following = copy()
        yield batch
