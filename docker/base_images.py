"""Which image each base tag means: ask the registry, record the digest, and fail when it has changed.

    .venv/bin/python docker/base_images.py                    asks; writes versions.env, base-images.json, Dockerfile
    .venv/bin/python docker/base_images.py --check            asks, and compares
    .venv/bin/python docker/base_images.py --check --offline  compares docker/versions.env with the record alone

Exit code 0: nothing has changed; 1: a tag means another image now or is gone, or versions.env and the record disagree;
2: a registry did not answer. Speaks the registry's HTTP API (v2) with anonymous tokens; proxies come from the
environment (HTTPS_PROXY), a company's certificates from SSL_CERT_FILE.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from pipelines.errors import ConfigError, MachineError, RecPodError
from pipelines.machine import ROOT, VERSIONS_FILE, read_pins

RECORD = ROOT / "docker" / "base-images.json"
DOCKERFILE = ROOT / "Dockerfile"
PREFIX = "BASE_IMAGE_"
SECONDS = 30
# An index lists one manifest a platform; a tag of one platform has the manifest itself.
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
PINNED = re.compile(r"(?P<name>[^@\s]+?):(?P<tag>[\w][\w.-]{0,127})(@(?P<digest>sha256:[0-9a-f]{64}))?")


class RegistryError(MachineError):
    """A registry that cannot be reached, refuses, or answers with something else."""


class TagGoneError(RecPodError):
    """The registry answers, and has no such tag."""

    exit_code = 1


@dataclass(frozen=True)
class Image:
    """A base image by its tag.

    Attributes:
        key: its key in docker/versions.env.
        tag: what a Dockerfile would say, such as ``python:3.11-slim``.
        digest: ``sha256:...`` of the index, or of the manifest where there is no index.
        platforms: ``os/architecture`` of each image in the index; empty where that is not known.
        source: where the digest comes from.
    """

    key: str
    tag: str
    digest: str
    platforms: tuple[str, ...] = ()
    source: str = ""

    @property
    def pin(self) -> str:
        """The value in docker/versions.env."""
        return f"{self.tag}@{self.digest}"


def parse(key: str, value: str) -> Image:
    """The image that a value of docker/versions.env names.

    Raises:
        ConfigError: it is not ``NAME:TAG`` or ``NAME:TAG@sha256:DIGEST``.
    """
    match = PINNED.fullmatch(value)
    if match is None or not key.startswith(PREFIX):
        raise ConfigError(f"'{value}' is no base image", where=key, fix="write NAME:TAG@sha256:DIGEST")
    return Image(key, f"{match['name']}:{match['tag']}", match["digest"] or "")


def address(tag: str) -> tuple[str, str, str]:
    """Registry's address, repository and tag, by the rules that ``docker pull`` has.

    The first part is a host when it has a dot or a port or is localhost; everything else is on Docker Hub, where a name
    without an owner is an official image. This machine's own registries speak plain HTTP.
    """
    name, _, label = tag.rpartition(":")
    host, slash, rest = name.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        return "https://registry-1.docker.io", name if slash else f"library/{name}", label
    local = host.partition(":")[0] in ("localhost", "127.0.0.1")
    return f"{'http' if local else 'https'}://{host}", rest, label


def resolve(image: Image) -> Image:
    """``image`` with the digest that its tag has now; the digest is computed from the answer, not taken on trust.

    Raises:
        RegistryError: the registry cannot be reached, wants a password or contradicts itself.
        TagGoneError: there is no such tag.
    """
    registry, repository, label = address(image.tag)
    url = f"{registry}/v2/{repository}/manifests/{label}"
    headers = {"Accept": ", ".join(MANIFESTS)}
    try:
        body, answer = fetch(url, headers)
    except urllib.error.HTTPError as refusal:
        body, answer = retry(refusal, url, headers, image)
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    if answer.get("Docker-Content-Digest", digest) != digest:
        raise RegistryError(f"the answer is not what its digest says ({digest})", where=image.tag, fix="ask again")
    return replace(image, digest=digest, platforms=platforms_of(body))


def retry(refusal: urllib.error.HTTPError, url: str, headers: dict[str, str], image: Image) -> tuple[bytes, Message]:
    """The second request, with the anonymous token that the first was refused for; other refusals are errors."""
    challenge = refusal.headers.get("WWW-Authenticate", "")
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if refusal.code == 401 and challenge.lower().startswith("bearer") and "realm" in fields:
        try:
            query = urlencode({name: fields[name] for name in ("service", "scope") if name in fields})
            answer = json.loads(fetch(f"{fields['realm']}?{query}", {})[0])
            token = answer.get("token") or answer["access_token"]
            return fetch(url, headers | {"Authorization": f"Bearer {token}"})
        except urllib.error.HTTPError as second:
            refusal = second
        except (ValueError, KeyError, AttributeError) as error:
            raise RegistryError("the token server's answer holds no token", where=image.tag) from error
    if refusal.code == 404:
        fix = "take another tag in docker/versions.env"
        raise TagGoneError("the registry has no such tag", where=f"{image.key} ({image.tag})", fix=fix)
    hint = "wait: too many requests" if refusal.code == 429 else "check the name"
    raise RegistryError(f"the registry answers {refusal.code}", where=image.tag, fix=hint)


def fetch(url: str, headers: dict[str, str]) -> tuple[bytes, Message]:
    """Body and headers of an answer.

    Raises:
        urllib.error.HTTPError: the answer is a refusal.
        RegistryError: there is no answer.
    """
    request = urllib.request.Request(url)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # a token is for this host alone
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.read(), answer.headers
    except urllib.error.HTTPError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:  # no connection, no address, half an answer
        reason = getattr(error, "reason", error)
        fix = "check the network, HTTPS_PROXY and SSL_CERT_FILE"
        raise RegistryError(f"no answer ({reason})", where=urlsplit(url).netloc, fix=fix) from error


def platforms_of(body: bytes) -> tuple[str, ...]:
    """The platforms of an index; none for a manifest. Attestations, which have platform unknown, do not count."""
    found = {
        f"{entry['platform']['os']}/{entry['platform']['architecture']}"
        for entry in json.loads(body).get("manifests", [])
        if entry.get("platform", {}).get("os", "unknown") != "unknown"
    }
    return tuple(sorted(found))


def read_record(path: Path) -> dict[str, Image]:
    """The recorded images by key; empty without a file."""
    if not path.is_file():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))["images"]
    return {row["key"]: Image(**(row | {"platforms": tuple(row["platforms"])})) for row in rows}


def write_record(path: Path, images: Sequence[Image]) -> None:
    """Write the record."""
    text = json.dumps({"images": [asdict(image) for image in images]}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def write_pins(path: Path, images: Sequence[Image]) -> None:
    """Put the digests into versions.env; every other line stays as it is."""
    text = path.read_text(encoding="utf-8")
    for image in images:
        text = re.sub(rf"^{image.key}=.*$", f"{image.key}={image.pin}", text, flags=re.MULTILINE)
    path.write_text(text, encoding="utf-8")


def write_defaults(path: Path, before: Sequence[Image], after: Sequence[Image]) -> None:
    """The Dockerfile's own defaults follow; a Dockerfile without these pins stays as it is."""
    text = path.read_text(encoding="utf-8")
    for old, new in zip(before, after, strict=True):
        text = text.replace(f"={old.pin}\n", f"={new.pin}\n")
    path.write_text(text, encoding="utf-8")


