"""Compiling with numba and running the result on PyTorch's number of threads. Imported by ``cpu.py`` files only.

Compiled code is kept on disk, in a folder named after the sources it came from: numba itself watches only the file of
the function, not the modules that the function inlines. A container image brings a filled folder beside the sources,
which nobody in it may write; it is copied to where this process may. Numba compiles anew what is for another CPU.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

config: Any = numba.config  # filled at run time, unknown to type checkers
Floats = NDArray[np.float32]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError:
        return False
    return os.access(folder, os.W_OK) and owner == os.getuid()  # never run code that another user could have left


def _of_root_alone(folder: Path) -> bool:
    """Whether nobody but root could have put or changed anything in ``folder``."""
    places = [folder.parent, folder, *folder.rglob("*")] if folder.is_dir() else []
    states = [place.lstat() for place in places]
    return bool(states) and all(state.st_uid == 0 and not state.st_mode & 0o022 for state in states)


def _fill(empty: Path, shipped: Path) -> None:
    """Copy ``shipped`` to ``empty``, whole or not at all; another process that is at it too may win."""
    copy = Path(tempfile.mkdtemp(prefix=f".{empty.name}-", dir=empty.parent))
    try:
        shutil.copytree(shipped, copy / "whole")
        (copy / "whole").rename(empty)  # replaces an empty folder, never a filled one
    except OSError:
        return  # no room, or filled meanwhile: what is missing is compiled
    finally:
        shutil.rmtree(copy, ignore_errors=True)


@cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept: ``NUMBA_CACHE_DIR``, else beside the sources, else the temporary folder.

    A folder that is still empty is filled from the one beside the sources, where that is root's alone. None when no
    place can be written (kernels are then compiled anew by every process).
    """
    folder = Path(__file__).parent
    sources = [Path(__file__), folder / "simd.py", *sorted(folder.glob("*/cpu*.py"))]
    name = "kernels-" + hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    bases = [folder / "__pycache__", Path(tempfile.gettempdir()) / f"recpod-numba-{os.getuid()}"]
    if os.environ.get("NUMBA_CACHE_DIR"):
        bases.insert(0, Path(os.environ["NUMBA_CACHE_DIR"]))
    found = next((base / name for base in bases if _writable(base) and _writable(base / name)), None)
    shipped = folder / "__pycache__" / name
    if found not in (None, shipped) and not any(found.glob("*")) and _of_root_alone(shipped):
        _fill(found, shipped)
    return found


@contextmanager
def _numba_cache() -> Iterator[bool]:
    """Numba's cache setting is global: changed only while one of our functions is declared."""
    folder, before = cache_folder(), config.CACHE_DIR
    if folder is not None:
        config.CACHE_DIR = str(folder)
    try:
        yield folder is not None
    finally:
        config.CACHE_DIR = before


def compiled(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: compiled on import for this one signature, or read from the cache; runs without Python's lock."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        with _numba_cache() as cached:
            return numba.njit(signature, nogil=True, cache=cached, error_model="numpy")(function)

    return decorate


_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def run_tasks(task: Callable[[int], None], count: int) -> None:
    """Runs ``task(0) .. task(count - 1)`` on torch.get_num_threads() threads, this one among them.

    Who runs which task is not fixed, so tasks must write to places of their own; results then depend neither on the
    schedule nor on the number of threads.
    """
    numbers = itertools.count()

    def work() -> None:
        while (number := next(numbers)) < count:
            task(number)

    others = min(torch.get_num_threads(), count) - 1
    if others <= 0:
        return work()
    if others not in _pools:
        _pools[others] = ThreadPoolExecutor(others, thread_name_prefix="recpod-kernel")
    waiting = [_pools[others].submit(work) for _ in range(others)]
    work()
    for future in waiting:
        future.result()
    return None


def rows_view(tensor: Tensor) -> tuple[Floats, int]:
    """A float32 matrix as (flat numpy view, distance between rows); copies only when columns are not adjacent."""
    tensor = tensor.detach()
    if tensor.stride(1) != 1 or tensor.stride(0) < tensor.shape[1]:
        tensor = tensor.contiguous()
    length = (tensor.shape[0] - 1) * tensor.stride(0) + tensor.shape[1] if tensor.numel() else 0
    return tensor.as_strided((length,), (1,)).numpy(), tensor.stride(0)


def flat(tensor: Tensor) -> Floats:
    """A flat numpy view of a contiguous float32 tensor (a copy of any other)."""
    return tensor.detach().contiguous().view(-1).numpy()


def pad_columns(tensor: Tensor, columns: int) -> Tensor:
    """``tensor`` with zero columns appended up to ``columns``; itself when nothing is missing."""
    missing = columns - tensor.shape[-1]
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


def round_up(number: int, step: int) -> int:
    """The next multiple of ``step``."""
    return -(-number // step) * step


def row_borders(offsets: Tensor, tokens: int) -> NDArray[np.int64]:
    """``offsets`` for compiled code, which checks no bounds: so they are checked here.

    Raises:
        ValueError: they do not run from 0 to ``tokens`` without falling.
    """
    borders = offsets.detach().to(torch.int64).contiguous().numpy()
    if borders[0] != 0 or borders[-1] != tokens or (np.diff(borders) < 0).any():
        raise ValueError(f"offsets must run from 0 to the number of tokens, {tokens}, and never fall")
    return borders


def row_groups(offsets: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """Borders ``[G + 1]`` of at most ``groups`` runs of whole rows with about equal tokens.

    A function of the rows alone, never of the threads: partial sums over a group are the same on every machine.
    """
    tokens = int(offsets[-1])
    goals = (np.arange(1, groups) * tokens) // groups
    borders = np.searchsorted(offsets, goals, side="left")
    return np.unique(np.concatenate(([0], borders, [len(offsets) - 1])))
