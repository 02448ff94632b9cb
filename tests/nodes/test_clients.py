"""fal's clients at three servers behind HAProxy, each call at the next of them. `make test-fleet` runs all others."""

import ast
import urllib.request
from pathlib import Path

import pytest

from tests.clients.conftest import by_environment, sum_of
from tests.clients.conftest import fixture_picture as picture
from tests.clients.kit import Clients
from tests.nodes.alone import ALONE, reason
from tests.nodes.boxes import taken_for_one
from tests.support.server_process import addresses, serving

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


def calls(boxes):
    """Return how many of the queue's calls each server has answered."""
    pages = [urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode() for url in addresses(boxes.data_dir)]
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