def disagreements(pinned: Sequence[Image], recorded: dict[str, Image]) -> list[str]:
    """Where versions.env and the record say different things, a line each."""
    lines = [f"{key} is recorded, but not pinned" for key in sorted(recorded.keys() - {image.key for image in pinned})]
    for image in pinned:
        known = recorded.get(image.key)
        if known is None or known.pin != image.pin:
            lines.append(f"{image.key} is pinned to {image.pin}, recorded is {known.pin if known else 'nothing'}")
    return lines


def compare(pinned: Sequence[Image], recorded: dict[str, Image], *, offline: bool) -> list[str]:
    """What ``--check`` has to say, a line each; nothing when all is as recorded."""
    lines = disagreements(pinned, recorded)
    for image in () if offline else pinned:
        try:
            now = resolve(image)
        except TagGoneError as gone:
            lines.append(str(gone))
            continue
        if now.digest != image.digest:
            lines.append(f"{image.key}: {image.tag} now is {now.digest}, pinned is {image.digest or 'nothing'}")
    return lines


def record(pinned: Sequence[Image], versions: Path, path: Path, dockerfile: Path) -> None:
    """Ask for every tag, and write the files once all have answered."""
    today = datetime.now(UTC).date().isoformat()
    known = read_record(path)
    images = []
    for image in pinned:
        now = replace(resolve(image), source=f"registry, {today}")
        before = known.get(image.key)
        # An unchanged digest that was asked for before keeps its date.
        same = before is not None and before.pin == now.pin and before.source.startswith("registry")
        images.append(before if before is not None and same else now)
        print(f"{image.key}={now.pin}" + ("" if now.digest == image.digest else f" (was {image.digest or 'nothing'})"))
    write_pins(versions, images)
    write_defaults(dockerfile, pinned, images)
    write_record(path, images)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when something has changed")
    parser.add_argument("--offline", action="store_true", help="with --check: ask no registry")
    parser.add_argument("--versions", type=Path, default=VERSIONS_FILE, help="file of pins")
    parser.add_argument("--record", type=Path, default=RECORD, help="file of digests")
    parser.add_argument("--dockerfile", type=Path, default=DOCKERFILE, help="file whose defaults follow")
    options = parser.parse_args(arguments)
    if options.offline and not options.check:
        parser.error("--offline goes with --check")
    try:
        pins = {key: value for key, value in read_pins(options.versions).items() if key.startswith(PREFIX)}
        pinned = [parse(key, value) for key, value in pins.items()]
        if not options.check:
            record(pinned, options.versions, options.record, options.dockerfile)
            return 0
        lines = compare(pinned, read_record(options.record), offline=options.offline)
    except RecPodError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for line in lines:
        print(line)
    if lines:
        print("Look at what has changed, then record it: .venv/bin/python docker/base_images.py")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
