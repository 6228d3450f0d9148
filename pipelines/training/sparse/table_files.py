"""A sharded table on disk, through torch.distributed.checkpoint: every process writes and reads its own part.

``checkpoints/tables/step-N/`` lies beside ``checkpoints/step-N/`` and is whole before that is begun, so a checkpoint
that counts has its table. Another number of processes, or another sharding, reads the same files.
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from pipelines.errors import RunError
from pipelines.training.checkpoint import checkpoint_steps, table_path
from pipelines.training.distributed import World
from pipelines.training.sparse.torchrec_table import ShardedTable


def save_table(table: ShardedTable, checkpoints: Path, step: int, world: World) -> None:
    """Write the table of ``step``. Collective.

    Raises:
        RunError: in all processes, when one could not write its part; earlier checkpoints stay.
    """
    path = table_path(checkpoints, f"step-{step}")
    world.on_first(lambda: shutil.rmtree(path, ignore_errors=True))
    try:
        with _quiet():
            save(table.state(), checkpoint_id=path)
    except (CheckpointException, OSError) as error:
        fix = "free space or make the folder writable, then start the same command again"
        raise RunError(
            f"the item table of step {step} could not be written ({_reason(error)})", where=str(path), fix=fix
        ) from error


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
