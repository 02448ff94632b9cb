"""Routes of the queue: submit a job, ask for its status and its result, cancel it.

    POST /queue/{app}                                    submit: 200 with the URLs for status, result and cancel
    GET  /queue/{app}/requests/{id}/status               202 while pending, 200 when completed
    GET  /queue/{app}/requests/{id}/status/stream        the same as events, each log line once
    GET  /queue/{app}/requests/{id}[/response]           the output, or the error with which the request ended
    PUT  /queue/{app}/requests/{id}/cancel               200, 202, 400 or 404, with fal's word for the outcome

A sub path of the app's id may stand before `/requests/` (JavaScript clients of early 2024). A job is visible to its
owner only: any other key gets 404.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from server.access.auth import Caller
from server.context import Context, context
from server.fal import decoding, schemas
from server.fal import headers as platform_headers
from server.fal.errors import FalError, InvalidInput, PlainError, error_item
from server.fal.hosts import base_url
from server.jobs.job import NewJob, Outcome, Result, Snapshot
from server.outbound.addresses import lacking
from server.outbound.urls import FetchError, is_http, parse
from server.web.access_log import request_id
from server.web.connection import disconnected, stop
from server.web.request import authorize, read_json
from server.web.responses import EventStream, event, json_response

LOG = logging.getLogger(__name__)

_TRUE = {"1", "true", "yes"}


async def submit(request: Request) -> Response:
    """Accept a job; it is on disk before the answer. An invalid input is accepted too: its result is the error."""
    ctx = context(request)
    target, caller = authorize(request, {""})
    (webhook, warning), max_length = _webhook(request), _max_queue_length(request)
    given, result = _checked(await read_json(request, caller, ctx.settings.max_body_bytes, decoding.decode_json))
    snapshot = await ctx.queue.submit(
        NewJob(
            id=request_id(request.scope),
            app=target.app.id,
            owner=caller.id,
            input=given,
            call={
                "cdn": base_url(request.scope, "cdn"),
                "lifecycle": platform_headers.lifecycle(request.headers),
            },
            priority=platform_headers.priority(request.headers),
            webhook=webhook,
            start_timeout=platform_headers.start_timeout(request.headers),
            no_retry=platform_headers.no_retry(request.headers),
            store_io=platform_headers.store_io(request.headers),
            max_queue_length=max_length,
            max_owned=caller.allowance.queued,
            max_owned_bytes=caller.allowance.queued_bytes,
            result=result,
            warning=warning,
        )
    )
    if warning:
        LOG.warning("job %s: %s", snapshot.id, warning)
    return json_response(snapshot.submit_body(base_url(request.scope, "queue")))


def _checked(given: dict[str, Any]) -> tuple[bytes, Result | None]:
    """Return the input as it is stored, with its seed drawn, and the result if the input is invalid."""
    try:
        return msgspec.json.encode(schemas.validate(given).seeded().model_dump()), None  # a quarter of pydantic's time
    except InvalidInput as error:
        return b"{}", Result.failure(error)


def _webhook(request: Request) -> tuple[str | None, str]:
    """Return the URL of the job's webhook, if it is to be sent, and a warning if it is not.

    fal takes every URL, and an app in development gives its own on localhost, and polls as well.
    """
    url = request.query_params.get("fal_webhook")
    if not url:
        return None, ""
    if not is_http(url):
        message = "Input should be an http or https URL"
        raise InvalidInput([error_item(("query", "fal_webhook"), "url_parsing", message)])
    try:
        host = parse(url).host
    except FetchError as error:
        reason = error.message.rpartition(": ")[2]  # without “Could not download the file”
        return None, f"the webhook will not be sent: {reason}. Hint: give another URL, or poll for the result"
    if networks := ",".join(map(str, lacking(host, context(request).allowed))):
        hint = f"Hint: --allow-net {networks}"
        return None, f"the webhook will not be sent: its host is not on the public internet. {hint}"
    return url, ""


def _max_queue_length(request: Request) -> int | None:
    written = request.query_params.get("fal_max_queue_length")
    if written is None:
        return None
    if not (written.isascii() and written.isdigit() and len(written) < 10):
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise InvalidInput([error_item(("query", "fal_max_queue_length"), "int_parsing", message)])
    return int(written)


async def status(request: Request) -> Response:
    """Answer with the status of a job."""
    snapshot = await _find(request)
    body = snapshot.status_body(base_url(request.scope, "queue"), logs=_wants_logs(request))
    return json_response(body, snapshot.status_code)


async def status_stream(request: Request) -> Response:
    """Answer with a stream of the job's statuses: one at every change until the job ends."""
    ctx = context(request)
    _, caller = authorize(request)
    ctx.limits.status_stream(request, caller)
    snapshot = await _of(request, caller)
    return EventStream(_statuses(ctx, snapshot.id, base_url(request.scope, "queue"), logs=_wants_logs(request)))


