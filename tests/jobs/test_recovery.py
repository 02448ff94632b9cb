"""Engine processes are killed under a serving server: nobody who called may notice more than a delay."""

import json
import os
import signal
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.server_process import APP, CALL, post, serving, submitted, until


def kill_engine(server, number=signal.SIGKILL):
    """End the engine's process."""
    os.kill(server.get("/health")["engines"][0]["pid"], number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_calls_in_flight_are_answered_although_their_engine_is_killed(number):
    with serving("--model", "instant:200", "--max-batch", "1") as server, ThreadPoolExecutor(6) as callers:
        calls = [callers.submit(post, server, f"/run/{APP}") for _ in range(6)]
        until(lambda: server.get("/health")["state"] == "BUSY")
        kill_engine(server, number)

        answers = [call.result() for call in calls]

        assert [answer["seed"] for answer in answers] == [7] * 6
        assert server.get("/health")["engines"][0]["restarts"] == 1


def test_a_queued_job_survives_its_engine():
    with serving("--model", "instant:300") as server:
        path = submitted(server)
        kill_engine(server)

        until(lambda: server.get(f"{path}/status")["status"] == "COMPLETED")

        assert server.get(path)["seed"] == 7


@pytest.mark.slow
def test_the_picture_is_the_same_after_the_engine_was_killed(demo):
    before = post(demo, f"/run/{APP}")["images"]
    path = submitted(demo)
    kill_engine(demo)

    until(lambda: demo.get(f"{path}/status")["status"] == "COMPLETED")

    assert demo.get(path)["images"] == before


@pytest.mark.parametrize(
    ("changes", "key"),
    [({}, ""), ({"strength": "CANARY"}, ""), ({"image_url": "data:CANARY"}, ""), ({}, "x")],
    ids=["good", "bad strength", "bad image", "wrong key"],
)
def test_what_a_caller_sent_is_in_no_log_and_no_error(tmp_path, changes, key):
    canary = "canary-7f3a"
    changes = {name: text.replace("CANARY", canary) for name, text in changes.items()}
    body = json.dumps({**CALL, "prompt": canary, **changes}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Key me:{canary}{key}"}
    with serving("--model", "instant:1", data_dir=tmp_path, env={"FOURSTEP_KEYS": f"me:{canary}"}) as server:
        answer = answered(f"{server.url}/run/{APP}?fal_jwt_token={canary}", body, headers)

    log = (tmp_path / "log").read_text()
    assert canary not in answer
    assert "POST /run/" in log
    assert canary not in log


def answered(url, body, headers):
    """What a call is answered, whatever its status."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.read().decode()
