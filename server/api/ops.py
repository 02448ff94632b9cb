"""Routes for operators and machines: health, readiness, metrics, and the documents which clients look up.

    GET /health                             always 200: version, state, what is being loaded or a hint, engines
    GET /ready                              200 when requests are served and will be, else 503
    GET /metrics                            Prometheus' text format
    GET /.well-known/jwks.json              the keys which webhooks are signed with (also under /rest)
    GET /api/openapi/queue/openapi.json     the OpenAPI document of `?endpoint_id=`

They need no key: probes have none, and no answer contains what callers sent.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.context import Context, context
from server.environment import version
from server.fal import endpoints, openapi
from server.fal.hosts import external
from server.metrics import CONTENT_TYPE
from server.web.responses import json_response

_SERVING = {"READY", "BUSY", "UNLOADED"}  # an unloaded engine is woken by the next call: a proxy must not hold it back


async def health(request: Request) -> Response:
    """Answer with the state of the server, its engines and its queue."""
    return json_response(_health(context(request)))


async def ready(request: Request) -> Response:
    """Answer 200 if the server takes requests and is not leaving, else 503, with the same body as `health`."""
    body = _health(context(request))
    serves = body["state"] in _SERVING and body["engines"] and not body["draining"]
    return json_response(body, 200 if serves else 503)


def _health(ctx: Context) -> dict[str, Any]:
    return {
        "version": version(),
        "state": ctx.pool.state.name,
        "draining": ctx.queue.draining,
        "detail": ctx.pool.detail,
        "notice": ctx.pool.notice,
        "engines": ctx.pool.engines,
        "queue": {"waiting": ctx.queue.length(), "running": ctx.queue.in_flight},
        **(ctx.cluster.health() if ctx.cluster else {}),
    }


async def metrics(request: Request) -> Response:
    """Answer with the metrics."""
    ctx = context(request)
    ctx.metrics.stored(*ctx.files.used)
    room = ctx.pool.capacity
    if ctx.cluster is not None:
        ctx.metrics.shared(ctx.cluster.samples())
        room += ctx.cluster.room_elsewhere()
    ctx.metrics.queued(ctx.queue.length(), ctx.queue.expected_wait_s(room))
    body = ctx.metrics.render(ctx.pool.engines, ctx.limits.memory_used)
    return Response(body, media_type=CONTENT_TYPE)


async def jwks(request: Request) -> Response:
    """Answer with the public keys of webhooks. Receivers may cache them for a day."""
    return json_response(context(request).signing_keys.jwks())


async def openapi_document(request: Request) -> Response:
    """Answer with the OpenAPI document of one endpoint."""
    target = endpoints.resolve(request.query_params.get("endpoint_id", endpoints.LCM_SD15_I2I.id))
    where = external(request.scope)
    return json_response(openapi.document(target.app, where.base("queue"), where.origin))


ROUTES: list[BaseRoute] = [
    Route("/health", health, methods=["GET"]),
    Route("/ready", ready, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
    Route("/.well-known/jwks.json", jwks, methods=["GET"]),
    Route("/rest/.well-known/jwks.json", jwks, methods=["GET"]),
    Route("/api/openapi/queue/openapi.json", openapi_document, methods=["GET"]),
]
