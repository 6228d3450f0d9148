from __future__ import annotations

import base64
import errno
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import gdown
import pytest
import requests

from pipelines.data.datasets import DatasetSpec, load_dataset_spec
from pipelines.data.fetch import Fetched, fetch, parse_sums, reachable
from pipelines.errors import FetchError

from .conftest import FileServer, Served

pytestmark = pytest.mark.usefixtures("no_sources")

BODY = b"1 2 3\n" * 100
SHA, MD5 = hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY).hexdigest()


def spec(**fields: Any) -> DatasetSpec:
    return DatasetSpec(name="toy", file="toy/toy.txt", **fields)


def bring(cache: Path, dataset: DatasetSpec) -> Fetched:
    return fetch(dataset, cache, progress=False)


def put(path: Path, body: bytes = BODY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


@pytest.mark.parametrize("place", ["toy/toy.txt", "toy.txt"])
def test_local_cache_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    path = put(tmp_path / "cache" / place)
    put(tmp_path / "mirror/toy/toy.txt", b"other")
    monkeypatch.setenv("RECPOD_MIRROR", str(tmp_path / "mirror"))
    assert bring(tmp_path / "cache", spec()) == Fetched(
        path, "local cache", SHA, False, "unverified: no published checksum"
    )
    assert bring(tmp_path / "cache", spec(md5=MD5)).verified
    other = bring(tmp_path / "cache", spec(md5="0" * 32))
    assert not other.verified and "not the official file" in other.note


def test_folder_mirror_is_read_in_place_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "mirror/toy/toy.txt")
    monkeypatch.setenv("RECPOD_MIRROR", str(tmp_path / "mirror"))
    cache = tmp_path / "cache"
    assert bring(cache, spec()) == Fetched(
        path, "mirror", SHA, False, "unverified: the mirror has no SHA256SUMS entry for it"
    )
    sums = tmp_path / "mirror" / "SHA256SUMS"
    sums.write_text(f"{'0' * 64}  ./other\n{SHA}  ./toy/toy.txt\n")
    assert bring(cache, spec(md5="0" * 32)) == Fetched(
        path, "mirror", SHA, True, "agrees with the mirror's SHA256SUMS, differs from the official file"
    )
    assert "and with the official checksum" in bring(cache, spec(md5=MD5)).note
    assert not cache.exists()
    sums.write_text(f"{'0' * 64}  ./toy/toy.txt\n")
    with pytest.raises(FetchError, match="mirror: wrong checksum: SHA-256"):
        bring(cache, spec())


def test_mirror_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPOD_MIRROR", str(tmp_path / "gone"))
    with pytest.raises(FetchError, match="mirror: RECPOD_MIRROR is not a folder"):
        bring(tmp_path / "cache", spec())


def test_mirror_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer) -> None:
    monkeypatch.setenv("RECPOD_MIRROR", f"{server.url}/data/")
    server.files["/data/SHA256SUMS"] = Served(f"{SHA}  ./toy/toy.txt\n".encode(), "text/plain")
    server.files["/data/toy/toy.txt"] = Served(BODY)
    cache = tmp_path / "cache"
    fetched = bring(cache, spec())
    assert (fetched.path, fetched.source_name, fetched.verified) == (cache / "toy/toy.txt", "mirror", True)
    server.files.clear()
    again = bring(cache, spec(md5="0" * 32))  # the mirror's edition stays good by the mirror's checksum
    assert (again.source_name, again.verified, again.sha256) == ("local cache", True, SHA)
    assert "downloaded earlier from mirror" in again.note


def test_mirror_address_that_lacks_it_or_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer
) -> None:
    monkeypatch.setenv("RECPOD_MIRROR", server.url)
    server.files["/SHA256SUMS"] = Served(f"{SHA}  ./other.txt\n".encode(), "text/plain")
    with pytest.raises(FetchError, match="mirror: its SHA256SUMS does not list toy/toy.txt"):
        bring(tmp_path, spec())
    server.files["/SHA256SUMS"] = Served(f"{SHA}  ./toy/toy.txt\n".encode(), "text/plain")
    server.files["/toy/toy.txt"] = Served(BODY[:-6])
    with pytest.raises(FetchError, match="mirror: wrong checksum"):
        bring(tmp_path, spec())
    assert not list(tmp_path.rglob("toy.txt*"))


