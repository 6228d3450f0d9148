"""Where runs go: volumes are told from a container's own layer, and what cannot be written is refused with a remedy."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from pipelines.errors import MachineError
from pipelines.pod import volume
from pipelines.pod.flags import parse
from pipelines.pod.volume import Mount, check_place, choose_place, outlives_container, read_mounts
from tests.pipelines.pod.conftest import Pod

TABLE = """\
22 1 0:30 / / rw,relatime - overlay overlay rw,lowerdir=a,upperdir=b
23 22 0:31 / /proc rw - proc proc rw
24 22 0:32 / /tmp rw - tmpfs tmpfs rw
25 22 259:1 /pods/x /workspace rw,relatime shared:3 - ext4 /dev/nvme0n1 rw
26 22 0:40 / /my\\040data rw - fuse mfs#host:9421 rw
27 25 0:41 / /workspace/scratch rw - tmpfs tmpfs rw
"""


@pytest.fixture
def mounts(tmp_path: Path) -> list[Mount]:
    (tmp_path / "mountinfo").write_text(TABLE)
    return read_mounts(tmp_path / "mountinfo")


@pytest.mark.parametrize(
    ("path", "stays"),
    [
        ("/workspace/runs", True),
        ("/workspace", True),
        ("/my data/runs", True),
        ("/workspace/scratch/runs", False),
        ("/workspacex", False),
        ("/tmp/runs", False),
        ("/code/runs", False),
    ],
)
def test_what_outlives_the_container(mounts: list[Mount], path: str, stays: bool) -> None:
    assert outlives_container(Path(path), mounts) is stays


def test_this_machine_s_mounts_are_read() -> None:
    assert any(mount.point == "/" for mount in read_mounts())


def test_the_volume_is_found(mounts: list[Mount], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(volume, "read_mounts", lambda: [Mount(str(tmp_path / "disk"), "ext4")])
    monkeypatch.setattr(volume, "MOUNT_POINT", tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    found = choose_place(parse([]), {}, contained=True)
    runs = tmp_path / "disk" / "runs"
    assert (found.runs, found.data, found.arguments) == (runs, tmp_path / "disk" / "data", ("--set", f"runs={runs}"))
    assert choose_place(parse([]), {}, contained=False).runs == Path("runs")  # at home the working folder is the place
    assert choose_place(parse(["--set", "runs=mine"]), {}, contained=True).runs == Path("mine")
    (tmp_path / "runs").mkdir()  # a run that lies here already goes on here
    assert choose_place(parse([]), {}, contained=True).runs == Path("runs")


def test_recpod_volume_and_the_recipe_s_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("extends: x\nruns: 'elsewhere'  # here\n")
    assert choose_place(parse(["--config", "mine.yaml"]), {}, contained=False).runs == Path("elsewhere")
    environ = {"RECPOD_VOLUME": "/vol", "RECPOD_DATA": "/data"}
    place = choose_place(parse(["--config", "mine.yaml"]), environ, contained=False)
    assert (place.runs, place.data) == (Path("/vol/runs"), None)
    assert choose_place(parse([]), {"RECPOD_VOLUME": "/vol"}, contained=False).data == Path("/vol/data")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the volume is full. free space, or choose another folder with --set runs=FOLDER."),
        (errno.EDQUOT, "the volume is full. free space, or choose another folder with --set runs=FOLDER."),
        (errno.EROFS, "(Read-only file system). make it writable (chown, or docker run --user), or choose another"),
    ],
)
def test_a_volume_that_takes_nothing(number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full or read-only file system needs a mount; tests/containers has real ones."""

    def refuse(**arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(MachineError) as refused:
        check_place(volume.Place(tmp_path / "runs"), {}, contained=False)
    assert said in str(refused.value)


def test_not_writable_is_one_line_before_training(pod: Pod) -> None:
    """/proc takes no files, not even from root."""
    done = pod.run("--set", "runs=/proc/runs")
    user = f"user {os.getuid()}:{os.getgid()}"
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: /proc: cannot be written by {user} (")
    assert done.stderr.count("\n") == 1 and "choose another folder with --set runs=FOLDER" in done.stderr
    assert not pod.started()


def test_too_little_room_is_one_line_before_training(pod: Pod) -> None:
    done = pod.run(RECPOD_MIN_FREE_GB="1000000")
    assert done.returncode == 2
    assert (
        done.stderr.startswith(f"error: {pod.work}: ")
        and "at least 1e+06 are needed. free space or take" in done.stderr
    )
    assert done.stderr.count("\n") == 1 and not pod.started()


def test_a_container_s_own_layer_is_warned_of(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "read_mounts", lambda: [Mount("/", "overlay")])
    warning = check_place(volume.Place(pod.work / "runs"), {}, contained=True)
    assert warning is not None and warning.startswith(f"{pod.work}/runs IS NOT ON A VOLUME: checkpoints, results")
    assert check_place(volume.Place(pod.work / "runs"), {}, contained=False) is None
    monkeypatch.setattr(volume, "read_mounts", lambda: [Mount("/", "overlay"), Mount(str(pod.work), "ext4")])
    assert check_place(volume.Place(pod.work / "runs"), {}, contained=True) is None
