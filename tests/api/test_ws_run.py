"""HTTP over a websocket, as fal's SDK reads it."""

import asyncio
import json

import pytest

from tests.support.app_client import APP, INPUT, serving
from tests.support.asgi_client import Closed, Refused

pytestmark = pytest.mark.anyio

URL = f"wss://ws.fal.run/{APP}"


async def answer(socket):
    """The start message, the body, and the end message of one answer."""
    return json.loads(await socket.recv()), json.loads(await socket.recv()), json.loads(await socket.recv())


async def test_an_answer_is_start_body_end(tmp_path):
    async with serving(tmp_path) as web, web.connect(URL) as socket:
        socket.send(json.dumps(INPUT))
        start, body, end = await answer(socket)

    assert (start["type"], start["status"], start["headers"]["content-type"]) == ("start", 200, "application/json")
    assert body["seed"] == 7
    assert (end["type"], end["status"], end["request_id"]) == ("end", 200, start["request_id"])
    assert end["time_to_first_byte_seconds"] > 0


async def test_answers_come_in_order(tmp_path):
    async with serving(tmp_path) as web, web.connect(URL) as socket:
        for seed in range(3):
            socket.send(json.dumps({**INPUT, "seed": seed}))
        seeds = [(await answer(socket))[1]["seed"] for _ in range(3)]

    assert seeds == [0, 1, 2]


@pytest.mark.parametrize("frame", ["{", json.dumps({"prompt": "p"}), b"\xff"])
async def test_an_error_has_its_status_and_the_socket_stays_open(tmp_path, frame):
    async with serving(tmp_path) as web, web.connect(URL) as socket:
        socket.send(frame)
        start, body, end = await answer(socket)
        socket.send(json.dumps(INPUT).encode())
        after, *_ = await answer(socket)

    assert (start["status"], end["status"], after["status"]) == (422, 422, 200)
    assert body["detail"]


@pytest.mark.parametrize(
    ("url", "headers", "status"),
    [
        (URL, None, 401),
        (URL, {"authorization": "Key alice:wrong"}, 401),
        ("wss://ws.fal.run/fal-ai/other", {"authorization": "Key alice:a"}, 404),
        (f"{URL}/sub", {"authorization": "Key alice:a"}, 404),
    ],
)
async def test_a_bad_handshake_is_refused(tmp_path, url, headers, status):
    async with serving(tmp_path, keys="alice:a") as web:
        with pytest.raises(Refused) as refused:
            async with web.connect(url, headers=headers):
                pass

    assert refused.value.answer.status == status


async def test_an_idle_socket_is_closed_with_1000(tmp_path):
    async with serving(tmp_path, session_idle_timeout=0.05) as web, web.connect(URL) as socket:
        with pytest.raises(Closed) as closed:
            await socket.recv()

    assert closed.value.code == 1000


async def test_a_client_that_leaves_cancels_its_work(tmp_path):
    async with serving(tmp_path) as web:
        async with web.connect(URL) as socket:
            web.engines.gate.clear()
            socket.send(json.dumps(INPUT))
            work = await web.engines.running.get()

        assert await asyncio.wait_for(web.engines.cancelled.get(), 5) == work.id


async def test_when_the_server_drains_what_was_taken_in_is_answered_and_the_socket_closed(tmp_path):
    async with serving(tmp_path) as web, web.connect(URL) as socket:
        web.engines.gate.clear()
        socket.send(json.dumps(INPUT))
        await web.engines.running.get()
        socket.drain()
        web.engines.gate.set()
        start, *_ = await answer(socket)
        with pytest.raises(Closed) as closed:
            await socket.recv()

    assert (start["status"], closed.value.code) == (200, 1000)


async def test_an_idle_socket_is_closed_when_the_server_drains(tmp_path):
    async with serving(tmp_path) as web, web.connect(URL) as socket:
        socket.drain()
        with pytest.raises(Closed) as closed:
            await socket.recv()

    assert closed.value.code == 1000


async def test_a_fault_of_ours_has_fals_shape_and_the_socket_stays_open(tmp_path):
    async with serving(tmp_path) as web, web.connect(URL) as socket:
        web.engines.failure = ValueError("canary")
        socket.send(json.dumps(INPUT))
        start, body, end = await answer(socket)
        web.engines.failure = None
        socket.send(json.dumps(INPUT))
        after, *_ = await answer(socket)

    assert (start["status"], end["status"], after["status"]) == (500, 500, 200)
    assert body["error_type"] == "internal_error"
    assert "canary" not in json.dumps(body)


async def test_an_input_for_which_there_is_no_memory_is_refused_and_the_next_one_served(tmp_path):
    async with serving(tmp_path, max_body_bytes=400, body_budget_bytes=400) as web, web.connect(URL) as socket:
        socket.send(json.dumps({**INPUT, "prompt": "p" * 400}))
        refused, *_ = await answer(socket)
        socket.send(json.dumps(INPUT))
        after, *_ = await answer(socket)

    assert (refused["status"], after["status"]) == (429, 200)
