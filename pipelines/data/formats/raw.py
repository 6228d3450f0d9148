"""A raw text file, plain or a member of a zip or tar archive, read without unpacking the rest of the archive."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipelines.data.formats.shown import shown, shown_names
from pipelines.errors import DataError

MEMBER = "--set dataset.options.member=NAME (or `options: {member: NAME}` in the dataset's YAML file)"
OTHER_LAYOUT = (
    "Describe other layouts in a dataset's YAML file with `format: csv`, as in configs/datasets/example-csv.yaml"
)
NOT_TEXT = "Check that this is the right file, and UTF-8 text"


@dataclass(frozen=True)
class RawFile:
    """Where raw data lie.

    Attributes:
        path: the file on disk.
        member: the name inside the archive at ``path``; None for a plain file.
    """

    path: Path
    member: str | None = None

    @property
    def label(self) -> str:
        """How messages call the file: ``ml-1m.zip/ml-1m/ratings.dat``."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """The last part of the name, which tells the format."""
        return (self.member or self.path.name).rsplit("/", 1)[-1]

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The raw bytes as a stream; damage found while reading (a zip member carries a CRC) becomes a DataError."""
        try:
            if self.member is None:
                with open(self.path, "rb") as stream:
                    yield stream
            elif is_tar(self.path):
                with _tar_member(self.path, self.member) as member:
                    yield member
            else:
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as member:
                    yield member
        except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise DataError(f"is damaged ({shown(str(error))})", where=str(self.path), fix="Fetch it again") from None
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror or error})", where=self.label) from None

    def read(self) -> bytes:
        """All bytes."""
        with self.open() as stream:
            return stream.read()

    def first_line(self) -> str:
        """The first line without its end, for telling formats and columns; DataError when the file is empty."""
        with self.open() as stream:
            line = stream.readline(1 << 20)
        if not line.strip():
            raise DataError("the file is empty" if not line else "the first line is empty", where=self.label)
        if b"\0" in line:
            raise DataError("is no text file (it holds zero bytes)", where=self.label, fix=NOT_TEXT)
        return decoded(line).rstrip("\r\n")

    def lines(self) -> Iterator[tuple[int, str]]:
        """Line numbers from 1 and lines without their ends; undecodable bytes become U+FFFD."""
        with self.open() as stream:
            for number, line in enumerate(stream, start=1):
                yield number, decoded(line).rstrip("\r\n")


def is_tar(path: Path) -> bool:
    """Whether the name is that of a tar archive, compressed or not."""
    return path.name.endswith((".tar", ".tar.gz", ".tgz"))


@contextmanager
def _tar_member(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The member called ``name``, in whatever folder of the archive. A compressed one is read through up to it."""
    with tarfile.open(path, "r|*") as archive:
        for entry in archive:
            if entry.name == name or entry.name.endswith(f"/{name}"):
                member = archive.extractfile(entry)
                if member is not None:
                    yield member
                    return
    raise DataError(f"holds no {name}", where=str(path), fix="Check that this is the right archive")


def decoded(line: bytes) -> str:
    """UTF-8 with a byte order mark dropped and bad bytes replaced."""
    return line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace")


def locate(path: Path, known_members: Sequence[str], member: str | None = None) -> RawFile:
    """The raw file at ``path``, which may be a folder or a zip archive that holds it.

    Args:
        path: a plain file, an unpacked folder or a ``.zip``.
        known_members: file names (last part) to look for in a folder or archive.
        member: the exact name inside, where it is known.

    Raises:
        DataError: nothing there, a damaged archive, or none (or several) of the known names inside.
    """
    if not path.exists():
        raise DataError("no such file", where=str(path), fix="Run `recpod fetch` or check the path")
    if path.is_dir():
        names = [str(p.relative_to(path)) for p in sorted(path.rglob("*")) if p.is_file()]
    elif path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(
                f"is not a usable zip archive ({shown(str(error))})", where=str(path), fix="Fetch it again"
            ) from None
    else:
        return RawFile(path)
    if member is not None:
        chosen = [name for name in names if name == member]
        wanted = member
    else:
        chosen = [name for name in names if any(name == k or name.endswith(f"/{k}") for k in known_members)]
        wanted = " or ".join(known_members)
    if len(chosen) != 1:
        found = shown_names(names) or "nothing"
        problem = (
            f"holds no {wanted}; found: {found}" if not chosen else f"holds several of {wanted}: {shown_names(chosen)}"
        )
        raise DataError(problem, where=str(path), fix=f"Name the one to read with {MEMBER}")
    return RawFile(path / chosen[0]) if path.is_dir() else RawFile(path, chosen[0])
