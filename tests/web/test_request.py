"""Bodies of requests, as handlers get them."""

import asyncio
import contextlib
import itertools
from types import SimpleNamespace

import pytest
from starlette.requests import Request

from server.access.auth import ANONYMOUS
from server.access.limits import Limits
from server.settings import Settings
from server.web.request import read_json

pytestmark = pytest.mark.anyio

LARGE = 2 << 20


def request_with(limits, *chunks, announced=None):
    """A request whose body comes in these chunks."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages[-1]["more_body"] = False

    async def receive():
        await asyncio.sleep(0)
        return messages.pop(0)

    headers = [] if announced is None else [(b"content-length", str(announced).encode())]
    app = SimpleNamespace(state=SimpleNamespace(ctx=SimpleNamespace(limits=limits)))
    scope = {"type": "http", "method": "POST", "headers": headers, "app": app}
    return Request(scope | {"fourstep.permits": contextlib.ExitStack()}, receive)


@pytest.mark.parametrize("announced", [None, 12, 4, 20])
async def test_a_body_is_the_bytes_that_came_whatever_was_announced(announced):
    request = request_with(Limits(Settings()), b"01234", b"5678", b"9ab", announced=announced)

    assert await read_json(request, ANONYMOUS, 100, lambda body: {"body": bytes(body)}) == {"body": b"0123456789ab"}


async def test_pieces_of_large_bodies_are_read_one_in_each_turn_of_the_loop():
    limits, turns = Limits(Settings()), 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    requests = [request_with(limits, *[bytes(LARGE)] * 4, announced=4 * LARGE) for _ in range(4)]
    await asyncio.gather(*(read_json(request, ANONYMOUS, 4 * LARGE, lambda _: {}) for request in requests))
    counting.cancel()

    assert turns >= 4 * 4  # of each piece, and of each document


async def test_between_two_large_documents_others_are_served():
    limits, order = Limits(Settings()), []

    def decode(body):
        order.append("large")
        return {}

    async def others():
        while True:
            order.append("others")
            await asyncio.sleep(0)

    serving = asyncio.create_task(others())
    requests = (request_with(limits, bytes(LARGE), announced=LARGE) for _ in range(3))
    await asyncio.gather(*(read_json(request, ANONYMOUS, LARGE, decode) for request in requests))
    serving.cancel()

    places = [place for place, what in enumerate(order) if what == "large"]
    assert all("others" in order[one:two] for one, two in itertools.pairwise(places))
