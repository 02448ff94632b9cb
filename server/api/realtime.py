"""Realtime sockets: /run/{app}, /run/{app}/realtime, /run/{app}/ws, and the path which the operator has set.

    text JSON in     →  text JSON out
    msgpack in       →  msgpack out
    a bad input      →  text {"type": "x-fal-error", "error", "reason", …}; the socket stays open
    too many inputs  →  the oldest are dropped, the newest are answered
    idle             →  close 1000, which clients take for the end of a good session
    server drains    →  what waits is answered, then close 1000: the next `send` connects again

Errors are text whatever the encoding, since older JavaScript clients and Python's check only text for them.
`request_id` is echoed: draw-fast matches answers by it alone.

What fal does with a bad token is not documented. Here the socket is accepted, gets `Unauthorized` in the words which
make the JavaScript clients fetch a new token at their next send, and closed with 1000; a refused handshake would reach
the page as two errors. An open socket stays open when its token expires. Unknown apps and paths fail the handshake with
404.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
import uuid
from collections import deque
from typing import Any, TypeAlias

import msgspec
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from pipelines.messages import Priority
from server.access.auth import Caller
from server.access.limits import Reservation
from server.context import Context, context
from server.fal import decoding, schemas
from server.fal.endpoints import MAX_BUFFERING, REALTIME_PATHS
from server.fal.errors import FalError, PlainError, RequestError
from server.logs import call, fault
from server.web.clock import late
from server.web.connection import stop
from server.web.request import find_caller, find_endpoint, memory, new_call
from server.web.websocket import DRAINING, REFUSAL_PAUSE_S

Frame: TypeAlias = str | bytes

_UNAUTHORIZED = '{"status":"error","error":"Unauthorized"}'

# Without `max_buffering` as many inputs may wait as can be answered within this time: draw-fast waits 5 s for each.
PATIENCE_S = 2.0


async def realtime(socket: WebSocket) -> None:
    """Serve a realtime socket: frames in, pictures out, until the client leaves."""
    ctx = context(socket)
    target = find_endpoint(socket, REALTIME_PATHS | {ctx.settings.realtime_path.strip("/")})
    try:
        caller = find_caller(socket, target.app)
    except PlainError:
        await socket.accept()
        await socket.send_text(_UNAUTHORIZED)
        await socket.close(1000)
        return
    ctx.limits.session(socket, caller)
    await socket.accept()
    ctx.metrics.session_opened()
    try:
        await Session(ctx, socket, caller, max_buffering(socket)).serve()
    finally:
        ctx.metrics.session_closed()


def max_buffering(socket: WebSocket) -> int | None:
    """Return how many inputs may wait, as the client asks, clamped to fal's bounds; None if it does not ask."""
    written = socket.query_params.get("max_buffering", "")
    if not (written.isascii() and written.isdigit()):
        return None
    return min(max(int(written[:4]), 1), MAX_BUFFERING)


class Inbox:
    """Frames that wait for the device. A new frame replaces the oldest ones when they are too many or too large.

    All of them but the newest are no more than `max_bytes`. `memory` is taken for each frame by `put`; it is given back
    when the frame is dropped, or by the caller of `get`.
    """

    def __init__(self, max_buffering: int | None, memory: Reservation, max_bytes: int) -> None:
        self._memory = memory
        self._max_bytes = max_bytes
        self._limit = max_buffering or MAX_BUFFERING
        self._fixed = max_buffering is not None
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._ended = False
        self._arrived = asyncio.Event()

    def put(self, frame: Frame) -> int:
        """Add the newest frame; return how many older ones were dropped. Raises `RequestError` 429 without memory."""
        dropped = 0
        while self._frames and not self._has_room(frame):
            self._memory.give_back(len(self._take()))
            dropped += 1
        self._memory.take(len(frame))
        self._frames.append(frame)
        self._bytes += len(frame)
        self._arrived.set()
        return dropped

    def _has_room(self, frame: Frame) -> bool:
        fits = len(self._frames) < self._limit and self._bytes + len(frame) <= self._max_bytes
        return fits and self._memory.has_room(len(frame))

    def end(self) -> None:
        """Note that no more frames will come."""
        self._ended = True
        self._arrived.set()

    async def get(self) -> Frame | None:
        """Return the oldest frame, once there is one; None when none is left and no more will come."""
        while not self._frames and not self._ended:
            self._arrived.clear()
            await self._arrived.wait()
        return self._take() if self._frames else None

    def set_limit(self, seconds: float) -> None:
        """Limit how many inputs may wait, by the seconds which the last one took."""
        if not self._fixed:
            self._limit = max(1, min(MAX_BUFFERING, int(PATIENCE_S / max(seconds, 1e-3))))

    def _take(self) -> Frame:
        frame = self._frames.popleft()
        self._bytes -= len(frame)
        return frame


