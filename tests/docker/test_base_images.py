"""Digests of base images: asked for with tokens, recorded, compared; against a registry in small and a real one."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pipelines.errors import ConfigError
from pipelines.machine import package_pins, read_pins
from tests.docker.conftest import ROOT, absent, brought, load
from tests.docker.registries import FakeRegistry, fake_registry, free_port, index, real_registry

OTHER = "sha256:" + "a" * 64
PINS = "# pins\nPYTHON_MIN=3.11\n{}\nTORCH=2.13.0\n"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return load("base_images")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    manifests = {"library/python:3.11": index("amd64", "arm64"), "team/cuda:12": b'{"schemaVersion": 2, "config": {}}'}
    with fake_registry(FakeRegistry(manifests)) as running:
        yield running


@pytest.fixture
def files(tmp_path: Path, registry: FakeRegistry) -> list[str]:
    """A file of pins with tags alone, and no record yet; as arguments."""
    lines = f"BASE_IMAGE_CPU={registry.host}/library/python:3.11\nBASE_IMAGE_CUDA={registry.host}/team/cuda:12"
    (tmp_path / "versions.env").write_text(PINS.format(lines))
    return arguments(tmp_path)


def arguments(folder: Path) -> list[str]:
    (folder / "Dockerfile").touch()
    files = {"versions": "versions.env", "record": "base-images.json", "dockerfile": "Dockerfile"}
    return [word for name, file in files.items() for word in (f"--{name}", str(folder / file))]


def pins(folder: Path) -> dict[str, str]:
    return read_pins(folder / "versions.env")


def test_the_repository_s_pins_and_record_agree(script: ModuleType) -> None:
    assert script.main(["--check", "--offline"]) == 0
    recorded = script.read_record(script.RECORD)
    assert set(recorded) == {"BASE_IMAGE_CPU", "BASE_IMAGE_CUDA", "BASE_IMAGE_CUDA_DEVEL"}
    assert all(image.source and image.digest.startswith("sha256:") for image in recorded.values())


def test_base_images_are_not_taken_for_packages() -> None:
    assert not [name for kind in ("cpu", "cuda") for name in package_pins(kind) if "image" in name]


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("python:3.11", ("https://registry-1.docker.io", "library/python", "3.11")),
        ("nvidia/cuda:12.8.1-base", ("https://registry-1.docker.io", "nvidia/cuda", "12.8.1-base")),
        ("quay.io/a/b/c:1", ("https://quay.io", "a/b/c", "1")),
        ("box:5000/x:2", ("https://box:5000", "x", "2")),
        ("localhost:5000/x:2", ("http://localhost:5000", "x", "2")),
    ],
)
def test_a_tag_leads_to_its_registry(script: ModuleType, tag: str, expected: tuple[str, str, str]) -> None:
    assert script.address(tag) == expected


@pytest.mark.parametrize(
    "value", ["python", "python:", "python:3.11@sha256:12", "python:3.11@md5:" + "a" * 64, "a b:1"]
)
def test_a_value_that_is_no_image_is_an_error(script: ModuleType, value: str) -> None:
    with pytest.raises(ConfigError, match="BASE_IMAGE_X: .*is no base image"):
        script.parse("BASE_IMAGE_X", value)


def test_recording_asks_with_a_token_and_writes_both_files(
    script: ModuleType, registry: FakeRegistry, files: list[str], tmp_path: Path
) -> None:
    assert script.main(files) == 0
    assert "/token?service=fake&scope=repository%3Alibrary%2Fpython%3Apull" in registry.asked
    assert all(kind in registry.accepts[0] for kind in script.MANIFESTS), "else an index is turned into one platform"
    cpu, cuda = registry.digest("library/python:3.11"), registry.digest("team/cuda:12")
    assert pins(tmp_path) == {
        "PYTHON_MIN": "3.11",
        "BASE_IMAGE_CPU": f"{registry.host}/library/python:3.11@{cpu}",
        "BASE_IMAGE_CUDA": f"{registry.host}/team/cuda:12@{cuda}",
        "TORCH": "2.13.0",
    }
    rows = json.loads((tmp_path / "base-images.json").read_text())["images"]
    assert [row["platforms"] for row in rows] == [["linux/amd64", "linux/arm64"], []]
    assert all(row["source"].startswith("registry, 20") for row in rows)
    assert script.main([*files, "--check"]) == 0


def test_the_dockerfile_s_defaults_follow(
    script: ModuleType, registry: FakeRegistry, files: list[str], tmp_path: Path
) -> None:
    assert script.main(files) == 0
    before = pins(tmp_path)["BASE_IMAGE_CUDA"]
    text = "ARG CUDA_BASE_IMAGE={}\nFROM $CUDA_BASE_IMAGE\n"
    (tmp_path / "Dockerfile").write_text(text.format(before))
    registry.manifests["team/cuda:12"] = index("amd64")
    assert script.main(files) == 0
    after = pins(tmp_path)["BASE_IMAGE_CUDA"]
    assert after != before and (tmp_path / "Dockerfile").read_text() == text.format(after)


def test_the_real_dockerfile_has_its_defaults_in_that_form(script: ModuleType) -> None:
    text = script.DOCKERFILE.read_text(encoding="utf-8")
    for key in ("BASE_IMAGE_CPU", "BASE_IMAGE_CUDA"):
        assert text.count(f"={read_pins()[key]}\n") == 1


def test_a_moved_tag_is_found_and_can_be_recorded(
    script: ModuleType, registry: FakeRegistry, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(files)
    registry.manifests["library/python:3.11"] = index("amd64")
    assert script.main([*files, "--check"]) == 1
    out = capsys.readouterr().out
    assert "BASE_IMAGE_CPU: " in out and registry.digest("library/python:3.11") in out and "BASE_IMAGE_CUDA:" not in out
    assert registry.digest("library/python:3.11") not in pins(tmp_path)["BASE_IMAGE_CPU"], "a check writes nothing"
    assert script.main(files) == 0 and script.main([*files, "--check"]) == 0


@pytest.mark.parametrize("offline", [True, False])
def test_pins_and_record_that_disagree_are_found(
    script: ModuleType, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], offline: bool
) -> None:
    script.main(files)
    versions = tmp_path / "versions.env"
    text = versions.read_text()
    versions.write_text(text.replace(pins(tmp_path)["BASE_IMAGE_CPU"].partition("@")[2], OTHER))
    capsys.readouterr()
    assert script.main([*files, "--check", *(["--offline"] if offline else [])]) == 1
    assert f"@{OTHER}, recorded is" in capsys.readouterr().out
    versions.write_text(text.replace("BASE_IMAGE_CUDA=", "BASE_IMAGE_NEW="))
    assert script.main([*files, "--check", "--offline"]) == 1
    out = capsys.readouterr().out
    assert "BASE_IMAGE_CUDA is recorded, but not pinned" in out and "recorded is nothing" in out


def test_a_tag_that_is_gone_counts_as_changed(
    script: ModuleType, registry: FakeRegistry, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(files)
    del registry.manifests["team/cuda:12"]
    assert script.main([*files, "--check"]) == 1
    assert "BASE_IMAGE_CUDA" in capsys.readouterr().out
    before = (tmp_path / "versions.env").read_text()
    assert script.main(files) == 1
    assert "no such tag" in capsys.readouterr().err and (tmp_path / "versions.env").read_text() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"refuse": 500}, "the registry answers 500"),
        ({"refuse": 429}, "the registry answers 429. wait: too many requests"),
        ({"token_answer": {}}, "no token"),
        ({"token_answer": {"token": "wrong"}}, "the registry answers 401"),
        ({"lie": True}, "not what its digest says"),
    ],
)
def test_a_registry_that_refuses_or_lies_is_one_line_and_code_2(
    script: ModuleType,
    registry: FakeRegistry,
    files: list[str],
    capsys: pytest.CaptureFixture[str],
    change: dict,
    message: str,
) -> None:
    assert script.main(files) == 0
    for name, value in change.items():
        setattr(registry, name, value)
    capsys.readouterr()
    assert script.main([*files, "--check"]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_without_a_network_it_is_one_line_and_code_2(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = f"127.0.0.1:{free_port()}/x:1@{OTHER}"
    (tmp_path / "versions.env").write_text(PINS.format(f"BASE_IMAGE_CPU={value}"))
    script.write_record(tmp_path / "base-images.json", [script.parse("BASE_IMAGE_CPU", value)])
    assert script.main([*arguments(tmp_path), "--check"]) == 2
    assert "no answer (" in (err := capsys.readouterr().err) and err.count("\n") == 1
    assert script.main([*arguments(tmp_path), "--check", "--offline"]) == 0, "this needs no network"


def layer(text: str) -> bytes:
    """A root file system of one file."""
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo("file")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
        return buffer.getvalue()


@pytest.fixture
def push(tmp_path: Path) -> Iterator:
    """Makes an image of one file, pushes it with the engine, and returns the digest that the engine reports."""
    docker = pytest.importorskip("docker")
    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except docker.errors.DockerException:
        absent("the digest of a pushed image: no container engine answers")
    made: set[str] = set()

    def push_image(name: str, text: str) -> str:
        archive = tmp_path / "layer.tar"
        archive.write_bytes(layer(text))
        client.api.import_image_from_file(str(archive), repository=name, tag="1")
        made.add(client.images.get(f"{name}:1").id)
        answers = list(client.api.push(name, tag="1", stream=True, decode=True))
        assert not [answer for answer in answers if "error" in answer], answers
        return next(answer["aux"]["Digest"] for answer in answers if "aux" in answer)

    yield push_image
    for identity in made:  # by identity: a second push leaves the first without a name
        client.images.remove(identity, force=True)


@pytest.mark.container
def test_a_real_registry_and_a_real_image(
    script: ModuleType, push, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = brought("docker-registry")
    with real_registry(program, tmp_path) as host:
        name = f"{host}/recpod-supply/base"
        first = push(name, "first")
        (tmp_path / "versions.env").write_text(PINS.format(f"BASE_IMAGE_CPU={name}:1"))
        assert script.main(arguments(tmp_path)) == 0
        assert pins(tmp_path)["BASE_IMAGE_CPU"] == f"{name}:1@{first}"
        stored = tmp_path / "store/docker/registry/v2/blobs/sha256" / first[7:9] / first[7:] / "data"
        assert hashlib.sha256(stored.read_bytes()).hexdigest() == first[7:]
        assert script.main([*arguments(tmp_path), "--check"]) == 0
        second = push(name, "second")
        assert second != first
        capsys.readouterr()
        assert script.main([*arguments(tmp_path), "--check"]) == 1
        assert f"now is {second}, pinned is {first}" in capsys.readouterr().out
        (tmp_path / "versions.env").write_text(PINS.format(f"BASE_IMAGE_CPU={name}:none"))
        assert script.main(arguments(tmp_path)) == 1
    assert script.main([*arguments(tmp_path), "--check"]) == 2, "the registry has ended"


def test_the_check_runs_as_a_command(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "docker" / "base_images.py"), "--check", "--offline"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
