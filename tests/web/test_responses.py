"""Event streams: framing, pauses, and clients that leave."""

import asyncio

import pytest

from server.web.responses import EventStream, event
from tests.support.asgi_client import call, exchange

pytestmark = pytest.mark.anyio


async def test_each_event_is_one_json_line_and_a_blank_one():
    async def two():
        yield event({"a": "é\n"})
        yield event([1])

    answer = await call(EventStream(two()), "GET", "/")

    assert answer.body == b'data: {"a":"\\u00e9\\n"}\n\ndata: [1]\n\n'
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in answer.headers


async def test_a_pause_is_filled_with_comments():
    go_on = asyncio.Event()

    async def late():
        await go_on.wait()
        yield event({"last": True})

    async with exchange(EventStream(late(), keep_alive_s=0.01), "GET", "/") as talk:
        await talk.hear()
        first, second = (await talk.hear())["body"], (await talk.hear())["body"]
        go_on.set()
        while (body := (await talk.hear())["body"]).startswith(b":"):
            pass

    assert first == second == b": keep-alive\n\n"
    assert body == b'data: {"last":true}\n\n'


async def test_when_the_client_leaves_the_source_is_closed():
    closed = asyncio.Event()

    async def endless():
        try:
            yield event({"n": 1})
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with exchange(EventStream(endless()), "GET", "/") as talk:
        await talk.hear()
        await talk.hear()
        talk.say({"type": "http.disconnect"})

        await asyncio.wait_for(closed.wait(), 5)


async def test_a_source_that_fails_breaks_the_answer_off():
    async def broken():
        yield event({"n": 1})
        raise RuntimeError("mid-stream")

    async with exchange(EventStream(broken()), "GET", "/") as talk:
        await talk.hear()
        await talk.hear()

        with pytest.raises(RuntimeError, match="mid-stream"):
            await talk.hear()
