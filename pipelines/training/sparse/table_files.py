"""A sharded table on disk, through torch.distributed.checkpoint: every process writes and reads its own part.

``checkpoints/tables/step-N/`` lies beside ``checkpoints/step-N/`` and is whole before that is begun, so a checkpoint
that counts has its table. The same step may be written again, as after a validation: the table that is there stays
until the new one is whole. Another number of processes, or another sharding, reads the same files.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from pipelines.errors import RunError
from pipelines.training.checkpoint import WRITING, checkpoint_steps, put_in_place, sweep_checkpoints, table_path
from pipelines.training.distributed import World
from pipelines.training.sparse.torchrec_table import ShardedTable


def check_shared(checkpoints: Path, world: World) -> None:
    """Refuse to train where a process would not find the others' parts again: nodes with disks of their own.

    Raises:
        RunError: in all processes.
    """
    folder = table_path(checkpoints, "")
    mark = folder / world.on_first(lambda: _marked(folder))
    seen = world.gather(mark.is_file())
    world.on_first(lambda: mark.unlink(missing_ok=True))
    if not all(seen):
        what = "not every process sees this folder, into which each writes its part of the item table"
        raise RunError(what, where=str(folder), fix="set runs to a folder that all nodes share")


def _marked(folder: Path) -> str:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (mark := folder / f".seen-{uuid.uuid4()}").touch()
    except OSError as error:
        raise RunError(
            f"cannot be written ({error.strerror})", where=str(folder), fix="choose another folder"
        ) from error
    return mark.name


def save_table(table: ShardedTable, checkpoints: Path, step: int, world: World) -> None:
    """Write the table of ``step``. Collective.

    Raises:
        RunError: in all processes, when one could not write its part; earlier checkpoints stay.
    """
    path = table_path(checkpoints, f"step-{step}")
    writing = path.with_name(f"{WRITING}{step}")
    world.on_first(lambda: shutil.rmtree(writing, ignore_errors=True))
    try:
        with _quiet():
            save(table.state(), checkpoint_id=writing)
    except (CheckpointException, OSError) as error:  # in all processes alike
        world.on_first(lambda: sweep_checkpoints(checkpoints))
        raise _unwritten(path, error) from error
    world.on_first(lambda: _put(writing, path))


def _put(writing: Path, path: Path) -> None:
    try:
        put_in_place(writing, path)
    except OSError as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: BaseException) -> RunError:
    fix = "free space or make the folder writable, then start the same command again"
    return RunError(f"the item table of {path.name} could not be written ({_reason(error)})", where=str(path), fix=fix)


def load_table(table: ShardedTable, checkpoints: Path, step: int) -> None:
    """Read the table of ``step`` into ``table``. Collective.

    Raises:
        RunError: in all processes, when one could not read its part.
    """
    path, state = table_path(checkpoints, f"step-{step}"), table.state()
    try:
        with _quiet():
            load(state, checkpoint_id=path)
    except (CheckpointException, OSError, ValueError, RuntimeError) as error:
        fix = "delete the checkpoint of this step to resume from the one before it, or use --resume never"
        raise RunError(f"the item table cannot be read ({_reason(error)})", where=str(path), fix=fix) from error
    table.check_loaded(state)


def prune_tables(checkpoints: Path) -> None:
    """Delete the tables of checkpoints that are gone."""
    kept = {f"step-{step}" for step in checkpoint_steps(checkpoints)}
    for path in (checkpoints / "tables").glob("step-*"):
        if path.name not in kept:
            shutil.rmtree(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that TorchRec's sharded tensors are of an older kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _reason(error: BaseException) -> str:
    """One line of the errors of all processes."""
    inner = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
    return next(iter(str(inner).splitlines()), type(inner).__name__)
