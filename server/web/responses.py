"""Responses: JSON, errors in fal's shape (every `FalError` becomes a response here), event streams.

Server-sent events are written as fal's clients can read them. Each `data` is one JSON object in ASCII, since the
JavaScript clients decode every network chunk on its own and would break a character that spans two. The last event
ends with a blank line, without `[DONE]`, and comment lines keep the connection alive. sse-starlette and fastapi.sse do
neither, and do not break the connection off on an error.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from typing_extensions import override

from server.fal.errors import FalError, PlainError, RequestError
from server.jobs.errors import DatabaseError, log_database_error, refusal
from server.web.connection import disconnected, stop

LOG = logging.getLogger(__name__)

_ENCODE = msgspec.json.Encoder().encode

_KEEP_ALIVE_S = 15.0  # fal's interval
_KEEP_ALIVE = b": keep-alive\n\n"
_STREAM_HEADERS = {
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # else nginx buffers events
}


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return `content` as `application/json`. JavaScript clients treat any other type as a string."""
    return Response(_ENCODE(content), status, headers, "application/json")


def error_response(error: FalError) -> Response:
    """Return the error as a response in fal's shape."""
    return json_response(error.body, error.status, error.headers)


def forget_range(request: Request) -> None:
    """Remove the range, so that the answer is the whole file: starlette refuses a bad range in plain text."""
    request.scope["headers"] = [(name, value) for name, value in request.scope["headers"] if name != b"range"]


async def on_fal_error(connection: HTTPConnection, error: FalError) -> Response | None:
    """Answer with the error which a route has raised; refuse a websocket's handshake with it."""
    response = error_response(error)
    if isinstance(connection, WebSocket):
        await connection.send_denial_response(response)
        return None
    return response


async def on_http_error(connection: HTTPConnection, error: HTTPException) -> Response | None:
    """Answer in fal's shape to the framework's own errors: no such path, wrong method."""
    detail = f"Path {connection.scope['path']} not found" if error.status_code == 404 else str(error.detail)
    return await on_fal_error(connection, PlainError(error.status_code, detail, error.headers))


async def on_database_error(connection: HTTPConnection, error: DatabaseError) -> Response | None:
    """Answer 429 or 500 when the job database can't be read; the log gets one line."""
    log_database_error(LOG, "a request could not be answered", error)
    return await on_fal_error(connection, refusal(error))


async def on_crash(_: Request, __: Exception) -> Response:
    """Answer 500 to an unexpected exception. The log gets the traceback, the caller nothing of it."""
    return error_response(RequestError("internal_error", "Internal server error"))


# The app's: `FastAPI(exception_handlers=EXCEPTION_HANDLERS)`.
EXCEPTION_HANDLERS: dict[int | type[Exception], Callable[[Any, Any], Any]] = {
    FalError: on_fal_error,
    HTTPException: on_http_error,
    DatabaseError: on_database_error,
    Exception: on_crash,
}


def event(content: Any) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n\n"


class EventStream(Response):
    """Response of server-sent events, each as `event` returns it.

    When the client leaves, `events` is closed. An exception of `events` breaks the connection off. A comment line is
    sent after every `keep_alive_s` seconds without an event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], *, keep_alive_s: float = _KEEP_ALIVE_S) -> None:
        super().__init__(headers=_STREAM_HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._keep_alive_s = keep_alive_s
        self._sent_at = 0.0

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send_events(send))
        idling = asyncio.create_task(self._keep_alive(send))
        leaving = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            left = not sending.done()
            if not left:
                await sending
        finally:
            await stop(sending, idling, leaving)
            await self._events.aclose()
        if not left:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, send: Send) -> None:
        async for written in self._events:
            self._sent_at = asyncio.get_running_loop().time()
            await send({"type": "http.response.body", "body": written, "more_body": True})

    async def _keep_alive(self, send: Send) -> None:
        """Send comment lines between the events. Each is written whole, so none falls into an event."""
        now = asyncio.get_running_loop().time
        self._sent_at = now()
        while True:
            await asyncio.sleep(self._sent_at + self._keep_alive_s - now())
            if now() >= self._sent_at + self._keep_alive_s:
                self._sent_at = now()
                await send({"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True})