def test_broken_source_is_told_though_the_next_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer
) -> None:
    put(tmp_path / "mirror/toy/toy.txt", b"damaged")
    (tmp_path / "mirror/SHA256SUMS").write_text(f"{SHA}  toy/toy.txt\n")
    monkeypatch.setenv("RECPOD_MIRROR", str(tmp_path / "mirror"))
    server.files["/toy.txt"] = Served(BODY)
    fetched = bring(tmp_path / "cache", spec(url=f"{server.url}/toy.txt", md5=MD5))
    assert (fetched.source_name, fetched.verified) == ("official address", True)
    assert "failed before: mirror: wrong checksum" in fetched.note


def test_download_damaged_later_is_fetched_again(tmp_path: Path, server: FileServer) -> None:
    server.files["/toy.txt"] = Served(BODY)
    dataset = spec(url=f"{server.url}/toy.txt")
    fetched = bring(tmp_path, dataset)
    assert (fetched.source_name, fetched.note) == ("official address", "unverified: no published checksum")
    assert bring(tmp_path, dataset).source_name == "local cache"
    fetched.path.write_bytes(BODY[:-1])
    again = bring(tmp_path, dataset)
    assert (again.source_name, again.sha256) == ("official address", SHA)
    assert again.path.read_bytes() == BODY


@pytest.mark.parametrize("record", ['{"source": "mir', "[]", "null", '{"sha256": null}', "\udcff"])
def test_a_torn_record_of_a_download_counts_for_nothing(tmp_path: Path, server: FileServer, record: str) -> None:
    server.files["/toy.txt"] = Served(BODY)
    dataset = spec(url=f"{server.url}/toy.txt", md5=MD5)
    path = bring(tmp_path, dataset).path
    Path(f"{path}.source.json").write_bytes(record.encode(errors="surrogateescape"))
    again = bring(tmp_path, dataset)
    assert (again.source_name, again.note) == ("local cache", "agrees with the published checksum")


