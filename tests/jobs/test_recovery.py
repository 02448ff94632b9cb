"""Engine processes are killed under a serving server: no caller may notice more than a delay."""

import json
import os
import signal
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.server_process import APP, CALL, post, serving, submitted, until


def kill_engine(server):
    """End the engine's process."""
    os.kill(server.get("/health")["engines"][0]["pid"], signal.SIGKILL)


@pytest.fixture(scope="module")
def server():
    """A server whose pictures take a fifth of a second, one after the other."""
    with serving("--model", "instant:200", "--max-batch", "1") as found:
        yield found


def restarts(server):
    """How often its engine was replaced."""
    return server.get("/health")["engines"][0]["restarts"]


def test_calls_in_flight_are_answered_although_their_engine_is_killed(server):
    before = restarts(server)
    with ThreadPoolExecutor(6) as callers:
        calls = [callers.submit(post, server, f"/run/{APP}") for _ in range(6)]
        until(lambda: server.get("/health")["state"] == "BUSY")
        kill_engine(server)

        answers = [call.result() for call in calls]

    assert [answer["seed"] for answer in answers] == [7] * 6
    assert restarts(server) == before + 1


def test_a_queued_job_survives_its_engine(server):
    path = submitted(server)
    kill_engine(server)

    until(lambda: server.get(f"{path}/status")["status"] == "COMPLETED")

    assert server.get(path)["seed"] == 7


@pytest.mark.long
@pytest.mark.slow
def test_the_picture_is_the_same_after_the_engine_was_killed(demo):
    before = post(demo, f"/run/{APP}")["images"]
    path = submitted(demo)
    kill_engine(demo)

    until(lambda: demo.get(f"{path}/status")["status"] == "COMPLETED")

    assert demo.get(path)["images"] == before


CANARY = "canary-7f3a"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """A server whose key is the canary, its log at `data_dir/log`."""
    data_dir = tmp_path_factory.mktemp("keyed")
    with serving("--model", "instant:1", data_dir=data_dir, env={"FOURSTEP_KEYS": f"me:{CANARY}"}) as found:
        yield found


@pytest.mark.parametrize(
    ("changes", "key"),
    [({}, ""), ({"strength": CANARY}, ""), ({"image_url": f"data:{CANARY}"}, ""), ({}, "x")],
    ids=["good", "bad strength", "bad image", "wrong key"],
)
def test_what_a_caller_sent_is_in_no_log_and_no_error(keyed, changes, key):
    body = json.dumps({**CALL, "prompt": CANARY, **changes}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Key me:{CANARY}{key}"}
    log = keyed.data_dir / "log"
    calls = log.read_text().count("POST /run/")

    answer = answered(f"{keyed.url}/run/{APP}?fal_jwt_token={CANARY}", body, headers)

    until(lambda: log.read_text().count("POST /run/") > calls)
    assert CANARY not in answer
    assert CANARY not in log.read_text()


def answered(url, body, headers):
    """What a call is answered, whatever its status."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.read().decode()
