"""Checkpoints: whole or absent, checked before they are used, and the previous one survives a failed write.

A checkpoint is a folder ``checkpoints/step-N/`` with ``state.pt`` and ``manifest.json`` (its SHA-256). It is written
under a temporary name, forced to disk and renamed, so a killed process leaves either all of it or nothing that counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import RunError

FORMAT = 2
WRITING, _REPLACED = ".writing-step-", ".replaced-step-"
_NAME = re.compile(r"step-(\d+)$")


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps that have a whole checkpoint in ``folder``, oldest first.

    A bucket mounted as a folder renames file by file: a machine that goes away meanwhile leaves a part of one, without
    the manifest, which is written last.
    """
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if (path / "manifest.json").is_file())
    return sorted(int(match[1]) for name in names if (match := _NAME.match(name)))


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies."""
    return folder / f"step-{step}"


def table_path(folder: Path, name: str) -> Path:
    """Where the item table of the checkpoint ``name`` lies, if it is spread over processes."""
    return folder / "tables" / name


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``state`` as the checkpoint of ``step``.

    Raises:
        RunError: the disk is full or read-only; nothing was changed, the previous checkpoint is still there.
    """
    final, temporary = checkpoint_path(folder, step), folder / f"{WRITING}{step}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        torch.save(state, temporary / "state.pt")
        manifest = {"format": FORMAT, "step": step, "sha256": _sha256(temporary / "state.pt")}
        (temporary / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        for path in temporary.iterdir():
            _sync(path)
        put_in_place(temporary, final)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        sweep_checkpoints(folder)
        kept = checkpoint_steps(folder)
        left = f"the checkpoint of step {kept[-1]} is intact" if kept else "there is no earlier checkpoint"
        raise RunError(
            f"the checkpoint of step {step} could not be written ({error}); {left}",
            where=str(folder),
            fix="free space or make the folder writable, then start the same command again",
        ) from error
    return final


def put_in_place(temporary: Path, final: Path) -> None:
    """Make the folder ``temporary``, which is whole, the one of a step; what is there stays until then.

    Raises:
        OSError: the disk does not take it; :func:`sweep_checkpoints` brings back what was there.
    """
    replaced = final.with_name(f"{_REPLACED}{final.name.removeprefix('step-')}")
    if final.exists():  # the same step again: an epoch's end after its last batch, or a resume from an earlier one
        final.rename(replaced)
    temporary.rename(final)
    _sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def sweep_checkpoints(folder: Path) -> None:
    """Clear what a killed process left: half-written checkpoints go, one that was being replaced comes back.

    So with item tables that are spread over processes.
    """
    for place in (folder, table_path(folder, "")):
        for path in place.glob(f"{WRITING}*"):
            shutil.rmtree(path)
        for path in place.glob(f"{_REPLACED}*"):
            final = checkpoint_path(place, int(path.name.removeprefix(_REPLACED)))
            if final.exists():
                shutil.rmtree(path)
            else:
                path.rename(final)


def adopt_checkpoint(folder: Path, source: Path, best_step: int) -> tuple[Path, Path | None]:
    """Make the checkpoint ``source`` the newest of ``folder``, so that a run goes on from it and from nothing else.

    Its best checkpoint comes along, and so do spread item tables. Newer checkpoints of ``folder`` are moved to a folder
    beside it, not deleted.

    Returns:
        The checkpoint inside ``folder``, and where newer ones were moved (None when there were none).
    """
    step = int(source.name.removeprefix("step-"))
    newer = [checkpoint_path(folder, other) for other in checkpoint_steps(folder) if other > step]
    aside: Path | None = None
    if newer:
        taken = len(list(folder.parent.glob(f"{folder.name}-before-*")))
        aside = folder.with_name(f"{folder.name}-before-{taken + 1}")
        aside.mkdir()
        for path in newer:
            path.rename(aside / path.name)
            if (table := table_path(folder, path.name)).is_dir():
                table_path(aside, path.name).parent.mkdir(exist_ok=True)
                table.rename(table_path(aside, path.name))
    if source.parent.resolve() != folder.resolve():
        folder.mkdir(parents=True, exist_ok=True)
        for path in {source, source.with_name(f"step-{best_step}")}:
            if (table := table_path(source.parent, path.name)).is_dir():  # first: a checkpoint that counts has its own
                shutil.copytree(table, table_path(folder, path.name), dirs_exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
    return checkpoint_path(folder, step), aside


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state saved in ``path`` (a ``step-N`` folder), tensors on ``device``.

    Raises:
        RunError: absent, torn, of another format, or its bytes are not those that were written.
    """
    state_file, remedy = path / "state.pt", "delete this folder to resume from the one before it, or use --resume never"
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise RunError(
                f"checkpoint format {manifest['format']}, this code reads {FORMAT}", where=str(path), fix=remedy
            )
        if manifest["sha256"] != _sha256(state_file):
            raise RunError(
                "the checkpoint is corrupt: its SHA-256 is not the recorded one", where=str(path), fix=remedy
            )
        state: dict[str, Any] = torch.load(state_file, map_location=device, weights_only=True)
    except RunError:
        raise
    except pickle.UnpicklingError as error:  # its own text advises to load without the check: never repeat that
        raise RunError(
            "the checkpoint cannot be read: it holds more than tensors and numbers", where=str(path)
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise RunError(f"the checkpoint cannot be read ({error})", where=str(path), fix=remedy) from error
    return state


def prune_checkpoints(folder: Path, *, keep: int, best: int | None) -> None:
    """Delete all but the ``keep`` newest checkpoints and the ``best`` one."""
    steps = checkpoint_steps(folder)
    for step in steps[: max(0, len(steps) - keep)]:
        if step != best:
            shutil.rmtree(checkpoint_path(folder, step))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
