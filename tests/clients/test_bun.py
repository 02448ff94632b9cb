"""`@fal-ai/client` as published, in Bun, whose TLS is BoringSSL: fal's own host names, and https on localhost."""

import pytest

from tests.clients.kit import Clients

PROXY_ROUTE = "/api/fal/proxy"


@pytest.fixture
def run(takeover):
    """Run a script in the sandbox, where fal's names lead to the server."""
    return takeover.clients.bun


@pytest.fixture
def run_slow(slow, picture):
    """Run a script against the slow server's https port."""
    clients = Clients({"FAL_KEY": "any:thing", "PICTURE": picture, "NODE_EXTRA_CA_CERTS": str(slow.ca)})
    return lambda script, **options: clients.bun(script, proxy=slow.tls_url + PROXY_ROUTE, **options)


def test_run(run):
    [result] = run("run.mjs")

    assert result["data"]["seed"] == 7


def test_subscribe_by_polling(run):
    [said] = run("subscribe.mjs", mode="polling")

    assert said["updates"][-1]["status"] == "COMPLETED"
    assert said["result"]["data"]["seed"] == 7


def test_subscribe_by_the_stream_of_states(run):
    [said] = run("subscribe.mjs", mode="streaming")

    assert said["updates"][-1]["status"] == "COMPLETED"
    assert said["result"]["data"]["seed"] == 7


def test_queue_calls_one_by_one(run):
    [said] = run("queue.mjs")

    assert said["submitted"]["status"] == "IN_QUEUE"
    assert said["result"]["data"] == said["again"]["data"]


@pytest.mark.parametrize(("options", "was"), [({"behind": 6}, "IN_QUEUE"), ({"whenRunning": True}, "IN_PROGRESS")])
def test_cancel(options, was, run_slow):
    [said] = run_slow("cancel.mjs", **options)

    assert said["was"] == was
    assert (said["status"]["status"], said["result"]["status"]) == ("COMPLETED", 499)


@pytest.mark.parametrize("mode", ["server", "client"])
def test_stream_of_the_output_by_key_and_by_token(mode, run):
    [said] = run("stream.mjs", connectionMode=mode)

    assert said["done"]["seed"] == 7
    assert len(said["events"]) > 1


@pytest.mark.parametrize("size", [1024, 5 * 1024 * 1024])
def test_upload(size, run):
    [said] = run("upload.mjs", size=size, name="file.bin", type="application/octet-stream")

    assert said["url"].startswith("https://v3.fal.media/files/")
    assert (said["status"], said["same"]) == (200, True)


def test_realtime(run):
    [said] = run("realtime.mjs")

    assert [result["request_id"] for result in said["results"]] == ["one", "two"]
    assert said["errors"] == []


@pytest.mark.parametrize("trusts", [True, False])
def test_the_certificate_is_taken_from_who_is_told_to_trust_the_ca_alone(trusts, instant):
    env = {"NODE_EXTRA_CA_CERTS": str(instant.ca)} if trusts else {}

    [said] = Clients(env).bun("get.mjs", url=instant.tls_url + "/health")

    assert said == (200 if trusts else "UNABLE_TO_VERIFY_LEAF_SIGNATURE")
