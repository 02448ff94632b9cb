"""Server-sent events as fal's clients can read them.

Each `data` is one JSON object in ASCII, since the JavaScript clients decode every network chunk on its own and would
tear a character apart; the last one ends with a blank line; there is no `[DONE]`. While nothing happens a comment line
keeps the connection alive.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.web.connection import disconnected, stop

KEEP_ALIVE_S = 15.0  # fal's own interval
_KEEP_ALIVE = b": keep-alive\n\n"

_HEADERS = {
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx would hold events back
}


class EventStream(Response):
    """A response of events. When the client leaves, `events` is closed; what it raises breaks the connection off."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Any, None], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(headers={**_HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send every event, then end the response."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send_all(send))
        leaving = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
        finally:
            await stop(sending, leaving)

    async def _send_all(self, send: Send) -> None:
        async with contextlib.aclosing(_with_pauses(self._events)) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _with_pauses(events: AsyncGenerator[Any, None]) -> AsyncGenerator[bytes, None]:
    """The events as they go over the wire, and comment lines while they are awaited."""
    coming: asyncio.Task[Any] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({coming}, timeout=KEEP_ALIVE_S)
            if not done:
                yield _KEEP_ALIVE
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield b"data: " + json.dumps(event, separators=(",", ":")).encode("ascii") + b"\n\n"
    finally:
        if coming is not None:
            await stop(coming)
        await events.aclose()
