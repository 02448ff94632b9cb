"""Requests as tools send them that can't be run here, with what they read of the answers: n8n's nodes, MCP servers."""

import contextlib
import http.client
import json
from urllib.parse import urlsplit

import pytest

from tests.support.server_process import until

# What is sent with every request: by n8n's helper for nodes, by its node for plain HTTP requests, by an MCP server.
NODE = {
    "accept": "application/json, text/plain, */*",
    "user-agent": "n8n",
    "accept-encoding": "gzip, compress, deflate, br",
    "authorization": "Key any:thing",
}
HTTP_REQUEST = NODE | {
    "accept": "application/json,text/html,application/xhtml+xml,application/xml,text/*;q=0.9, image/*;q=0.8, */*;q=0.7"
}
MCP = NODE | {"accept": "*/*", "user-agent": "python-httpx/0.28.1", "accept-encoding": "gzip, deflate"}
QUEUE = "https://queue.fal.run/fal-ai/lcm-sd15-i2i"


@pytest.fixture(params=[NODE, HTTP_REQUEST, MCP], ids=["n8n's node for fal", "n8n's HTTP Request", "MCP server"])
def ask(request, instant):
    """Send a request to one of fal's addresses; return the status and what the answer has."""

    def ask(method, url, body=None):
        target = urlsplit(url)
        headers = request.param | {"host": target.netloc}
        if body is not None:
            headers["content-type"] = "application/json"
        with contextlib.closing(http.client.HTTPConnection(instant.host, timeout=30)) as connection:
            connection.request(method, target.path + (f"?{target.query}" if target.query else ""), body, headers)
            answer = connection.getresponse()
            kind, content = answer.headers.get("content-type", ""), answer.read()
            return answer.status, json.loads(content) if kind == "application/json" else content

    return ask


@pytest.fixture
def call(picture):
    """The body of a call, with the texts that a form has for numbers and flags read as JSON."""
    form = {"strength": "0.5", "num_images": "1", "enable_safety_checks": "false", "seed": "7"}
    read = {name: json.loads(value) for name, value in form.items()}
    return lambda **changes: json.dumps({"prompt": "a beach", "image_url": picture, **read, **changes})


@pytest.mark.parametrize("query", ["", "?logs=1"])
def test_the_addresses_of_an_answer_lead_to_the_picture(query, ask, call):
    submitted, handle = ask("POST", QUEUE, call())
    until(lambda: ask("GET", handle["status_url"] + query)[1]["status"] == "COMPLETED")
    _, status = ask("GET", handle["status_url"] + query)
    fetched, output = ask("GET", status["response_url"])

    assert (submitted, fetched) == (200, 200)
    assert handle["request_id"] in handle["status_url"]
    assert output["images"][0]["content_type"] == "image/jpeg"
    assert output["seed"] == 7


def test_the_addresses_that_are_put_together_of_the_id_do_too(ask, call):
    _, handle = ask("POST", QUEUE, call())
    address = f"{QUEUE}/requests/{handle['request_id']}"
    until(lambda: ask("GET", f"{address}/status")[1]["status"] == "COMPLETED")

    assert ask("GET", address)[1]["seed"] == 7
    assert ask("PUT", f"{address}/cancel") == (400, {"status": "ALREADY_COMPLETED"})


def test_an_error_has_a_text_to_show(ask, call):
    status, body = ask("POST", "https://fal.run/fal-ai/lcm-sd15-i2i", call(strength=2))

    assert status == 422
    assert body["message"] == "body.strength: Input should be less than or equal to 1"


def test_a_file_is_uploaded_to_the_address_that_is_given_out(ask):
    start = json.dumps({"content_type": "image/png", "file_name": "a picture.png"})
    _, given = ask("POST", "https://rest.alpha.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3", start)
    uploaded, _ = ask("PUT", given["upload_url"], b"its bytes")

    assert uploaded == 200
    assert ask("GET", given["file_url"]) == (200, b"its bytes")