class Session:
    """An accepted socket and its caller, from the handshake to the close."""

    def __init__(self, ctx: Context, socket: WebSocket, caller: Caller, max_buffering: int | None) -> None:
        self._ctx = ctx
        self._socket = socket
        self._call = new_call(socket, caller, Priority.REALTIME)
        self._memory = memory(socket, caller)
        self._inbox = Inbox(max_buffering, self._memory, ctx.settings.max_waiting_bytes)

    async def serve(self) -> None:
        """Answer inputs until the client leaves or stays silent for too long."""
        reading = asyncio.create_task(self._read())
        working = asyncio.create_task(self._work())
        try:
            await asyncio.wait({reading, working}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and reading.result() == DRAINING:
                self._inbox.end()
                await working
            for task in (reading, working):
                if task.done():
                    task.result()
        finally:
            await stop(reading, working)

    async def _read(self) -> int:
        """Put frames into the inbox until the socket ends; return the close code."""
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return int(message["code"])
            try:
                self._ctx.metrics.dropped(self._inbox.put(_content(message)))
            except FalError as error:
                self._ctx.metrics.dropped(1)
                with contextlib.suppress(WebSocketDisconnect):  # the next `receive` reports it
                    await self._refuse(error)

    async def _work(self) -> None:
        with contextlib.suppress(WebSocketDisconnect):  # the reader notices it as well
            while (frame := await self._next()) is not None:
                started = time.perf_counter()
                outcome = await self._answer(frame)
                seconds = time.perf_counter() - started
                self._inbox.set_limit(seconds)
                call(
                    logging.DEBUG,
                    "frame",
                    route="realtime",
                    key=self._call.tenant,
                    outcome=outcome,
                    seconds=round(seconds, 4),
                    request_id=self._call.id,
                )
            await self._socket.close(1000)

    async def _next(self) -> Frame | None:
        """Return the next frame; None when none has come for `session_idle_timeout` seconds, or none will."""
        while True:
            due = asyncio.get_running_loop().time() + self._ctx.settings.session_idle_timeout
            try:
                async with asyncio.timeout_at(due):
                    return await self._inbox.get()
            except TimeoutError:
                if not late(due):
                    return None

    async def _answer(self, frame: Frame) -> str:
        """Answer one input; return how that ended, as the log has it."""
        given: dict[str, Any] = {}
        try:
            given = decode(frame)
            output = await self._generate(given)
        except FalError as error:
            await self._refuse(error, given.get("request_id"))
            return "refused"
        except Exception as error:  # noqa: BLE001 — one input's fault must not end the session
            fault("realtime", error)
            await self._refuse(RequestError("internal_error", "Internal server error"), given.get("request_id"))
            return "failed"
        finally:
            self._memory.give_back(len(frame))
        if isinstance(frame, str):
            await self._socket.send_text(msgspec.json.encode(output).decode())
        else:
            await self._socket.send_bytes(msgspec.msgpack.encode(output))
        return "ok"

    async def _refuse(self, error: FalError, request_id: object = None) -> None:
        await self._socket.send_text(error_text(error, request_id))
        await asyncio.sleep(REFUSAL_PAUSE_S)

    async def _generate(self, given: dict[str, Any]) -> dict[str, Any]:
        image = next(filter(_is_picture, map(given.get, ("image_bytes", "image_url"))), None)
        if image is not None:
            given = {**given, "image_url": ""}
        call = dataclasses.replace(self._call, id=str(uuid.uuid4()), image=image)
        return await self._ctx.generate(schemas.validate(given), call)


def _is_picture(value: object) -> bool:
    """Return whether a field of a msgpack frame holds a picture, not a URL: some clients write texts as bytes."""
    return isinstance(value, bytes) and not value[:64].lstrip().lower().startswith((b"http", b"data:"))


def _content(message: Message) -> Frame:
    text: str | None = message.get("text")
    if text is not None:
        return text
    content: bytes = message["bytes"]
    return content


def decode(frame: Frame) -> dict[str, Any]:
    """Return an input's fields: JSON if the frame is text, else msgpack. Raises `InvalidInput`."""
    return decoding.decode_json(frame.encode()) if isinstance(frame, str) else decoding.decode_msgpack(frame)


def error_text(error: FalError, request_id: object = None) -> str:
    """Return an error as fal's realtime clients read it. `request_id` and `detail` are beyond what fal sends."""
    name = error.error_type if isinstance(error, RequestError) else "invalid_input"
    message = {"type": "x-fal-error", "error": name.upper(), "reason": str(error), "detail": error.body["detail"]}
    if isinstance(request_id, str | int | float) and request_id != "":
        message["request_id"] = str(request_id)
    return msgspec.json.encode(message).decode()


ROUTES: list[BaseRoute] = [WebSocketRoute("/run/{app:path}", realtime)]
