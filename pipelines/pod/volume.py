"""Where a run's files go: is it a volume that outlives the pod, can it be written, is there room?"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import MachineError
from pipelines.machine import GB, free_bytes
from pipelines.pod.flags import Flags, positive

VOLUME = "RECPOD_VOLUME"
MOUNT_POINT = Path("/workspace")  # where pods have their volume
PASSING = ("overlay", "aufs", "fuse-overlayfs", "tmpfs", "ramfs", "devtmpfs")  # file systems that die with a container
LEAST_FREE_GB = 1.0
_CHOOSE = "choose another folder with --set runs=FOLDER"


@dataclass(frozen=True)
class Mount:
    """One mounted file system: where, and its type as the kernel names it."""

    point: str
    kind: str


@dataclass(frozen=True)
class Place:
    """Where a run's files go.

    Attributes:
        runs: folder of all runs.
        data: folder of downloads and stores, where it is ours to say; None leaves it to training.
        arguments: what training must be told so that it writes there.
    """

    runs: Path
    data: Path | None = None
    arguments: tuple[str, ...] = ()


def read_mounts(table: Path = Path("/proc/self/mountinfo")) -> list[Mount]:
    """The mounts that this process sees, in the order they were made; empty where the kernel does not tell."""
    try:
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    mounts = []
    for line in lines:
        left, _, right = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), left.split()[4])
        mounts.append(Mount(point, right.split()[0]))
    return mounts


def in_container(environ: Mapping[str, str]) -> bool:
    """Whether this is a container or a pod, whose own layer dies with it."""
    if environ.get("RECPOD_IMAGE") or environ.get("RUNPOD_POD_ID"):
        return True
    return any(mount.point == "/" and mount.kind in PASSING[:3] for mount in read_mounts())


def mount_of(path: Path, mounts: Sequence[Mount]) -> Mount | None:
    """The mount that ``path`` lies on: of the longest mount point above it the last one made."""
    above = {str(folder) for folder in (path.resolve(), *path.resolve().parents)}
    found = [mount for mount in mounts if mount.point in above]
    return max(reversed(found), key=lambda mount: len(mount.point), default=None)


def outlives_container(path: Path, mounts: Sequence[Mount]) -> bool:
    """Whether files at ``path`` are still there when the container is gone."""
    mount = mount_of(path, mounts)
    return mount is not None and mount.point != "/" and mount.kind not in PASSING


def choose_place(flags: Flags, environ: Mapping[str, str], *, contained: bool) -> Place:
    """Where the runs go: ``--set runs=``, else ``RECPOD_VOLUME``, else the working folder.

    In a container whose working folder dies with it, a volume at /workspace is taken instead.
    """
    if "runs" in flags.sets:
        return Place(Path(flags.sets["runs"]))
    if environ.get(VOLUME):
        return on_volume(Path(environ[VOLUME]), environ)
    written = _key_of_file(flags.values["--config"], "runs") if "--config" in flags.values else None
    if written is not None:
        return Place(Path(written))
    mounts = read_mounts()
    dies = contained and not outlives_container(Path.cwd(), mounts) and not Path("runs").exists()
    if dies and outlives_container(MOUNT_POINT, mounts) and os.access(MOUNT_POINT, os.W_OK):
        return on_volume(MOUNT_POINT, environ)
    return Place(Path("runs"))


def on_volume(volume: Path, environ: Mapping[str, str]) -> Place:
    """Runs and data on ``volume``; data stay where ``RECPOD_DATA`` puts them."""
    data = None if environ.get("RECPOD_DATA") else volume / "data"
    return Place(volume / "runs", data, ("--set", f"runs={volume / 'runs'}"))


def _key_of_file(path: str, key: str) -> str | None:
    """A plain top-level ``key: word`` of a YAML file, which cannot be read in full before anything is installed."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    found = re.search(rf"^{key}:[ \t]+['\"]?([^\s'\"#]+)", text, flags=re.MULTILINE)
    return found[1] if found else None


def check_place(place: Place, environ: Mapping[str, str], *, contained: bool) -> str | None:
    """Refuse a place that cannot be written or has no room; returns a warning when its files die with the container.

    Raises:
        MachineError: not writable, or less free than 1 GB (``RECPOD_MIN_FREE_GB``).
    """
    folder = next(folder for folder in (place.runs.absolute(), *place.runs.absolute().parents) if folder.exists())
    _try_to_write(folder)
    least = positive(environ.get("RECPOD_MIN_FREE_GB") or str(LEAST_FREE_GB), "RECPOD_MIN_FREE_GB", zero=True)
    free = free_bytes(folder) / GB
    if free < least:
        fix = f"free space or take a larger volume, or {_CHOOSE}"
        raise MachineError(f"{free:.2f} GB free, at least {least:g} are needed", where=str(folder), fix=fix)
    if contained and not outlives_container(folder, read_mounts()):
        return (
            f"{place.runs.absolute()} IS NOT ON A VOLUME: checkpoints, results and data are lost when this container "
            f"or pod goes. Mount a volume at {MOUNT_POINT} (docker run -v FOLDER:{MOUNT_POINT}), or set {VOLUME} to one"
        )
    return None


def _try_to_write(folder: Path) -> None:
    """Really write: root passes every permission check, and a full or read-only disk has permissions too."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".recpod-") as file:
            file.write(b"\0" * 65536)
            file.flush()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        user = f"user {os.getuid()}:{os.getgid()}"
        what = "the volume is full" if full else f"cannot be written by {user} ({error.strerror})"
        fix = f"free space, or {_CHOOSE}" if full else f"make it writable (chown, or docker run --user), or {_CHOOSE}"
        raise MachineError(what, where=str(folder), fix=fix) from error
