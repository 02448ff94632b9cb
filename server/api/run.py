"""Routes that answer an input on the same connection: with the output, or with a stream of previews.

    POST /run/{app}          the output
    GET  /run/{app}          the same, with the input in the query string (the JavaScript client's `method: "get"`)
    POST /run/{app}/stream   server-sent events: a preview per step, then the output

The path alone decides which of them is meant, since fal's proxies rewrite `Accept`. fal's own endpoint has no
`/stream`. A preview event has the output's keys, with the picture so far as a data URI, and `progress`. Errors before
the first event are an HTTP status with JSON; a later error breaks the connection off, which both clients report.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pipelines.messages import Preview, Priority
from server.access.auth import Caller
from server.context import Context, context
from server.fal import decoding, schemas
from server.fal.headers import lifecycle, start_timeout
from server.fal.schemas import LcmInput
from server.generate import Call, inline
from server.web.connection import stop, while_connected
from server.web.request import authorize, new_call, read_json
from server.web.responses import EventStream, event, json_response


async def run(request: Request) -> Response:
    """Answer one request with its output, or with a stream of events."""
    ctx = context(request)
    target, caller = authorize(request, {"", "stream"})
    streaming = target.path == "stream"
    ctx.limits.call(request, caller)
    data = schemas.validate(await _fields(request, caller)).seeded()
    call = new_call(
        request,
        caller,
        Priority.RUN,
        start_timeout=start_timeout(request.headers),
        lifecycle=lifecycle(request.headers),
        previews=streaming,
    )
    if streaming:
        events = _progress(ctx, data, call)
        first = await while_connected(request.receive, _first(events))
        return EventStream(_from(first, events))
    return json_response(await while_connected(request.receive, ctx.generate(data, call)))


async def _fields(request: Request, caller: Caller) -> dict[str, Any]:
    if request.method == "GET":
        return dict(request.query_params)
    return await read_json(request, caller, context(request).settings.max_body_bytes, decoding.decode_json)


async def _progress(ctx: Context, data: LcmInput, call: Call) -> AsyncGenerator[dict[str, Any], None]:
    """Yield a preview after each step but the last, then the output."""
    coming: asyncio.Queue[Preview | None] = asyncio.Queue()  # bounded by the number of steps

    def on_event(event: object) -> None:
        if isinstance(event, Preview):
            coming.put_nowait(event)

    working = asyncio.create_task(ctx.generate(data, call, on_event))
    working.add_done_callback(lambda _: coming.put_nowait(None))
    try:
        while preview := await coming.get():
            yield _partial(data, preview)
        yield await working
    finally:
        await stop(working)


def _partial(data: LcmInput, preview: Preview) -> dict[str, Any]:
    return {
        "images": [inline(preview.picture)],
        "timings": {},
        "seed": data.seed,
        "num_inference_steps": data.num_inference_steps,
        "request_id": data.request_id,
        "nsfw_content_detected": [preview.picture.nsfw],
        "progress": {"step": preview.step, "steps": preview.steps},
    }


async def _first(events: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    return await anext(events)


async def _from(first: dict[str, Any], rest: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    try:
        yield event(first)
        async for content in rest:
            yield event(content)
    finally:
        await rest.aclose()


_RUN = Route("/run/{app:path}", run, methods=["GET", "POST"])
_RUN.methods = {"GET", "POST"}  # HEAD comes with GET, and would make a picture that no caller sees

ROUTES: list[BaseRoute] = [_RUN]
