"""HTTP over a websocket (`ws.fal.run`), which only fal's SDK speaks: /ws/{app}.

Each text frame is the JSON input of one run. Answers come in order, each as three messages: text `{"type": "start",
"request_id", "status", "headers"}`, the body as one binary frame, text `{"type": "end", "request_id", "status",
"time_to_first_byte_seconds"}`. While one input is worked on, further ones wait in the network, not in memory.
"""

import asyncio
import time
import uuid

import msgspec
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from pipelines.types import Priority
from server import endpoints, schemas
from server.auth import Caller
from server.deps import Context, context
from server.errors import FalError
from server.generate import Call, generate
from server.hosts import base_url


async def websocket_run(socket: WebSocket) -> None:
    """Serve one socket to its end."""
    ctx = context(socket)
    target = endpoints.resolve(socket.path_params["app"])
    caller = ctx.auth.caller(socket, target.app)
    if target.path:
        raise endpoints.no_such_path(target)
    ctx.limits.session(socket, caller)
    await socket.accept()
    try:
        while (frame := await _next(ctx, socket)) is not None:
            await _answer(ctx, socket, frame, caller)
        await socket.close(1000)
    except WebSocketDisconnect:
        return


async def _next(ctx: Context, socket: WebSocket) -> bytes | None:
    """The next input; None when none has come for too long. Raises `WebSocketDisconnect`."""
    try:
        async with asyncio.timeout(ctx.settings.session_idle_timeout):
            message = await socket.receive()
    except TimeoutError:
        return None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"])
    text: str | None = message.get("text")
    content: bytes = message["bytes"] if text is None else text.encode()
    return content


async def _answer(ctx: Context, socket: WebSocket, frame: bytes, caller: Caller) -> None:
    started = time.perf_counter()
    identity = str(uuid.uuid4())
    call = Call(
        id=identity,
        tenant=caller.id,
        allowance=caller.allowance,
        priority=Priority.RUN,
        cdn=base_url(socket.scope, "cdn"),
    )
    headers = {"content-type": "application/json", "x-fal-request-id": identity}
    try:
        data = schemas.parse(frame)
        status, body = 200, await generate(ctx, data, call)
    except FalError as error:
        status, body = error.status, error.body
        headers |= error.headers
    about = {"request_id": identity, "status": status}
    first_byte = time.perf_counter() - started
    await socket.send_text(_json({"type": "start", **about, "headers": headers}))
    await socket.send_bytes(msgspec.json.encode(body))
    await socket.send_text(_json({"type": "end", **about, "time_to_first_byte_seconds": first_byte}))


def _json(message: object) -> str:
    return msgspec.json.encode(message).decode()


ROUTES: list[BaseRoute] = [WebSocketRoute("/ws/{app:path}", websocket_run)]
