"""fal's clients at three servers behind HAProxy, each call at the next of them. `make test-fleet` runs all others."""

import ast
import json
import os
import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.cli.launcher import RUN_FILE
from tests.clients.conftest import by_environment, sum_of
from tests.clients.conftest import fixture_picture as picture
from tests.clients.kit import Clients
from tests.nodes.alone import ALONE, reason
from tests.nodes.boxes import taken_for_one
from tests.support.server_process import addresses, is_running, serving, until

ROOT = Path(__file__).parents[2]

__all__ = ["picture"]


@pytest.fixture(scope="module")
def boxes(postgres):
    with taken_for_one(postgres), serving("--model", "instant:5", "--tls-port", "0") as boxes:
        yield boxes


@pytest.fixture
def python(boxes, picture):
    return by_environment(boxes, picture).py


@pytest.fixture
def javascript(boxes, picture):
    clients = Clients({"FAL_KEY": "any:thing", "PICTURE": picture})
    return lambda script, **options: clients.js(script, proxy=f"{boxes.url}/api/fal/proxy", **options)


def test_the_steps_of_a_queue_request_are_answered_by_each_server_in_turn(python, boxes):
    before = calls(boxes)
    handle, events, fetched = python("queue_calls.py")

    assert events["events"][-1]["kind"] == "Completed"
    assert fetched["result"] == fetched["again"]
    assert fetched["result"]["seed"] == 7
    assert handle["handle"]["status_url"].startswith(boxes.tls_url)
    assert all(now >= then + 2 for now, then in zip(calls(boxes), before, strict=True))


def test_a_run_and_a_stream_show_their_output(javascript):
    [result] = javascript("run.mjs")
    [said] = javascript("stream.mjs")

    assert result["data"]["seed"] == said["done"]["seed"] == 7


def test_a_socket_answers_each_input(python):
    [said] = python("realtime.py", use_jwt=False)

    assert [result["request_id"] for result in said["results"]] == ["one", "two"]


def test_a_file_is_uploaded_to_one_server_and_served_by_the_next(javascript):
    [said] = javascript("upload.mjs", size=1024, name="hello.bin", type="application/octet-stream")

    assert (said["status"], said["same"]) == (200, True)


# --- servers that end


@pytest.fixture
def ending(postgres):
    """Three servers of which a test ends one, 0.9 s a picture, one after the other."""
    flags = ("--model", "instant:300", "--max-batch", "1", "--tls-port", "0", "--lease", "2")
    with taken_for_one(postgres), serving(*flags) as boxes:
        yield boxes


def living(boxes):
    """URL and process id of each server that has not ended."""
    found = [json.loads(file.read_text()) for file in boxes.data_dir.glob(f"box*/{RUN_FILE}")]
    return {each["url"]: each["pid"] for each in found if is_running(each["pid"])}


def page(url, path):
    """What a server answers."""
    return urllib.request.urlopen(url + path, timeout=10).read().decode()


def end(boxes, chosen, how):
    """Send a signal to the first server of which `chosen` is true, as soon as there is one."""
    found = []
    until(lambda: found.extend(url for url in living(boxes) if chosen(url)) or found)
    os.kill(living(boxes)[found[0]], how)


@pytest.mark.long
def test_a_subscription_survives_the_death_of_the_server_that_has_its_job(ending, picture):
    with ThreadPoolExecutor(1) as threads:
        subscribed = threads.submit(by_environment(ending, picture).py, "subscribe.py")
        end(ending, lambda url: json.loads(page(url, "/health"))["queue"]["running"], signal.SIGKILL)
        [said] = subscribed.result()

    assert said["result"]["seed"] == 7


@pytest.mark.long
def test_a_server_that_is_told_to_stop_answers_what_waits_on_its_socket(ending, picture):
    def answered(url):
        return sum_of("fourstep_inference_seconds_count", page(url, "/metrics"))

    before = {url: answered(url) for url in living(ending)}
    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(by_environment(ending, picture).py, "sockets.py", what="drained")
        # It has answered one of three, so that the others have arrived.
        end(ending, lambda url: (sending.done() and sending.result()) or answered(url) > before[url], signal.SIGTERM)

        assert sending.result() == [["0", "1", "2"]]


def calls(boxes):
    """Return how many of the queue's calls each server has answered."""
    pages = [page(url, "/metrics") for url in addresses(boxes.data_dir)]
    return [
        sum(sum_of("fourstep_requests_total", page, f'route="{route}"') for route in ("submit", "status", "result"))
        for page in pages
    ]


@pytest.mark.parametrize("name", ALONE)
def test_what_is_left_out_for_several_servers_exists(name):
    path, _, begin = name.partition("::")
    functions = [node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)]

    assert reason(name) == ALONE[name]
    assert any(function.startswith(begin.partition("[")[0] or "test_") for function in functions)
