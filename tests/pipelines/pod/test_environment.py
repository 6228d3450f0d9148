"""Training sees named variables only; secrets come from variables or files and are never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.pod.checks import check_wandb_key
from pipelines.pod.environment import read_secret, set_up_environment, training_environment, withheld
from pipelines.pod.flags import parse
from tests.pipelines.pod.conftest import Pod

CANARY = "canary" * 7  # 42 letters: long enough for a W&B key


def test_only_named_variables_go_on(tmp_path: Path) -> None:
    given = {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "2",
        "https_proxy": "p",
        "RECPOD_DATA": "d",
        "WANDB_MODE": "offline",
        "NCCL_DEBUG": "INFO",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "GITHUB_TOKEN": CANARY,
        "RUNPOD_API_KEY": CANARY,
        "RUNPOD_API_KEY_FILE": "f",
        "RECPOD_WEBHOOK": CANARY,
        "RECPOD_STOP_COMMAND": f"curl -H {CANARY}",
        "RECPOD_RUNPOD_API": "http://provider",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "RECPOD_SECRETS": str(tmp_path),
    }
    kept = training_environment(given)
    assert CANARY not in kept.values()
    assert set(kept) == {
        "PATH",
        "OMP_NUM_THREADS",
        "CUBLAS_WORKSPACE_CONFIG",
        "https_proxy",
        "RECPOD_DATA",
        "WANDB_MODE",
        "NCCL_DEBUG",
        "RECPOD_SECRETS",
    }
    assert not {"RECPOD_STOP_COMMAND", "RECPOD_RUNPOD_API"} & set_up_environment(given).keys()
    assert withheld(given) == sorted(given.keys() - kept.keys())


def test_the_list_can_be_extended_but_not_to_the_pod_s_key() -> None:
    given = {
        "AWS_A": "1",
        "AWS_B": "2",
        "ONE": "3",
        "RUNPOD_API_KEY": CANARY,
        "RECPOD_ENV_ALLOW": "AWS_*, ONE,RUNPOD_*",
    }
    assert training_environment(given).keys() == {"AWS_A", "AWS_B", "ONE", "RECPOD_ENV_ALLOW"}
    with pytest.raises(ConfigError, match=r"RECPOD_ENV_ALLOW: '\*' is no name of a variable"):
        training_environment({"RECPOD_ENV_ALLOW": "*"})


def test_a_secret_comes_from_a_variable_a_named_file_or_a_mounted_one(tmp_path: Path) -> None:
    mounted, pointed = tmp_path / "wandb_api_key", tmp_path / "elsewhere"
    environ = {"RECPOD_SECRETS": str(tmp_path)}
    assert read_secret("WANDB_API_KEY", environ) is None
    mounted.write_text("mounted\n")
    assert read_secret("WANDB_API_KEY", environ) == "mounted"
    pointed.write_text("pointed\n")
    environ["WANDB_API_KEY_FILE"] = str(pointed)
    assert read_secret("WANDB_API_KEY", environ) == "pointed"
    assert training_environment(environ)["WANDB_API_KEY"] == "pointed"
    assert "WANDB_API_KEY_FILE" not in training_environment(environ)
    environ["WANDB_API_KEY"] = "given"
    assert read_secret("WANDB_API_KEY", environ) == "given"
    assert "WANDB_API_KEY" not in set_up_environment(environ)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            None,
            r"WANDB_API_KEY_FILE: the secret's file cannot be read \(No such file or directory\)\. mount it readable",
        ),
        ("", "WANDB_API_KEY_FILE: the secret is empty, or more than one word. store the bare value there"),
        ("canary two", "WANDB_API_KEY_FILE: the secret is empty, or more than one word. store the bare value there"),
    ],
)
def test_a_secret_s_file_that_will_not_do_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=said) as refused:
        read_secret("WANDB_API_KEY", {"WANDB_API_KEY_FILE": str(path)})
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("key", ["short", "x" * 39, "k" * 40 + "!", "https://wandb.ai/authorize"])
def test_what_cannot_be_a_wandb_key_is_refused_unseen(key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_wandb_key(parse([]), {"WANDB_API_KEY": key})
    expected = (
        "WANDB_API_KEY: not a W&B key (it is not shown). copy it anew from wandb.ai/authorize, or give --no-wandb."
    )
    assert str(refused.value) == expected
    check_wandb_key(parse(["--no-wandb"]), {"WANDB_API_KEY": key})


@pytest.mark.parametrize("key", ["a1" * 20, f"local-{'a1' * 20}", "wandb_v1_" + "x" * 77, "head.body.sign"])
def test_wandb_keys_pass(key: str) -> None:
    check_wandb_key(parse([]), {"WANDB_API_KEY": key})


def test_canaries_reach_neither_training_nor_the_screen_nor_a_file(pod: Pod, tmp_path: Path) -> None:
    secrets = pod.work / "secrets"
    secrets.mkdir()
    (secrets / "runpod_api_key").write_text(f"{CANARY}file")
    changes = {"GITHUB_TOKEN": CANARY, "RECPOD_WEBHOOK": f"http://127.0.0.1:9/{CANARY}", "WANDB_API_KEY": CANARY}
    done = pod.run("--price-per-hour", "1", training="sys.exit(1)", **changes)
    assert done.returncode == 1
    assert CANARY not in done.stdout + done.stderr
    environment = pod.seen()["environment"]
    assert environment.pop("WANDB_API_KEY") == CANARY  # the tracker's own key is what it is for
    assert CANARY not in str(environment)
    (pod.work / "seen.json").unlink()
    (secrets / "runpod_api_key").unlink()
    files = [path for path in pod.work.rglob("*") if path.is_file()]
    assert [path.name for path in files if CANARY in path.read_text(errors="replace")] == []
    assert any(path.name == "spend.json" for path in files)
