"""HTTP over a websocket (`ws.fal.run`), which only fal's SDK uses: /ws/{app}.

Each text frame is the JSON input of one run. Answers come in order, each as three messages: text `{"type": "start",
"request_id", "status", "headers"}`, the body as one binary frame, text `{"type": "end", "request_id", "status",
"time_to_first_byte_seconds"}`. While one input is in progress, one more is read, so that a client's leaving is
noticed and its work cancelled; further ones wait in the network, not in memory. When the server drains, the inputs read
so far are answered before the socket is closed.
"""

import asyncio
import dataclasses
import time
import uuid
from typing import Any, TypeAlias

import msgspec
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from pipelines.messages import Priority
from server.access.auth import Caller
from server.context import Context, context
from server.fal import decoding, schemas
from server.fal.errors import FalError, RequestError
from server.logs import fault
from server.web.clock import late
from server.web.connection import stop
from server.web.request import authorize, memory, new_call
from server.web.websocket import DRAINING, REFUSAL_PAUSE_S

# What was received: an input, or the error if there is no room for it, or the close code of the socket.
Input: TypeAlias = bytes | FalError
End: TypeAlias = int

_IDLE: End = 0  # not a close code of websockets


async def websocket_run(socket: WebSocket) -> None:
    """Serve a socket of fal's SDK: each frame is a run, answered in order."""
    ctx = context(socket)
    _, caller = authorize(socket, {""})
    ctx.limits.session(socket, caller)
    await socket.accept()
    try:
        await Conversation(ctx, socket, caller).serve()
    except WebSocketDisconnect:
        return


class Conversation:
    """An accepted socket and its caller."""

    def __init__(self, ctx: Context, socket: WebSocket, caller: Caller) -> None:
        self._ctx = ctx
        self._socket = socket
        self._call = new_call(socket, caller, Priority.RUN)
        self._memory = memory(socket, caller)

    async def serve(self) -> None:
        """Answer inputs until the client leaves, the socket is idle for too long, or the server drains."""
        coming = asyncio.create_task(self._receive())
        try:
            while not isinstance(given := await self._in_time(coming), End):
                coming = asyncio.create_task(self._receive())
                await self._answer_unless_left(given, coming)
            if not _left(given):
                await self._socket.close(1000)
        finally:
            await stop(coming)

    async def _in_time(self, coming: asyncio.Task[Input | End]) -> Input | End:
        while True:
            due = asyncio.get_running_loop().time() + self._ctx.settings.session_idle_timeout
            await asyncio.wait({coming}, timeout=self._ctx.settings.session_idle_timeout)
            if coming.done() or not late(due):
                return coming.result() if coming.done() else _IDLE

    async def _receive(self) -> Input | End:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            return int(message["code"])
        text: str | None = message.get("text")
        content: bytes = message["bytes"] if text is None else text.encode()
        try:
            self._memory.take(len(content))
        except FalError as error:
            return error
        return content

    async def _answer_unless_left(self, given: Input, coming: asyncio.Task[Input | End]) -> None:
        working = asyncio.create_task(self._answer(given))
        try:
            await asyncio.wait({working, coming}, return_when=asyncio.FIRST_COMPLETED)
            if not (coming.done() and _left(coming.result())):
                await working
        finally:
            await stop(working)

    async def _answer(self, given: Input) -> None:
        started = time.perf_counter()
        identity = str(uuid.uuid4())
        headers = {"content-type": "application/json", "x-fal-request-id": identity}
        try:
            status, body = 200, await self._generate(given, identity)
        except FalError as error:
            status, body = error.status, error.body
            headers |= error.headers
        about = {"request_id": identity, "status": status}
        first_byte = time.perf_counter() - started
        await self._socket.send_text(_json({"type": "start", **about, "headers": headers}))
        await self._socket.send_bytes(msgspec.json.encode(body))
        await self._socket.send_text(_json({"type": "end", **about, "time_to_first_byte_seconds": first_byte}))
        if status != 200:
            await asyncio.sleep(REFUSAL_PAUSE_S)

    async def _generate(self, given: Input, identity: str) -> dict[str, Any]:
        """Return the output for an input. Raises `FalError` for every failure."""
        if isinstance(given, FalError):
            raise given
        call = dataclasses.replace(self._call, id=identity)
        try:
            return await self._ctx.generate(schemas.validate(decoding.decode_json(given)), call)
        except FalError:
            raise
        except Exception as error:  # noqa: BLE001 — one input's fault must not end the socket
            fault(identity, error)
            raise RequestError("internal_error", "Internal server error") from None
        finally:
            self._memory.give_back(len(given))


def _left(given: Input | End) -> bool:
    """Return whether the client has gone, so that no answer can reach it."""
    return isinstance(given, End) and given not in {_IDLE, DRAINING}


def _json(message: object) -> str:
    return msgspec.json.encode(message).decode()


ROUTES: list[BaseRoute] = [WebSocketRoute("/ws/{app:path}", websocket_run)]
