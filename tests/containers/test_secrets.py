"""No secret that was lying about reaches an image, a log or a run's folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.containers.conftest import CANARIES, Start, finish
from tests.containers.test_training import GATE_MISSED, SMALL


def found_in(chunks: Iterable[bytes], words: Iterable[str]) -> set[str]:
    """Which of ``words`` stand in a stream of bytes, borders between chunks included."""
    wanted, found, tail = [word.encode() for word in words], set(), b""
    keep = max(map(len, wanted)) - 1
    for chunk in chunks:
        text = tail + chunk
        found |= {word.decode() for word in wanted if word in text}
        tail = text[-keep:]
    return found


def test_the_search_finds_what_is_cut_in_two() -> None:
    canary = CANARIES["build"]
    assert found_in([b"x" * 50 + canary[:9].encode(), canary[9:].encode()], CANARIES.values()) == {canary}
    assert found_in([b"nothing"], CANARIES.values()) == set()


def test_no_layer_and_no_history_holds_a_secret_of_the_build(engine: Any, image: str) -> None:
    built = engine.images.get(image)
    assert found_in(built.save(chunk_size=2**22), CANARIES.values()) == set()
    told = json.dumps([built.history(), built.attrs])
    assert not [canary for canary in CANARIES.values() if canary in told]


def test_no_file_of_the_extras_is_in_the_image(start: Start) -> None:
    names = "-name 'torch*.whl' -o -name certificates.pem -o -name 'canary*'"
    search = f"find / -xdev \\( {names} \\) -not -path '/usr/*'; ls -d /build /root/.cache; python -m pip --version"
    code, said = finish(start("sh", "-c", f"({search}) 2>/dev/null"))
    assert (said, code != 0) == ("", True)  # nothing of what made the environment, pip neither


def test_no_log_and_no_run_folder_holds_a_secret(start: Start, volume: Path, tmp_path: Path) -> None:
    secret = tmp_path / "mlflow_tracking_password"
    secret.write_text(CANARIES["file"])
    secret.chmod(0o644)
    names = ("WANDB_API_KEY", "RUNPOD_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MLFLOW_TRACKING_TOKEN")
    container = start(
        *SMALL,
        environment=dict.fromkeys(names, CANARIES["environment"]),
        volumes={
            str(volume): {"bind": "/workspace", "mode": "rw"},
            str(secret): {"bind": f"/run/secrets/{secret.name}", "mode": "ro"},
        },
    )
    code, said = finish(container)
    assert code == GATE_MISSED, said
    assert not [canary for canary in CANARIES.values() if canary in said]
    files = [path for path in volume.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert found_in((path.read_bytes() for path in files), CANARIES.values()) == set()
