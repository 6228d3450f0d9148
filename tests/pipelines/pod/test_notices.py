"""Webhooks: the right form for each receiver; a failure is one warning without the address and stops nothing."""

from __future__ import annotations

import pytest

from pipelines.errors import ConfigError
from pipelines.pod.notices import LONGEST, check_address, payload
from tests.pipelines.pod.conftest import Pod, Server

SECRET = "s3cretpath"


@pytest.mark.parametrize(
    ("address", "keys"),
    [
        ("https://discord.com/api/webhooks/1/x", {"content"}),
        ("https://canary.discord.com/api/webhooks/1/x", {"content"}),
        ("https://discordapp.com/api/webhooks/1/x", {"content"}),
        ("https://hooks.slack.com/services/T/B/x", {"text"}),
        ("https://example.org/hook", {"content", "text"}),
    ],
)
def test_each_receiver_gets_its_form(address: str, keys: set[str]) -> None:
    assert payload(address, "hello") == dict.fromkeys(keys, "hello")


@pytest.mark.parametrize(
    "address", ["discord.com/x", "ftp://host/x", "https:///x", "http://host:port/x", "https://a b/"]
)
def test_what_is_no_address_is_refused_unseen(address: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_address(address)
    assert str(refused.value) == "--webhook: not a web address (it is not shown). give https://HOST/PATH."


def test_start_gate_and_end_are_told(pod: Pod, server: Server) -> None:
    (pod.work / "runs" / "quickstart").mkdir(parents=True)
    training = (
        "metrics = {'gate': {'passed': True}, 'test': {'HR@10': 0.25, 'NDCG@10': 0.125}}\n"
        "pathlib.Path('runs/quickstart/metrics.json').write_text(json.dumps(metrics))"
    )
    done = pod.run("--webhook", f"{server.address}/hook/{SECRET}", training=training, RUNPOD_POD_ID="pod1")
    assert done.returncode == 0 and SECRET not in done.stderr
    first, last = server.messages()
    assert first == "RecPod on pod1: 'quickstart' starts"
    assert last.startswith("RecPod on pod1: 'quickstart' done, gate passed (test HR@10 0.2500, NDCG@10 0.1250) (")
    assert server.messages("text") == server.messages()


@pytest.mark.parametrize(
    ("code", "said"),
    [(3, "done, gate MISSED"), (1, "FAILED with exit code 1: the loss is nan"), (75, "stopped and saved")],
)
def test_other_ends_are_told(pod: Pod, server: Server, code: int, said: str) -> None:
    (pod.work / "runs" / "quickstart").mkdir(parents=True)
    training = (
        "pathlib.Path('runs/quickstart/events.jsonl').write_text("
        "json.dumps({'kind': 'failure', 'message': 'the loss is nan'}) + '\\n')\n"
        f"sys.exit({code})"
    )
    assert pod.run(training=training, RECPOD_WEBHOOK=f"{server.address}/hook").returncode == code
    assert f"'quickstart' {said}" in server.messages()[-1]


def test_results_of_an_earlier_run_are_not_told_again(pod: Pod, server: Server) -> None:
    import os

    metrics = pod.work / "runs" / "old" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"gate": {"passed": true}}')
    os.utime(metrics, (1, 1))
    assert pod.run(RECPOD_WEBHOOK=f"{server.address}/hook").returncode == 0
    assert "gate" not in server.messages()[-1]


def test_a_webhook_that_fails_is_one_warning(pod: Pod, server: Server) -> None:
    server.status = lambda method, path: 404
    done = pod.run("--webhook", f"{server.address}/hook/{SECRET}")
    assert (done.returncode, done.stderr) == (
        0,
        "warning: a notice could not be sent (HTTP 404); the run goes on\n",
    )
    nobody = pod.run("--webhook", f"http://127.0.0.1:9/{SECRET}")
    assert (nobody.returncode, nobody.stderr) == (
        0,
        "warning: a notice could not be sent (Connection refused); the run goes on\n",
    )


def test_a_mistake_before_the_start_is_told(pod: Pod, server: Server) -> None:
    assert pod.run("--webhook", f"{server.address}/hook", "--model", "none").returncode == 2
    (message,) = server.messages()
    assert "did not start: --model: unknown model 'none'" in message
    assert len(message) <= LONGEST