def test_a_record_is_written_whole_or_not_at_all(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/toy.txt"] = Served(BODY)
    write_text = Path.write_text

    def torn(path: Path, text: str, **options: Any) -> int:
        write_text(path, text[:10], **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(
            Path, "write_text", lambda path, *a, **o: (torn if ".source." in path.name else write_text)(path, *a, **o)
        )
        with pytest.raises(FetchError, match="cannot be written to .*No space left"):
            bring(tmp_path, spec(url=f"{server.url}/toy.txt"))
    assert [path.name for path in (tmp_path / "toy").iterdir()] == ["toy.txt"]


def fake_recbole(folder: Path, recorded: bytes) -> None:
    """A package of recbole's layout whose code must not be imported."""
    put(folder / "recbole/__init__.py", b"raise RuntimeError('imported')")
    put(folder / "recbole/example/toy.txt")
    put(folder / "recbole-9.9.dist-info/METADATA", b"Metadata-Version: 2.1\nName: recbole\nVersion: 9.9\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(recorded).digest()).rstrip(b"=").decode()
    put(folder / "recbole-9.9.dist-info/RECORD", f"recbole/example/toy.txt,sha256={digest},{len(recorded)}\n".encode())


def test_recbole_package_is_read_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_recbole(tmp_path / "site", BODY)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.delitem(sys.modules, "recbole", raising=False)  # another test may have loaded it
    dataset = spec(recbole_example="recbole/example/toy.txt")
    fetched = bring(tmp_path / "cache", dataset)
    assert fetched.path == tmp_path / "site/recbole/example/toy.txt"
    assert (fetched.source_name, fetched.sha256, fetched.verified) == ("recbole package", SHA, True)
    assert fetched.note == "agrees with the file list of recbole 9.9"
    fake_recbole(tmp_path / "site", b"another file")
    with pytest.raises(FetchError, match="recbole package: wrong checksum"):
        bring(tmp_path / "cache", dataset)
    assert "recbole" not in sys.modules


def test_ml_100k_needs_no_network(tmp_path: Path) -> None:
    fetched = bring(tmp_path, load_dataset_spec("ml-100k", cache=tmp_path))
    assert (fetched.source_name, fetched.verified) == ("recbole package", True)
    assert fetched.path.name == "ml-100k.inter"


def test_google_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def bring_body(body: bytes) -> Any:
        def fake(*, id: str, output: str, quiet: bool) -> str:
            asked.append(id)
            Path(output).write_bytes(body)
            return output

        return fake

    monkeypatch.setattr(gdown, "download", bring_body(b"<!DOCTYPE html><html>Quota exceeded</html>"))
    monkeypatch.setenv("RECPOD_GDRIVE_ID", "from-environment")
    with pytest.raises(FetchError, match="Google Drive: brought an HTML page"):
        bring(tmp_path, spec())
    assert not list(tmp_path.rglob("toy.txt*"))
    monkeypatch.setattr(gdown, "download", bring_body(BODY))
    fetched = bring(tmp_path, spec(gdrive_id="from-spec", md5=MD5))
    assert (fetched.source_name, fetched.verified) == ("Google Drive", True)
    assert asked == ["from-environment", "from-spec"]
    assert sorted(p.name for p in (tmp_path / "toy").iterdir()) == ["toy.txt", "toy.txt.source.json"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (requests.exceptions.ConnectionError("Max retries exceeded with url: /uc"), "Google Drive: no connection"),
        (gdown.exceptions.FileURLRetrievalError("Cannot retrieve\nthe public link"), "Cannot retrieve the public link"),
    ],
)
def test_google_drive_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(**_: Any) -> str:
        raise error

    monkeypatch.setattr(gdown, "download", fail)
    with pytest.raises(FetchError, match=message) as caught:
        bring(tmp_path, spec(gdrive_id="x"))
    assert "\n" not in str(caught.value)


def test_all_sources_and_their_reasons_in_one_line(tmp_path: Path) -> None:
    dataset = spec(url="http://127.0.0.1:9/toy.txt")
    with pytest.raises(FetchError) as caught:
        bring(tmp_path / "cache", dataset)
    assert str(caught.value) == (
        f"dataset 'toy' could not be fetched (local cache: no toy/toy.txt in {tmp_path}/cache; "
        "mirror: RECPOD_MIRROR is not set; recbole package: it does not ship this dataset; "
        "official address: no connection to 127.0.0.1; "
        "Google Drive: no id given (gdrive_id, RECPOD_GDRIVE_ID)). "
        f"Put the file at {tmp_path}/cache/toy/toy.txt or set RECPOD_MIRROR to a folder that holds toy/toy.txt."
    )


def test_a_file_of_ones_own_asks_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "mirror/toy/toy.txt")
    monkeypatch.setenv("RECPOD_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(FetchError, match="local file: no file at"):
        bring(tmp_path, spec(path=tmp_path / "gone.txt"))
    fetched = bring(tmp_path, spec(path=put(tmp_path / "here.txt", b"x")))
    assert (fetched.source_name, fetched.sha256) == ("local file", hashlib.sha256(b"x").hexdigest())


def test_reachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer) -> None:
    assert reachable(spec(), tmp_path) == (False, "no source is known")
    assert reachable(spec(url="http://127.0.0.1:9/toy.txt"), tmp_path) == (False, "no connection to 127.0.0.1")
    server.files["/toy.txt"] = Served(BODY)
    assert reachable(spec(url=f"{server.url}/toy.txt"), tmp_path) == (True, "127.0.0.1")
    assert reachable(spec(url=f"{server.url}/gone.txt"), tmp_path) == (False, "127.0.0.1 answered 404")
    assert not server.requests  # HEAD only: nothing was brought
    assert reachable(spec(gdrive_id="x"), tmp_path) == (True, "Google Drive, not checked")
    monkeypatch.setenv("RECPOD_GDRIVE_ID", "x")
    assert reachable(spec(url=f"{server.url}/gone.txt"), tmp_path) == (True, "Google Drive, not checked")
    with monkeypatch.context() as without:
        without.setattr("importlib.util.find_spec", lambda name: None)
        there, problem = reachable(spec(), tmp_path)
        assert not there and "package gdown" in problem
    assert reachable(spec(path=tmp_path / "gone"), tmp_path) == (False, f"no file at {tmp_path}/gone")
    put(tmp_path / "mirror/toy/toy.txt")
    monkeypatch.setenv("RECPOD_MIRROR", str(tmp_path / "mirror"))
    assert reachable(spec(), tmp_path) == (True, "mirror")
    put(tmp_path / "toy.txt")
    assert reachable(spec(), tmp_path) == (True, "local cache")
    assert reachable(load_dataset_spec("ml-100k", cache=tmp_path), tmp_path / "empty") == (True, "recbole package")


def test_parse_sums() -> None:
    text = f"{SHA}  ./a/b.zip\n{SHA.upper()} *c d.txt\n\nnonsense\n"
    assert parse_sums(text) == {"a/b.zip": SHA, "c d.txt": SHA}


def test_store_splits_need_numpy_alone() -> None:
    code = (
        "import sys; import pipelines.data.store, pipelines.data.splits;"
        "print([m for m in ('torch', 'polars', 'pyarrow', 'requests', 'yaml') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
