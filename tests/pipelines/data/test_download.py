from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.download import Expected, download
from pipelines.errors import FetchError

from .conftest import FileServer, Served

pytestmark = pytest.mark.usefixtures("no_sources")

BODY = bytes(range(256)) * 4096  # 1 MiB
CHUNK = 65536  # the piece that a cut can lose
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.data.download.time.sleep", lambda _: None)


def bring(server: FileServer, target: Path, **expected: Any) -> str:
    return download(f"{server.url}/file.bin", target, Expected(**expected), progress=False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_file_arrives_under_its_name(server: FileServer, tmp_path: Path) -> None:
    server.files["/file.bin"] = Served(BODY)
    target = tmp_path / "deep" / "file.bin"
    assert bring(server, target, sha256=SHA, size=len(BODY)) == SHA
    assert target.read_bytes() == BODY
    assert names(target.parent) == ["file.bin"]


def test_md5_alone_is_checked(server: FileServer, tmp_path: Path) -> None:
    server.files["/file.bin"] = Served(BODY)
    assert bring(server, tmp_path / "file.bin", md5=hashlib.md5(BODY).hexdigest()) == SHA
    with pytest.raises(FetchError, match="wrong checksum: MD5"):
        bring(server, tmp_path / "other.bin", md5="0" * 32)


def test_cut_connections_are_resumed_at_once(server: FileServer, tmp_path: Path) -> None:
    server.files["/file.bin"] = Served(BODY, cut_after=[4 * CHUNK, CHUNK, 6 * CHUNK])
    assert bring(server, tmp_path / "file.bin", sha256=SHA) == SHA
    assert [asked for _, asked in server.requests] == [None, "bytes=262144-", "bytes=327680-", "bytes=720896-"]
    assert names(tmp_path) == ["file.bin"]


def test_later_call_resumes(server: FileServer, tmp_path: Path) -> None:
    server.files["/file.bin"] = Served(BODY, cut_after=[4 * CHUNK, 0, 0, 0, 0, 0])
    with pytest.raises(FetchError, match="short file: the connection ended after 262144 of 1048576 bytes; run again"):
        bring(server, tmp_path / "file.bin", sha256=SHA)
    assert names(tmp_path) == ["file.bin.part", "file.bin.part.json"]
    server.files["/file.bin"] = Served(BODY)
    server.requests.clear()
    assert bring(server, tmp_path / "file.bin", sha256=SHA) == SHA
    assert [asked for _, asked in server.requests] == ["bytes=262144-"]
    assert names(tmp_path) == ["file.bin"]


def test_a_piece_of_another_file_is_not_continued(server: FileServer, tmp_path: Path) -> None:
    server.files["/file.bin"] = Served(b"\0" * len(BODY), etag='"old"', cut_after=[4 * CHUNK, 0, 0, 0, 0, 0])
    with pytest.raises(FetchError):
        bring(server, tmp_path / "file.bin")
    server.files["/file.bin"] = Served(BODY, etag='"new"')  # changed on the server: If-Range fails, all of it comes
    assert bring(server, tmp_path / "file.bin") == SHA
    (tmp_path / "file.bin").rename(tmp_path / "file.bin.part")
    (tmp_path / "file.bin.part.json").write_text(json.dumps({"url": "http://elsewhere/", "validator": '"new"'}))
    server.requests.clear()
    assert bring(server, tmp_path / "file.bin") == SHA
    assert [asked for _, asked in server.requests] == [None]


@pytest.mark.parametrize("served", [Served(BODY, ranges=False), Served(BODY, etag=None)])
def test_server_without_resuming(server: FileServer, tmp_path: Path, served: Served) -> None:
    server.files["/file.bin"] = served
    served.cut_after = [4 * CHUNK] if served.etag else []
    assert bring(server, tmp_path / "file.bin", sha256=SHA) == SHA
    served.cut_after = [4 * CHUNK] * 9
    with pytest.raises(FetchError, match="short file"):
        bring(server, tmp_path / "again.bin")
    if served.etag is None:  # nothing to resume by: nothing is kept
        assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize(
    ("served", "expected", "message"),
    [
        (Served(b"Quota exceeded", "text/html; charset=utf-8"), {}, "HTML page instead of the file"),
        (Served(b"\n <!DOCTYPE html><html>"), {}, "HTML page instead of the file"),
        (Served(BODY[:-1]), {"size": len(BODY)}, "short file: 1048575 bytes, 1048576 expected"),
        (Served(BODY + b"x"), {"size": len(BODY)}, "long file"),
        (Served(BODY[::-1]), {"sha256": SHA}, f"wrong checksum: SHA-256 [0-9a-f]+, expected {SHA}"),
        (Served(b"sorry", status=503), {}, "the server answered 503"),
    ],
)
def test_wrong_content_is_named_and_leaves_nothing(
    server: FileServer, tmp_path: Path, served: Served, expected: dict[str, Any], message: str
) -> None:
    server.files["/file.bin"] = served
    with pytest.raises(FetchError, match=message):
        bring(server, tmp_path / "file.bin", **expected)
    assert names(tmp_path) == []


def test_wrong_content_does_not_replace_a_good_file(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"good")
    server.files["/file.bin"] = Served(BODY[::-1])
    with pytest.raises(FetchError, match="wrong checksum"):
        bring(server, tmp_path / "file.bin", sha256=SHA)
    assert (tmp_path / "file.bin").read_bytes() == b"good"


def test_missing_on_the_server_and_no_server(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="the server answered 404"):
        bring(server, tmp_path / "file.bin")
    with pytest.raises(FetchError, match="^no connection to 127.0.0.1"):
        download("http://127.0.0.1:9/file.bin", tmp_path / "file.bin", Expected(), progress=False)
    assert names(tmp_path) == []


def test_zip_by_name_must_be_one(server: FileServer, tmp_path: Path) -> None:
    server.files["/file.bin"] = Served(BODY)
    with pytest.raises(FetchError, match="not a zip archive"):
        bring(server, tmp_path / "file.zip")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", "b")
    server.files["/file.bin"] = Served(buffer.getvalue())
    bring(server, tmp_path / "file.zip")
    assert names(tmp_path) == ["file.zip"]


def test_unwritable_folder(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where a folder should be")
    with pytest.raises(FetchError, match="cannot be written to"):
        bring(server, tmp_path / "blocked" / "file.bin")


def test_progress_goes_to_stderr(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.files["/file.bin"] = Served(BODY)
    download(f"{server.url}/file.bin", tmp_path / "file.bin", Expected(), progress=True)
    printed = capsys.readouterr()
    assert "file.bin" in printed.err and not printed.out
