"""HTTP over a websocket, as fal's SDK reads it."""

import json

import pytest

from tests.asgi import Closed, Refused
from tests.web import APP, INPUT, serving

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