async def _statuses(ctx: Context, job_id: str, base: str, *, logs: bool) -> AsyncGenerator[bytes, None]:
    def written(snapshot: Snapshot) -> bytes:
        return event(snapshot.status_body(base, logs=logs))

    async with aclosing(ctx.queue.watch(job_id)) as changes:
        async for change in changes:
            yield change.once((base, logs), written)


async def result(request: Request) -> Response:
    """Answer with the bare output, or with the job's error under the error's status code."""
    ctx = context(request)
    snapshot = await _find(request, certain=True)
    if not snapshot.completed:
        said = "Request is still in progress"
        urls = snapshot.urls(base_url(request.scope, "queue"))
        raise FalError(400, {"detail": said, "message": said, "request_id": snapshot.id, **urls})
    kept = await ctx.queue.result(snapshot.id)
    if kept is None:
        raise PlainError(410, "The result of this request is no longer stored")
    headers = {**kept.headers, "x-fal-request-id": snapshot.id}
    if snapshot.store_io or request.method == "HEAD":
        return Response(kept.body, kept.status, headers, "application/json")
    return _Handed(kept.body, kept.status, headers, lambda: ctx.queue.delivered(snapshot))


class _Handed(Response):
    """Response with the only copy of a result. `delivered` is called if the client stayed until all of it was sent."""

    media_type = "application/json"

    def __init__(
        self, body: bytes, status: int, headers: dict[str, str], delivered: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(body, status, headers)
        self._delivered = delivered

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        leaving = asyncio.create_task(disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": True})  # waits for the client to read
            await asyncio.sleep(0)  # `leaving` reads meanwhile
            left = leaving.done()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await stop(leaving)
        if not left:
            await self._delivered()


async def cancel(request: Request) -> Response:
    """Cancel a job, and answer with the outcome."""
    try:
        snapshot = await _find(request)
    except PlainError as error:
        if error.status != 404:
            raise
        outcome = Outcome.NOT_FOUND
    else:
        outcome = await context(request).queue.cancel(snapshot.id)
    return json_response(outcome.body, outcome.http_status)


async def _find(request: Request, *, certain: bool = False) -> Snapshot:
    """Return the job in the path. Raises as `authorize` and `_of`."""
    _, caller = authorize(request)
    return await _of(request, caller, certain=certain)


async def _of(request: Request, caller: Caller, *, certain: bool = False) -> Snapshot:
    """Return the caller's job in the path. Raises `PlainError` 404 for one which is unknown or another caller's.

    `certain`: as of `Queue.get`.
    """
    snapshot = await context(request).queue.get(request.path_params["request_id"], certain=certain)
    if snapshot is None or snapshot.owner != caller.id:
        raise PlainError(404, "Request not found")
    return snapshot


def _wants_logs(request: Request) -> bool:
    return request.query_params.get("logs", "").lower() in _TRUE


_JOB = "/queue/{app:path}/requests/{request_id}"

ROUTES: list[BaseRoute] = [
    Route(f"{_JOB}/status", status, methods=["GET"]),
    Route(f"{_JOB}/status/stream", status_stream, methods=["GET"]),
    Route(f"{_JOB}/cancel", cancel, methods=["PUT"]),
    Route(f"{_JOB}/response", result, methods=["GET"]),
    Route(_JOB, result, methods=["GET"]),
    Route("/queue/{app:path}", submit, methods=["POST"]),
]
